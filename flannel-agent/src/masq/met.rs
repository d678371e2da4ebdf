//! Which of flannel's rules a packet meets on the kernel path.

use std::net::IpAddr;

use super::{
    RuleOptions,
    nft::text::line,
    rules::{In, Rule, RuleSet, State},
};

/// A packet that leaves this node, or goes to a pod of it, by the kernel path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passing {
    /// Its source.
    pub source: IpAddr,
    /// Its destination, of the same family.
    pub destination: IpAddr,
    /// Its mark.
    pub mark: u32,
    /// It was received, and is no packet of this node's own.
    pub forwarded: bool,
}

/// The rules that decide about it, in the order it meets them, as nft writes them; none of a family that `options` are not
/// for. Those of network address translation are for the first packet of a connection.
pub fn met(options: &RuleOptions, packet: &Passing) -> Vec<String> {
    let set = RuleSet::new(options);
    if options.network.is_ipv4() != packet.source.is_ipv4() {
        return Vec::new();
    }
    let fits = |rule: &&Rule| fits(rule, packet);
    let mut found = Vec::new();
    let forward = set.forward.iter().flatten().find(fits).filter(|_| packet.forwarded);
    found.extend(forward.map(|rule| format!("forward: {}", line(rule, set.family))));
    // The rules say this of one thing each.
    if set.flow.iter().flatten().any(|rule| fits(&rule) && rule.state == Some(State::Established)) {
        let what = "marked for the programs, if its connection is established and not translated";
        found.push(format!("flow: {what}"));
    }
    let nat = set.exempt.iter().chain(set.masq.iter().flatten()).find(fits);
    found.extend(nat.map(|rule| format!("nat, first packet of a connection: {}", line(rule, set.family))));
    found
}

fn fits(rule: &Rule, packet: &Passing) -> bool {
    let is_in = |end: Option<In>, address: IpAddr| {
        end.is_none_or(|In { network, negated }| network.contains(address) != negated)
    };
    is_in(rule.source, packet.source)
        && is_in(rule.destination, packet.destination)
        && rule.destination_not.is_none_or(|network| !network.contains(packet.destination))
        && rule.mark.is_none_or(|mark| (packet.mark & mark.mask == mark.value) != mark.negated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::masq::rules::tests::options;

    #[test]
    fn each_packet_meets_the_rules_that_are_about_it() {
        let met_by = |source: &str, destination: &str, mark, forwarded| {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            met(&options(), &Passing { source, destination, mark, forwarded }).join("; ")
        };
        // To another node's pod: let pass, with its own source.
        let found = met_by("10.244.1.2", "10.244.2.3", 0, true);
        assert!(found.starts_with("forward: ip saddr 10.244.0.0/16 accept; nat, first packet"), "{found}");
        assert!(found.ends_with("snat to ip saddr"), "{found}");
        // To the world: masqueraded, unless kube-proxy does it, or it is exempt.
        assert!(met_by("10.244.1.2", "198.51.100.7", 0, true).contains("masquerade fully-random"));
        assert!(met_by("10.244.1.2", "198.51.100.7", 0x4000, true).ends_with("return"));
        let exempt = met_by("10.244.1.2", "198.51.100.7", flannel_common::mark::SNAT_EXEMPT_MARK, true);
        assert!(exempt.ends_with("snat to ip saddr"), "{exempt}");
        // Of the node itself, nothing is forwarded.
        assert_eq!(met_by("192.0.2.1", "198.51.100.7", 0, false), "");
        assert_eq!(met_by("fd00::1", "fd00::2", 0, true), "", "another family's");
        let learning = RuleOptions { flow_mark: Some(0x100), ..options() };
        let packet = Passing {
            source: "10.244.1.2".parse().unwrap(),
            destination: "10.244.2.3".parse().unwrap(),
            mark: 0,
            forwarded: true,
        };
        assert!(met(&learning, &packet)[1].starts_with("flow: marked"));
    }
}
