//! The rules of the choice. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use regex::Regex;

use super::{Chosen, ExternalInterface, HostInterfaces, InterfaceChoice, InterfaceError, Known, Stack};
use crate::netlink::{InterfaceAddress, Link};

/// An interface, and those of its addresses that the rule decided; the others are decided by their order.
struct Pick<'a> {
    link: &'a Link,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
    because: String,
    /// What the rule would have taken, and why it was not.
    passed_over: Vec<String>,
}

impl HostInterfaces {
    /// Chooses the external interface: by `--iface`, then `--iface-regex`, then `--iface-can-reach`; without
    /// any of them by the public address; without that by the default route.
    pub fn choose(&self, choice: &InterfaceChoice) -> Result<Chosen, InterfaceError> {
        let InterfaceChoice { iface, iface_regex, can_reach, stack, .. } = choice;
        if iface.is_empty() && iface_regex.is_empty() && can_reach.is_none() {
            let pick = self.unasked(choice)?;
            let interface = self
                .complete(&pick, *stack)
                .map_err(|reason| InterfaceError::Unfit { reason, known: self.known(*stack) })?;
            return Ok(Chosen { interface, because: pick.because, passed_over: pick.passed_over });
        }
        let named = iface.iter().map(|value| (format!("--iface={value}"), self.named(value, choice)));
        let matched =
            iface_regex.iter().map(|regex| (format!("--iface-regex={regex}"), self.matched(regex, choice)));
        let reached =
            can_reach.iter().map(|target| (format!("--iface-can-reach={target}"), self.reached(choice)));
        let mut passed_over = Vec::new();
        for (flag, pick) in named.chain(matched).chain(reached) {
            let completed = pick.and_then(|pick| Ok((self.complete(&pick, *stack)?, pick.because)));
            match completed {
                Ok((interface, because)) => {
                    return Ok(Chosen { interface, because: format!("{flag} {because}"), passed_over });
                }
                Err(reason) => passed_over.push(format!("{flag}: {reason}")),
            }
        }
        Err(InterfaceError::NoneFits { reasons: passed_over, known: self.known(*stack) })
    }

    /// The interface that one value of `--iface` means: the one that holds it, or has it for a name.
    fn named(&self, value: &str, choice: &InterfaceChoice) -> Result<Pick<'_>, String> {
        let Ok(address) = value.parse::<IpAddr>() else {
            let link = self.links.iter().find(|link| link.name == value);
            let link = link.ok_or_else(|| format!("there is no interface {value}"))?;
            self.not_refused(link, choice)?;
            return Ok(Pick::of(link));
        };
        let link = self.holder(address, choice).ok_or_else(|| format!("no interface holds {address}"))?;
        self.not_refused(link, choice)?;
        let mut pick = Pick { because: "is an address of it".to_owned(), ..Pick::of(link) };
        pick.take(address);
        if choice.stack == Stack::Dual
            && let Some(v6) = choice.public_ipv6
            && let Some(holder) = self.holder(v6.into(), choice)
        {
            same_interface("interface", link, holder)?;
            pick.v6 = Some(v6);
        }
        Ok(pick)
    }

    /// The first interface one of whose addresses matches (with both families, one of each), else the first
    /// whose name does.
    fn matched(&self, regex: &Regex, choice: &InterfaceChoice) -> Result<Pick<'_>, String> {
        let stack = choice.stack;
        let links = || self.links.iter().filter(|link| self.refusal(link, choice).is_none());
        for link in links() {
            let matching = |v6: bool| {
                self.usable(link)
                    .map(|held| held.ip)
                    .find(|ip| ip.is_ipv6() == v6 && regex.is_match(&ip.to_string()))
            };
            let v4 = stack.has_v4().then(|| matching(false));
            let v6 = stack.has_v6().then(|| matching(true));
            if v4 == Some(None) || v6 == Some(None) {
                continue;
            }
            let addresses: Vec<IpAddr> = [v4, v6].into_iter().flatten().flatten().collect();
            let texts: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
            let because = format!("matches {} on it", texts.join(" and "));
            let mut pick = Pick { because, ..Pick::of(link) };
            addresses.into_iter().for_each(|address| pick.take(address));
            return Ok(pick);
        }
        let by_name = || links().filter(|link| regex.is_match(&link.name));
        // Of several the first that will do: upstream takes the first, and fails if it has no address.
        let fit = |link: &&Link| self.complete(&Pick::of(link), stack).is_ok();
        let link = by_name().find(fit).or_else(|| by_name().next());
        let link = link.ok_or_else(|| {
            let refused = self.links.iter().filter_map(|link| self.refusal(link, choice));
            let refused: String = refused.map(|reason| format!("; {reason}")).collect();
            let pattern = regex.as_str();
            format!("Could not match pattern {pattern} to any of the available network interfaces{refused}")
        })?;
        Ok(Pick { because: "matches its name".to_owned(), ..Pick::of(link) })
    }

    fn reached(&self, choice: &InterfaceChoice) -> Result<Pick<'_>, String> {
        let reach = self.reach.clone().unwrap_or_else(|| Err("the route was not asked for".to_owned()))?;
        let link = self.links.iter().find(|link| link.index == reach.ifindex);
        let link =
            link.ok_or_else(|| format!("the route to it uses interface {}, which is gone", reach.ifindex))?;
        self.not_refused(link, choice)?;
        let mut pick = Pick { because: "is reached over it".to_owned(), ..Pick::of(link) };
        reach.source.into_iter().for_each(|source| pick.take(source));
        Ok(pick)
    }

    /// The interface when none was asked for.
    fn unasked(&self, choice: &InterfaceChoice) -> Result<Pick<'_>, InterfaceError> {
        let stack = choice.stack;
        let known = || self.known(stack);
        let held = |flag, address: IpAddr| {
            let link = self.holder(address, choice);
            let link = link.ok_or_else(|| InterfaceError::NotHeld { flag, address, known: known() })?;
            let refused = self.not_refused(link, choice);
            refused.map_err(|reason| InterfaceError::Unfit { reason, known: known() })?;
            Ok::<_, InterfaceError>(link)
        };
        let of_v4 = choice.public_ip.filter(|_| stack.has_v4());
        let of_v6 = choice.public_ipv6.filter(|_| stack.has_v6());
        let unfit = |reason| InterfaceError::Unfit { reason, known: known() };
        let mut pick = match (of_v4, of_v6) {
            (Some(v4), _) => {
                let because = "it holds --public-ip".to_owned();
                Pick { v4: Some(v4), because, ..Pick::of(held("--public-ip", v4.into())?) }
            }
            (None, Some(v6)) if stack == Stack::V6 => {
                let because = "it holds --public-ipv6".to_owned();
                Pick { v6: Some(v6), because, ..Pick::of(held("--public-ipv6", v6.into())?) }
            }
            _ => self.default(choice)?,
        };
        if stack == Stack::Dual
            && let Some(v6) = of_v6
        {
            same_interface("interface", pick.link, held("--public-ipv6", v6.into())?).map_err(unfit)?;
            pick.v6 = Some(v6);
        }
        Ok(pick)
    }

    /// The interface of the foremost default route that can be it, which must be the same for both families.
    fn default(&self, choice: &InterfaceChoice) -> Result<Pick<'_>, InterfaceError> {
        let stack = choice.stack;
        let mut passed_over = Vec::new();
        let mut of = |family, indices: &[u32]| {
            let mut refused = Vec::new();
            for link in indices.iter().filter_map(|index| self.links.iter().find(|link| link.index == *index))
            {
                match self.refusal(link, choice) {
                    None => {
                        let routed = |reason| format!("the {family} default route: {reason}");
                        passed_over.extend(refused.into_iter().map(routed));
                        return Ok(link);
                    }
                    Some(reason) => refused.push(reason),
                }
            }
            Err(InterfaceError::NoDefaultRoute { family, refused, known: self.known(stack) })
        };
        let v4 = stack.has_v4().then(|| of("IPv4", &self.default_v4)).transpose()?;
        let v6 = stack.has_v6().then(|| of("IPv6", &self.default_v6)).transpose()?;
        let link = match (v4, v6) {
            (Some(v4), Some(v6)) => {
                same_interface("default route interface", v4, v6)
                    .map_err(|reason| InterfaceError::Unfit { reason, known: self.known(stack) })?;
                v4
            }
            (Some(link), None) | (None, Some(link)) => link,
            (None, None) => of("IPv4", &[])?,
        };
        Ok(Pick { because: "the default route uses it".to_owned(), passed_over, ..Pick::of(link) })
    }

    /// Adds the addresses that the rule left open, and judges the whole.
    fn complete(&self, pick: &Pick<'_>, stack: Stack) -> Result<ExternalInterface, String> {
        let Link { name, index, mtu, .. } = pick.link;
        let missing = |family| {
            format!(
                "failed to find {family} address for interface {name}: it holds no global or link-local one \
                 that is not deprecated"
            )
        };
        let mut best_v4 = self.usable(pick.link).filter_map(|held| match held.ip {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        });
        let mut best_v6 = self.usable(pick.link).filter_map(|held| match held.ip {
            IpAddr::V6(v6) => Some(v6),
            IpAddr::V4(_) => None,
        });
        let v4 = stack.has_v4().then(|| pick.v4.or_else(|| best_v4.next()).ok_or_else(|| missing("IPv4")));
        let v6 = stack.has_v6().then(|| pick.v6.or_else(|| best_v6.next()).ok_or_else(|| missing("IPv6")));
        let (address, address_v6) = (v4.transpose()?.unwrap_or(Ipv4Addr::UNSPECIFIED), v6.transpose()?);
        if *mtu == 0 {
            return Err(format!("failed to determine MTU for interface {name}: it is 0"));
        }
        Ok(ExternalInterface { name: name.clone(), index: *index, mtu: *mtu, address, address_v6 })
    }

    /// The interface that holds an address, of whatever kind it is: of several one that can be the external one.
    fn holder(&self, address: IpAddr, choice: &InterfaceChoice) -> Option<&Link> {
        let holding = || {
            let held = self.addresses.iter().filter(|held| held.ip == address);
            held.filter_map(|held| self.links.iter().find(|link| link.index == held.ifindex))
        };
        holding().find(|link| self.refusal(link, choice).is_none()).or_else(|| holding().next())
    }

    fn not_refused(&self, link: &Link, choice: &InterfaceChoice) -> Result<(), String> {
        self.refusal(link, choice).map_or(Ok(()), Err)
    }

    /// The addresses of an interface that are worth publishing, the best first.
    fn usable(&self, link: &Link) -> impl Iterator<Item = &InterfaceAddress> {
        let mut all: Vec<&InterfaceAddress> =
            self.addresses.iter().filter(|held| held.ifindex == link.index && held.is_usable()).collect();
        all.sort_by_key(|held| held.rank(self.sources.contains(&held.ip)));
        all.into_iter()
    }

    fn known(&self, stack: Stack) -> Known {
        let wanted = |ip: &IpAddr| if ip.is_ipv4() { stack.has_v4() } else { stack.has_v6() };
        let of_link = |link: &Link| self.usable(link).map(|held| held.ip).filter(wanted).collect();
        Known(self.links.iter().map(|link| (link.name.clone(), of_link(link))).collect())
    }
}

impl<'a> Pick<'a> {
    /// By its name.
    fn of(link: &'a Link) -> Self {
        Self { link, v4: None, v6: None, because: "names it".to_owned(), passed_over: Vec::new() }
    }

    fn take(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => self.v4 = Some(v4),
            IpAddr::V6(v6) => self.v6 = Some(v6),
        }
    }
}

/// The messages are upstream's.
fn same_interface(what: &str, v4: &Link, v6: &Link) -> Result<(), String> {
    if v4.index == v6.index {
        return Ok(());
    }
    Err(format!("v6 {what} {} must be the same with v4 {what} {}", v6.name, v4.name))
}
