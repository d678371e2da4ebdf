//! The protocol number of our routes, and why it is not the same one for all of very many.
//!
//! The kernel keeps the ways that IPv4 routes lead in one hash table, whose key is made of a route's protocol, scope,
//! source, metric and interface, and not of its gateway (net/ipv4/fib_semantics.c, `fib_info_hashfn_1`). Ten thousand
//! routes over one device, all of protocol boot as flannel's are, lie in one bucket, and each that is added is compared
//! with all of them: a second and a half of CPU, under the lock that every other change of the network waits for. With
//! protocols of their own it is a tenth of that.
//!
//! The number only says who made a route: no packet depends on it. Neither stock flannel nor `ip route` compares it when
//! a route is replaced or deleted. Nexthop objects would make up a key of their own, too, but a route that uses one is
//! not found by who deletes it as `via GATEWAY`.

use ipnetwork::IpNetwork;
use netlink_packet_route::route::RouteProtocol;

/// The first number, and how many: none of them is anybody's (include/uapi/linux/rtnetlink.h, `RTPROT_*`, and
/// iproute2's rt_protos). A hundred routes in a bucket cost no more than what else is to be done for one.
const FIRST: u8 = 128;
const COUNT: u8 = 48;

/// So many routes may be of one protocol. All of a cluster of up to as many nodes look exactly as stock flannel's.
pub(crate) const MANY: usize = 1024;

/// What a route to `subnet` is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Numbering {
    /// As stock flannel makes it.
    Boot,
    /// As one of more than [`MANY`] that are made at once.
    Spread,
}

impl Numbering {
    /// For a route that is one of `count` made at once.
    pub(crate) fn of_many(count: usize) -> Self {
        if count > MANY { Self::Spread } else { Self::Boot }
    }

    /// The protocol of a route to `subnet`. It depends on nothing else, so that whoever deletes the route knows it.
    pub(super) fn protocol(self, subnet: IpNetwork) -> RouteProtocol {
        match (self, subnet) {
            (Self::Spread, IpNetwork::V4(subnet)) => {
                let bits = u32::from(subnet.network());
                let number = bits.unbounded_shr(32 - u32::from(subnet.prefix()));
                // The remainder is smaller than COUNT.
                let place = u8::try_from(number % u32::from(COUNT)).unwrap_or_default();
                RouteProtocol::Other(FIRST + place)
            }
            // Each IPv6 route keeps its way for itself.
            (Self::Boot, _) | (Self::Spread, IpNetwork::V6(_)) => RouteProtocol::Boot,
        }
    }
}

/// Whether a route of ours to `subnet` may be of `protocol`.
pub(super) fn is_ours(subnet: IpNetwork, protocol: RouteProtocol) -> bool {
    [Numbering::Boot, Numbering::Spread].iter().any(|numbering| numbering.protocol(subnet) == protocol)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn subnets(length: u8, count: u32) -> impl Iterator<Item = IpNetwork> {
        let base = u32::from_be_bytes([10, 0, 0, 0]);
        (0..count)
            .map(move |n| IpNetwork::new((base + (n << (32 - length))).to_be_bytes().into(), length).unwrap())
    }

    #[test]
    fn many_routes_lie_in_no_bucket_together() {
        for length in [20, 24, 26, 32] {
            let mut buckets = BTreeMap::<u8, usize>::new();
            for subnet in subnets(length, 4800) {
                let protocol = u8::from(Numbering::Spread.protocol(subnet));
                assert!((128..176).contains(&protocol), "{protocol}");
                *buckets.entry(protocol).or_default() += 1;
            }
            assert!(buckets.values().all(|count| *count == 100), "/{length}: {buckets:?}");
        }
    }

    #[test]
    fn few_are_as_stock_flannels() {
        let subnet: IpNetwork = "10.1.2.0/24".parse().unwrap();
        assert_eq!(Numbering::of_many(MANY).protocol(subnet), RouteProtocol::Boot);
        assert_ne!(Numbering::of_many(MANY + 1).protocol(subnet), RouteProtocol::Boot);
        let v6 = "fd00:1:2::/64".parse().unwrap();
        assert_eq!(Numbering::Spread.protocol(v6), RouteProtocol::Boot);
    }

    #[test]
    fn only_ours_are_ours() {
        let [one, other] = ["10.1.2.0/24", "10.1.3.0/24"].map(|text| text.parse::<IpNetwork>().unwrap());
        assert!(is_ours(one, RouteProtocol::Boot) && is_ours(one, Numbering::Spread.protocol(one)));
        assert!(!is_ours(one, Numbering::Spread.protocol(other)) && !is_ours(one, RouteProtocol::Static));
    }
}
