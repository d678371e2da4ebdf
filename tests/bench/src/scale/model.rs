//! What more nodes cost one etcd, by what was measured with some.

use std::time::Duration;

use super::Figures;

/// Numbers of nodes that are reckoned.
pub(super) const NODES: [u32; 3] = [1000, 5000, 10_000];

/// How long a start of all at once may keep one CPU of etcd busy.
const START: Duration = Duration::from_secs(60);
/// How much of a CPU of etcd the renewals of leases may take.
const RENEWALS: f64 = 0.25;
/// How long one change may take to reach all.
const CHANGE: Duration = Duration::from_secs(1);
/// What etcd's network carries, bytes a second: 10 Gbit/s.
const NETWORK: f64 = 1.25e9;
/// A lease is renewed so long after it was written: 24 h less the margin of one hour.
const RENEWED_EVERY: f64 = 23.0 * 3600.0;

/// A cost that has a part of each power of the number of nodes: 1, n and n².
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Cost([f64; 3]);

impl Cost {
    /// One that has `grows`, a power, and the one below, through both points: number of nodes and cost. Through one, or if
    /// it would shrink, it has only the higher.
    fn through(low: Option<(f64, f64)>, (nodes, cost): (f64, f64), grows: i32) -> Self {
        let (lower, higher) = match low.filter(|(other, _)| *other < nodes) {
            Some((few, its)) => {
                // Per node, to the lower power, what is left grows as the number of nodes does.
                let (little, much) = (its / few.powi(grows - 1), cost / nodes.powi(grows - 1));
                let higher = (much - little) / (nodes - few);
                (much - higher * nodes, higher)
            }
            None => (0.0, -1.0),
        };
        let (lower, higher) =
            if lower >= 0.0 && higher >= 0.0 { (lower, higher) } else { (0.0, cost / nodes.powi(grows)) };
        match grows {
            1 => Self([lower, higher, 0.0]),
            _ => Self([0.0, lower, higher]),
        }
    }

    fn of(self, nodes: f64) -> f64 {
        self.0[0] + self.0[1] * nodes + self.0[2] * nodes * nodes
    }
}

/// What nodes cost etcd.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Costs {
    /// CPU of a start of all, seconds.
    start: Cost,
    /// What it sends then, bytes.
    start_bytes: Cost,
    /// CPU for one change, seconds.
    change: Cost,
    /// Memory, bytes.
    memory: Cost,
    /// CPU after a restart of it, seconds.
    restart: Cost,
}

/// What so many nodes cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Reckoned {
    pub(super) nodes: u32,
    /// CPU of etcd for a start of all at once, seconds.
    pub(super) start: f64,
    /// What etcd sends then, bytes.
    pub(super) start_bytes: f64,
    /// CPU of etcd for one change, seconds.
    pub(super) change: f64,
    /// Share of one CPU of etcd for the renewals of all leases.
    pub(super) renewals: f64,
    /// Memory of etcd, bytes.
    pub(super) memory: f64,
    /// CPU of etcd after a restart of it, seconds.
    pub(super) restart: f64,
    /// What comes to its end first.
    pub(super) first: Limit,
}

/// What comes to its end with more nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    /// Nothing of what follows.
    None,
    /// etcd's CPU, when all start at once.
    Start,
    /// etcd's network, when all start at once.
    Network,
    /// etcd's CPU, for the renewals.
    Renewals,
    /// The time that a change takes.
    Change,
}

impl Limit {
    /// What it is, and what to set.
    pub(super) const fn advice(self) -> &'static str {
        match self {
            Self::None => "nothing",
            Self::Start => {
                "etcd's CPU when all start at once (over a minute): start nodes in groups (maxUnavailable of the \
                 DaemonSet), give etcd more CPUs or members"
            }
            Self::Network => {
                "etcd's network when all start at once (over a minute at 10 Gbit/s): start nodes in groups \
                 (maxUnavailable of the DaemonSet), give etcd more members"
            }
            Self::Renewals => {
                "etcd's CPU for renewals (over a quarter of one): give etcd more CPUs or members; a small \
                 --subnet-lease-renew-margin (60 minutes by default) means fewer"
            }
            Self::Change => "the time of a change (over a second): give etcd more CPUs or members",
        }
    }
}

impl Costs {
    /// By the two largest numbers of nodes of those that were measured.
    pub(super) fn of(figures: &[Figures], changes: u32) -> Option<Self> {
        let mut sorted: Vec<&Figures> = figures.iter().collect();
        sorted.sort_by_key(|it| it.nodes);
        let (high, others) = sorted.split_last()?;
        let low = others.last();
        let cost = |grows: i32, of: &dyn Fn(&Figures) -> f64| {
            let point = |it: &Figures| (f64::from(it.nodes), of(it));
            Cost::through(low.map(|low| point(low)), point(high), grows)
        };
        Some(Self {
            start: cost(2, &|it| it.start.etcd.cpu.as_secs_f64()),
            start_bytes: cost(2, &|it| it.start.etcd.sent),
            change: cost(1, &|it| it.changes.etcd.cpu.as_secs_f64() / f64::from(changes)),
            memory: cost(1, &|it| it.memory.resident as f64 * 1024.0),
            restart: cost(1, &|it| it.restart.etcd.cpu.as_secs_f64()),
        })
    }

    pub(super) fn reckon(self, nodes: u32) -> Reckoned {
        let many = f64::from(nodes);
        let (start, start_bytes) = (self.start.of(many), self.start_bytes.of(many));
        let change = self.change.of(many);
        let renewals = many / RENEWED_EVERY * change;
        let shares = [
            (start / START.as_secs_f64(), Limit::Start),
            (start_bytes / NETWORK / START.as_secs_f64(), Limit::Network),
            (renewals / RENEWALS, Limit::Renewals),
            (change / CHANGE.as_secs_f64(), Limit::Change),
        ];
        let worst = shares.into_iter().max_by(|a, b| a.0.total_cmp(&b.0));
        let first = worst.filter(|(share, _)| *share > 1.0).map_or(Limit::None, |(_, limit)| limit);
        let (memory, restart) = (self.memory.of(many), self.restart.of(many));
        Reckoned { nodes, start, start_bytes, change, renewals, memory, restart, first }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_goes_through_what_was_measured() {
        let cost = Cost::through(Some((10.0, 230.0)), (20.0, 860.0), 2);
        assert_eq!(cost, Cost([0.0, 3.0, 2.0]));
        assert_eq!((cost.of(10.0), cost.of(20.0), cost.of(100.0)), (230.0, 860.0, 20_300.0));
        assert_eq!(Cost::through(Some((10.0, 25.0)), (20.0, 45.0), 1), Cost([5.0, 2.0, 0.0]));
        // By chance, or by one point alone, it says nothing of the lower power.
        assert_eq!(Cost::through(Some((10.0, 1.0)), (20.0, 40.0), 1), Cost([0.0, 2.0, 0.0]));
        assert_eq!(Cost::through(None, (20.0, 800.0), 2), Cost([0.0, 0.0, 2.0]));
    }

    #[test]
    fn what_gives_out_first_is_what_exceeds_its_measure_most() {
        let costs = Costs {
            start: Cost([0.0, 0.0, 1e-6]),
            start_bytes: Cost([0.0, 0.0, 500.0]),
            change: Cost([0.0, 1e-5, 0.0]),
            memory: Cost([1e7, 1e5, 0.0]),
            restart: Cost([0.0, 1e-4, 0.0]),
        };
        assert_eq!(costs.reckon(1000).first, Limit::None);
        let many = costs.reckon(10_000);
        assert_eq!((many.start.round(), many.first), (100.0, Limit::Start));
        let costs = Costs { change: Cost([0.0, 1e-3, 0.0]), ..costs };
        assert_eq!(costs.reckon(10_000).first, Limit::Change);
    }
}
