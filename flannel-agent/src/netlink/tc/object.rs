//! Queueing disciplines, and the filters in them.

use netlink_packet_route::tc::TcHandle;

pub(super) const CLSACT: &str = "clsact";
pub(super) const INGRESS: &str = "ingress";

/// Priority of our filters: behind what an operator numbers by hand, from 1 on, and before what the kernel numbers,
/// from 49152 down. It is the number of flannel's UDP port, which nobody else comes upon.
pub(crate) const PRIORITY: u16 = 8472;

/// Where a filter sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TcSide {
    /// What the interface receives.
    Ingress,
    /// What it sends.
    Egress,
}

impl TcSide {
    pub(super) fn parent(self) -> TcHandle {
        let minor = match self {
            Self::Ingress => TcHandle::MIN_INGRESS,
            Self::Egress => TcHandle::MIN_EGRESS,
        };
        TcHandle { minor, ..TcHandle::CLSACT }
    }
}

/// A discipline that takes filters on what an interface receives. There is at most one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TcQdisc {
    /// Filters at both sides.
    Clsact,
    /// Filters at ingress alone.
    Ingress,
}

/// A discipline, of whatever kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcDiscipline {
    /// Index of its interface.
    pub ifindex: u32,
    /// Its kind, as `tc qdisc` names it.
    pub kind: String,
}

impl TcDiscipline {
    /// The discipline for filters that it is.
    pub fn filters(&self) -> Option<TcQdisc> {
        match self.kind.as_str() {
            CLSACT => Some(TcQdisc::Clsact),
            INGRESS => Some(TcQdisc::Ingress),
            _ => None,
        }
    }

    /// Whether it may choose among its queues by a packet's mark or class, itself or by filters that are attached to it:
    /// all but those known to have one queue, or to choose by flow alone.
    pub fn goes_by_marks(&self) -> bool {
        const BY_FLOW: [&str; 20] = [
            "noop",
            "noqueue",
            "pfifo_fast",
            "pfifo",
            "bfifo",
            "mq",
            "fq",
            "fq_codel",
            "fq_pie",
            "codel",
            "pie",
            "sfq",
            "red",
            "gred",
            "hhf",
            "tbf",
            "netem",
            "etf",
            CLSACT,
            INGRESS,
        ];
        !BY_FLOW.contains(&self.kind.as_str())
    }

    /// Whether it lets every packet go at once: those that the kernel gives interfaces without a queue, or with the
    /// queue that all have.
    pub fn is_without_effect(&self) -> bool {
        matches!(self.kind.as_str(), "noqueue" | "pfifo_fast")
    }
}

/// Where a filter is, among those of one side of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcPlace {
    /// Index of the interface.
    pub ifindex: u32,
    /// Which side.
    pub side: TcSide,
    /// The lower, the earlier.
    pub priority: u16,
    /// Tells filters of one priority apart; 0 stands for all of them.
    pub handle: u32,
}

/// A filter that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcFilter {
    /// The lower, the earlier.
    pub priority: u16,
    /// Tells filters of one priority apart; 0 stands for all of them.
    pub handle: u32,
    /// What it runs, if that is a program.
    pub program: Option<TcProgram>,
}

/// What a filter runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcProgram {
    /// Name that was given to the filter.
    pub name: String,
    /// The kernel's id of the program.
    pub id: u32,
}
