//! Keys of leases: `10.244.57.0-24`, with IPv6 `10.244.57.0-24&fd00:10:244:29::-64`.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::{Ipv4Network, Ipv6Network};

use super::super::LeaseSubnet;

/// A key that names no subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not of the form of a lease's key.
    #[error("the key does not end in a subnet, as 10.244.57.0-24")]
    NoSubnet,
    /// An address that is none, or a length out of range: at most 31 for IPv4, 127 for IPv6.
    #[error("{0} in the key is not a subnet")]
    BadSubnet(String),
    /// An address inside a subnet instead of its first: no route can be made of it.
    #[error("{0} in the key has host bits set")]
    HostBits(String),
}

/// The last part of a lease's key.
///
/// An IPv6-only lease has `0.0.0.0-0` in the place of the IPv4 subnet, as upstream writes it.
pub fn lease_key(subnet: &LeaseSubnet) -> String {
    let unset = (Ipv4Addr::UNSPECIFIED, 0);
    let (address, len) = subnet.v4.map_or(unset, |v4| (v4.network(), v4.prefix()));
    match subnet.v6 {
        None => format!("{address}-{len}"),
        Some(v6) => format!("{address}-{len}&{}-{}", v6.network(), v6.prefix()),
    }
}

/// The subnet that a whole key or its last part names.
///
/// What stands before the subnet does not matter, as upstream's pattern is open at the left:
/// `(\d+\.\d+.\d+.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?$`. (Its unescaped dots match any character, but the
/// address they would let in is then refused as no address.)
pub fn parse_lease_key(key: &str) -> Result<LeaseSubnet, KeyError> {
    let (head, v6) = match split_v6(key) {
        Some((head, address, len)) => (head, Some((address, len))),
        None => (key, None),
    };
    let (address, len) = split_v4(head).ok_or(KeyError::NoSubnet)?;
    let v4 = subnet_v4(address, len)?;
    let v6 = v6.map(|(address, len)| subnet_v6(address, len)).transpose()?;
    match (v4, v6) {
        (None, None) => Err(KeyError::BadSubnet(format!("{address}-{len}"))),
        (v4, v6) => Ok(LeaseSubnet { v4, v6 }),
    }
}

/// Splits `<head>&<address>-<len>`.
fn split_v6(key: &str) -> Option<(&str, &str, &str)> {
    let (head, subnet) = key.rsplit_once('&')?;
    let (address, len) = subnet.split_once('-')?;
    let of_address = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b) || b == b':';
    (!address.is_empty() && address.bytes().all(of_address) && digits(len)).then_some((head, address, len))
}

/// Splits `<anything><address>-<len>`.
fn split_v4(head: &str) -> Option<(&str, &str)> {
    let (rest, len) = head.rsplit_once('-')?;
    let mut start = rest.len();
    for group in 0..4 {
        if group > 0 {
            start = rest.get(..start)?.strip_suffix('.')?.len();
        }
        let shorter = rest.get(..start)?.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        if shorter == start {
            return None;
        }
        start = shorter;
    }
    digits(len).then_some((rest.get(start..)?, len))
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// `None` for `0.0.0.0-0`, which stands for no subnet.
fn subnet_v4(address: &str, len: &str) -> Result<Option<Ipv4Network>, KeyError> {
    let bad = || KeyError::BadSubnet(format!("{address}-{len}"));
    let prefix = len.parse::<u8>().ok().filter(|len| *len <= 31).ok_or_else(bad)?;
    let network = Ipv4Network::new(address.parse().map_err(|_| bad())?, prefix).map_err(|_| bad())?;
    match network.network() == network.ip() {
        true => Ok((prefix > 0).then_some(network)),
        false => Err(KeyError::HostBits(format!("{address}-{len}"))),
    }
}

fn subnet_v6(address: &str, len: &str) -> Result<Ipv6Network, KeyError> {
    let bad = || KeyError::BadSubnet(format!("{address}-{len}"));
    let prefix = len.parse::<u8>().ok().filter(|len| *len <= 127).ok_or_else(bad)?;
    let address6: Ipv6Addr = address.parse().map_err(|_| bad())?;
    let network = Ipv6Network::new(address6, prefix).map_err(|_| bad())?;
    match network.network() == network.ip() {
        true => Ok(network),
        false => Err(KeyError::HostBits(format!("{address}-{len}"))),
    }
}
