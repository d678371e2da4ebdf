//! What of others sees packets at an interface before the tunnel gets them.

use super::Surroundings;
use crate::{
    bpf,
    netlink::{Link, Netfilter, NetlinkError, TcSide, TrafficControl},
};

impl Surroundings {
    /// Filters, programs and chains of others at `link`, in the words of the tools that show them. XDP is the link's own.
    pub(crate) fn first_at(link: &Link) -> Result<Vec<String>, NetlinkError> {
        let mut found = Vec::new();
        let mut tc = TrafficControl::open()?;
        // A kernel without traffic control has none, and neither has an interface that is gone meanwhile.
        let qdisc = tc.qdisc(link.index).ok().flatten();
        for &side in qdisc.as_ref().map(bpf::sides).unwrap_or_default() {
            let filters = tc.filters(link.index, side).unwrap_or_default();
            // A listing begins with what all filters of a priority have in common.
            for filter in filters.iter().filter(|filter| bpf::foreign(filter, side).is_some()) {
                let name =
                    filter.program.as_ref().map_or_else(String::new, |program| format!(" {}", program.name));
                found.push(format!("tc filter{name} of priority {} {}", filter.priority, at(side)));
            }
        }
        for side in [TcSide::Ingress, TcSide::Egress] {
            // A kernel without tcx has none there.
            let programs = bpf::tcx_of_others(link.index, side).unwrap_or_default();
            found.extend(programs.into_iter().map(|name| format!("tcx program {name} {}", at(side))));
        }
        let chains = Netfilter::open()?.chains()?.devices.into_iter().filter(|chain| chain.is_of(&link.name));
        found.extend(chains.map(|chain| {
            let side = if chain.egress { TcSide::Egress } else { TcSide::Ingress };
            format!("nftables chain {} {}", chain.name, at(side))
        }));
        found.dedup();
        Ok(found)
    }
}

const fn at(side: TcSide) -> &'static str {
    match side {
        TcSide::Ingress => "at ingress",
        TcSide::Egress => "at egress",
    }
}
