//! Which rules there should be: upstream's, in upstream's order, before them the exemptions, and behind all
//! filters the mark that flows are learned from.

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::{control::snapshot::RuleSettings, values::Family};

/// `IPS_HELPER` of `enum ip_conntrack_status` (include/uapi/linux/netfilter/nf_conntrack_common.h), which nft has no
/// name for.
pub(super) const IPS_HELPER: u32 = 1 << 13;

/// Mark of kube-proxy and kubelet: masquerade this.
const KUBE_MASQUERADE: u32 = 0x4000;

/// Comment of every masquerade rule in iptables, upstream's.
pub(super) const MASQ: &str = "flanneld masq";
/// Comment of every forward rule in iptables, upstream's.
pub(super) const FORWARD: &str = "flanneld forward";
/// Comment of the exemptions in iptables.
pub(super) const EXEMPT: &str = "flanneld exempt";

/// Comment of the rules that mark established flows, in iptables.
pub(super) const FLOW: &str = "flanneld flow";

/// What the rules of one address family follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleOptions {
    /// The cluster's network (`Network` of the configuration).
    pub network: IpNetwork,
    /// Our subnet of it.
    pub subnet: IpNetwork,
    /// `--ip-masq`.
    pub ip_masq: bool,
    /// `--iptables-forward-rules`.
    pub forward: bool,
    /// The masquerade's ports are drawn at random, which spares connections that start at once a clash.
    pub random_fully: bool,
    /// The bit by which the programs mark what is exempt, if they do ([`flannel_common::mark::Marks::exempt`]).
    pub exempt_mark: Option<u32>,
    /// The bit of marks from which the programs learn flows, if they do ([`flannel_common::mark::Marks::flow`]).
    pub flow_mark: Option<u32>,
}

impl RuleOptions {
    /// As the control socket tells it.
    pub fn told(&self) -> RuleSettings {
        let Self { network, subnet, ip_masq, forward, random_fully, exempt_mark, flow_mark } = *self;
        RuleSettings { network, subnet, ip_masq, forward, random_fully, exempt_mark, flow_mark }
    }

    /// As the control socket has told it.
    pub fn of_told(told: &RuleSettings) -> Self {
        let RuleSettings { network, subnet, ip_masq, forward, random_fully, exempt_mark, flow_mark } = *told;
        Self { network, subnet, ip_masq, forward, random_fully, exempt_mark, flow_mark }
    }
}

/// The rules of one address family, whatever program loads them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RuleSet {
    pub(super) family: Family,
    /// Before all masquerade rules, our own and others'.
    pub(super) exempt: Vec<Rule>,
    /// None without `--ip-masq`.
    pub(super) masq: Option<Vec<Rule>>,
    /// None with `--iptables-forward-rules=false`.
    pub(super) forward: Option<Vec<Rule>>,
    /// None where no program learns flows.
    pub(super) flow: Option<Vec<Rule>>,
}

/// One rule: a packet that fits all that is named meets the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) source: Option<In>,
    pub(super) destination: Option<In>,
    /// A second condition on the destination: not in this network.
    pub(super) destination_not: Option<IpNetwork>,
    pub(super) mark: Option<Mark>,
    pub(super) transport: Option<Transport>,
    pub(super) state: Option<State>,
    pub(super) verdict: Verdict,
}

/// In this network, or not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct In {
    pub(super) network: IpNetwork,
    pub(super) negated: bool,
}

/// Of this protocol, and with these ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transport {
    /// `tcp` or `udp`.
    pub(super) protocol: &'static str,
    /// The lowest and the highest.
    pub(super) source_ports: Option<(u16, u16)>,
    pub(super) destination_ports: Option<(u16, u16)>,
}

/// `mark & mask == value`, or not so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) value: u32,
    pub(super) mask: u32,
    pub(super) negated: bool,
}

/// What connection tracking knows of a packet's flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It has seen packets both ways.
    Established,
    /// An address or port of it is changed on its way, and it was begun to an address in this network.
    TranslatedIn(IpNetwork),
    /// It was begun to an address in this network, translated or not.
    BegunTo(IpNetwork),
    /// A helper reads it, for the connections that it announces (FTP's, SIP's): `IPS_HELPER`.
    Helped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// No further rule of flannel's.
    Return,
    Accept,
    Masquerade {
        random_fully: bool,
    },
    /// The packet keeps its source, whatever rules come after.
    Keep,
    /// The packet goes on with these bits of its mark set.
    Mark(u32),
    /// The packet goes on without them.
    Unmark(u32),
}

/// All multicast addresses of a family.
fn multicast(family: Family) -> IpNetwork {
    const V4: Ipv4Network = Ipv4Network::new_checked(std::net::Ipv4Addr::new(224, 0, 0, 0), 4).unwrap();
    const V6: Ipv6Network =
        Ipv6Network::new_checked(std::net::Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8).unwrap();
    match family {
        Family::V4 => V4.into(),
        Family::V6 => V6.into(),
    }
}

impl RuleSet {
    /// The rules that `options` ask for.
    pub(super) fn new(options: &RuleOptions) -> Self {
        let family = Family::of_network(options.network);
        Self {
            family,
            exempt: exempt(options),
            masq: options.ip_masq.then(|| masq(options, family)),
            forward: options.forward.then(|| forward(options.network)),
            flow: options.flow_mark.map(|bit| flow(options.network, bit)),
        }
    }
}

/// Not only with `--ip-masq`: where flannel does not masquerade, docker or a CNI plugin does, and knows only
/// the node's own subnet. Packets between pods of this node are left to their rules, because one of them
/// lets a container reach itself through its published port.
fn exempt(options: &RuleOptions) -> Vec<Rule> {
    let mark = |value, mask, negated| Some(Mark { value, mask, negated });
    let any = Rule {
        source: None,
        destination: None,
        destination_not: None,
        mark: None,
        transport: None,
        state: None,
        verdict: Verdict::Keep,
    };
    // Only of our pods: what else has that bit, somebody else has marked.
    let marked =
        |bit| Rule { source: within(options.subnet), mark: mark(bit, bit | KUBE_MASQUERADE, false), ..any };
    let to_peers = Rule {
        source: within(options.subnet),
        destination: within(options.network),
        destination_not: Some(options.subnet),
        mark: mark(KUBE_MASQUERADE, KUBE_MASQUERADE, true),
        ..any
    };
    options.exempt_mark.map(marked).into_iter().chain([to_peers]).collect()
}

/// Upstream's order. Its nftables version lacks the fourth rule and has `saddr != P daddr C return` in its
/// place, which lets no packet reach the last one; here both have the rules of its iptables version.
fn masq(options: &RuleOptions, family: Family) -> Vec<Rule> {
    let (pods, cluster) = (options.subnet, options.network);
    let masquerade = Verdict::Masquerade { random_fully: options.random_fully };
    let rule = |source, destination, verdict| Rule {
        source,
        destination,
        destination_not: None,
        mark: None,
        transport: None,
        state: None,
        verdict,
    };
    let by_kube = Mark { value: KUBE_MASQUERADE, mask: KUBE_MASQUERADE, negated: false };
    vec![
        Rule { mark: Some(by_kube), ..rule(None, None, Verdict::Return) },
        rule(within(pods), within(cluster), Verdict::Return),
        rule(within(cluster), within(pods), Verdict::Return),
        rule(outside(cluster), within(pods), Verdict::Return),
        rule(within(cluster), outside(multicast(family)), masquerade),
        rule(outside(cluster), within(cluster), masquerade),
    ]
}

fn forward(cluster: IpNetwork) -> Vec<Rule> {
    let accept = Rule {
        source: None,
        destination: None,
        destination_not: None,
        mark: None,
        transport: None,
        state: None,
        verdict: Verdict::Accept,
    };
    vec![Rule { source: within(cluster), ..accept }, Rule { destination: within(cluster), ..accept }]
}

/// What is translated from outside of the cluster's network, as to a Service, is marked like everything else: the
/// programs tell it by its addresses. First the bit is cleared, whoever has set it. Then a rule for each thing, not one
/// with negations, which versions of nft write each in its own way.
fn flow(cluster: IpNetwork, bit: u32) -> Vec<Rule> {
    let rule = |state, verdict| Rule {
        source: within(cluster),
        destination: within(cluster),
        destination_not: None,
        mark: None,
        transport: None,
        state,
        verdict,
    };
    vec![
        rule(None, Verdict::Unmark(bit)),
        rule(Some(State::TranslatedIn(cluster)), Verdict::Return),
        rule(Some(State::Helped), Verdict::Return),
        rule(Some(State::Established), Verdict::Mark(bit)),
    ]
}

fn within(network: IpNetwork) -> Option<In> {
    Some(In { network, negated: false })
}

fn outside(network: IpNetwork) -> Option<In> {
    Some(In { network, negated: true })
}

#[cfg(test)]
pub(super) mod tests {
    use flannel_common::mark::SNAT_EXEMPT_MARK;

    use super::RuleOptions;

    /// Every rule there is, but that of the flows.
    pub(in crate::masq) fn options() -> RuleOptions {
        RuleOptions {
            network: "10.244.0.0/16".parse().unwrap(),
            subnet: "10.244.1.0/24".parse().unwrap(),
            ip_masq: true,
            forward: true,
            random_fully: true,
            exempt_mark: Some(SNAT_EXEMPT_MARK),
            flow_mark: None,
        }
    }
}
