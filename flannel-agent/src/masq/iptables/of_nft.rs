//! Rules of nft tables for which each packet counts, and what is kept from the mark for them.

use std::time::{Duration, Instant};

use flannel_common::packet::headers::PROTOCOL_TCP;
use ipnetwork::IpNetwork;
use tracing::debug;

use super::{each_packet::Found, saved::SavedRule, spec::spec};
use crate::{
    masq::rules::{FLOW, In, Rule, State, Transport, Verdict},
    netlink::{CountingRule, Netfilter, NetlinkError, Seen},
};

/// After a look, so many times its length nothing is read: where kube-proxy has very many chains, and changes them often,
/// we would else read all the time.
const REST: u32 = 50;

/// What was found the last time.
#[derive(Default)]
pub(super) struct NftRules {
    /// Nothing has changed since, as long as this is so.
    generation: Option<u32>,
    of_iptables: bool,
    /// Nothing is read before.
    rests_until: Option<Instant>,
    found: Vec<Found>,
}

impl NftRules {
    /// The rules that packets of established flows between addresses of `network` come to, those of iptables' tables among
    /// them where nobody else reads these. Read only if something has changed.
    pub(super) fn look(
        &mut self,
        netfilter: &mut Netfilter,
        network: IpNetwork,
        of_iptables: bool,
    ) -> Vec<Found> {
        let start = Instant::now();
        if self.rests_until.is_none_or(|until| start >= until) {
            match self.read(netfilter, network, of_iptables) {
                Ok(()) => self.rests_until = Some(start + start.elapsed().min(Duration::from_secs(1)) * REST),
                Err(error) => debug!(%error, "rules of nft cannot be read"),
            }
        }
        self.found.clone()
    }

    fn read(
        &mut self,
        netfilter: &mut Netfilter,
        network: IpNetwork,
        of_iptables: bool,
    ) -> Result<(), NetlinkError> {
        let generation = netfilter.generation()?;
        if generation.is_some() && self.generation == generation && self.of_iptables == of_iptables {
            return Ok(());
        }
        let rules = match generation {
            Some(_) => netfilter.counting_rules(network, of_iptables)?,
            None => Vec::new(),
        };
        self.found = rules.into_iter().map(|rule| found(rule, network)).collect();
        (self.generation, self.of_iptables) = (generation, of_iptables);
        Ok(())
    }
}

fn found(rule: CountingRule, network: IpNetwork) -> Found {
    let exception = exception(&rule.seen, network);
    let sees_all = exception.transport.is_none()
        && exception.state.is_none()
        && [exception.source, exception.destination].iter().flatten().all(|end| end.network == network);
    Found { text: rule.text, exception: SavedRule::new(&spec(&exception, FLOW)), sees_all }
}

/// Something else, in words, that sees all packets between addresses of `network`.
pub(super) fn of_all(text: String, network: IpNetwork) -> Found {
    found(CountingRule { text, seen: Seen::default() }, network)
}

/// What keeps the packets that are `seen` from the mark.
fn exception(seen: &Seen, network: IpNetwork) -> Rule {
    let within = |named: Option<IpNetwork>| {
        let network = named.filter(|named| named.prefix() > network.prefix()).unwrap_or(network);
        Some(In { network, negated: false })
    };
    let transport = seen.protocol.map(|protocol| Transport {
        protocol: if protocol == PROTOCOL_TCP { "tcp" } else { "udp" },
        source_ports: seen.source_ports,
        destination_ports: seen.destination_ports,
    });
    Rule {
        source: within(seen.source),
        destination: within(seen.destination),
        destination_not: None,
        mark: None,
        transport,
        state: seen.service.map(State::BegunTo),
        verdict: Verdict::Return,
    }
}
