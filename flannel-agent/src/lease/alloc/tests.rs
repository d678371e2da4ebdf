use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::Ipv4Network;
use proptest::prelude::*;
use rand::{SeedableRng, rngs::SmallRng};

use super::*;

const ME: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const MY_MAC: Mac = Mac([0x0e, 0, 0, 0, 0, 1]);
const PEER_MAC: Mac = Mac([0x0e, 0, 0, 0, 0, 2]);

fn config(json: &str) -> NetworkConfig {
    NetworkConfig::parse(json.as_bytes()).unwrap()
}

fn small() -> NetworkConfig {
    config(r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.5.0","SubnetMax":"10.3.8.0"}"#)
}

fn dual() -> NetworkConfig {
    config(
        r#"{"EnableIPv6":true,"Network":"10.3.0.0/16","SubnetMin":"10.3.5.0","SubnetMax":"10.3.8.0",
            "IPv6Network":"fd00::/48","IPv6SubnetMin":"fd00:0:0:5::","IPv6SubnetMax":"fd00:0:0:8::"}"#,
    )
}

fn at(address: impl Into<IpAddr>) -> Holder {
    Holder { address: Some(address.into()), vtep_mac: None }
}

/// `10.3.5.0/24`, `fd00::/64`, or both with `&` between.
fn net(text: &str) -> LeaseSubnet {
    let family = |v6: bool| text.split('&').find(|part| part.contains(':') == v6);
    LeaseSubnet {
        v4: family(false).map(|text| text.parse().unwrap()),
        v6: family(true).map(|text| text.parse().unwrap()),
    }
}

fn held(subnet: &str, holder: impl Into<IpAddr>) -> Held {
    Held { subnet: net(subnet), holder: Some(at(holder)) }
}

fn of_device(subnet: &str, holder: impl Into<IpAddr>, mac: Mac) -> Held {
    Held { subnet: net(subnet), holder: Some(Holder { vtep_mac: Some(mac), ..at(holder) }) }
}

fn choose_as(
    node: Holder,
    config: &NetworkConfig,
    previous: Option<&str>,
    held: &[Held],
) -> Result<Choice, OutOfSubnets> {
    choose_knowing(node, &previous.map(net).into(), config, held)
}

fn choose_knowing(
    node: Holder,
    identity: &Identity,
    config: &NetworkConfig,
    held: &[Held],
) -> Result<Choice, OutOfSubnets> {
    choose(config, node, identity, held, &mut SmallRng::seed_from_u64(7))
}

fn choose_with(
    config: &NetworkConfig,
    previous: Option<&str>,
    held: &[Held],
) -> Result<Choice, OutOfSubnets> {
    choose_as(at(ME), config, previous, held)
}

#[test]
fn own_lease_comes_first() {
    let leases = [held("10.3.5.0/24", PEER), held("10.3.6.0/24", ME), held("10.3.7.0/24", ME)];
    let choice = choose_with(&small(), Some("10.3.8.0/24"), &leases).unwrap();
    assert_eq!((choice.subnet, choice.why, choice.release), (net("10.3.6.0/24"), Why::Own, None));
    let choice = choose_with(&small(), Some("10.3.7.0/24"), &leases).unwrap();
    assert_eq!(choice.subnet, net("10.3.7.0/24"), "of two, the one our pods have addresses of");
}

#[test]
fn own_lease_that_does_not_fit_is_released() {
    for subnet in ["10.3.4.0/24", "10.3.9.0/24", "10.3.6.0/25", "10.4.6.0/24"] {
        let choice = choose_with(&small(), Some("10.3.8.0/24"), &[held(subnet, ME)]).unwrap();
        assert_eq!((choice.subnet, choice.why), (net("10.3.8.0/24"), Why::Previous));
        assert_eq!(choice.release, Some(net(subnet)));
    }
    let choice = choose_with(&small(), Some("10.3.6.0/24"), &[held("10.3.6.0/24&fd00::/64", ME)]).unwrap();
    assert_eq!((choice.subnet, choice.why), (net("10.3.6.0/24"), Why::Previous));
}

#[test]
fn previous_subnet_only_if_free_and_fitting() {
    let refused = |choice: &Choice| choice.refused.iter().map(|(_, why)| *why).collect::<Vec<_>>();
    let choice = choose_with(&small(), Some("10.4.0.0/24"), &[]).unwrap();
    assert_eq!(refused(&choice), [PreviousRefused::Incompatible]);
    let choice = choose_with(&small(), Some("10.3.6.0/24"), &[held("10.3.6.128/25", PEER)]).unwrap();
    assert_eq!(refused(&choice), [PreviousRefused::Taken]);
    assert_eq!(choice.why, Why::Free);
    assert_ne!(choice.subnet, net("10.3.6.0/24"));
}

#[test]
fn a_lease_nobody_can_read_still_takes_its_subnet() {
    let taken = [Held { holder: None, ..held("10.3.5.0/24", PEER) }, held("10.3.6.0/23", PEER)];
    let choice = choose_with(&small(), Some("10.3.5.0/24"), &taken).unwrap();
    assert_eq!((choice.subnet, choice.why), (net("10.3.8.0/24"), Why::Free));
}

#[test]
fn out_of_subnets() {
    let error = choose_with(&small(), None, &[held("10.3.0.0/17", PEER)]).unwrap_err().to_string();
    assert_eq!(
        error,
        "out of subnets: every /24 from 10.3.5.0 to 10.3.8.0 is leased; widen Network, or raise SubnetLen"
    );
    let error = choose_with(&dual(), None, &[held("fd00::/49", PEER)]).unwrap_err().to_string();
    assert!(error.ends_with("widen IPv6Network, or raise IPv6SubnetLen"), "{error}");
}

#[test]
fn our_device_at_another_address_is_still_this_node() {
    let me = Holder { vtep_mac: Some(MY_MAC), ..at(ME) };
    let old = Ipv4Addr::new(192, 0, 2, 9);
    let leases = [of_device("10.3.6.0/24", old, MY_MAC), of_device("10.3.7.0/24", PEER, PEER_MAC)];
    let choice = choose_as(me, &small(), Some("10.3.6.0/24"), &leases).unwrap();
    assert_eq!((choice.subnet, choice.why), (net("10.3.6.0/24"), Why::Moved { from: old.into() }));
    assert_eq!(choice.release, None);

    // An address that another node had before does not make its subnet ours, nor gives it back.
    let swapped = [of_device("10.3.5.0/24", ME, PEER_MAC), leases[0]];
    let choice = choose_as(me, &small(), Some("10.3.6.0/24"), &swapped).unwrap();
    assert_eq!((choice.subnet, choice.release), (net("10.3.6.0/24"), None));
    // Nor does the next start go by the other lease that names our address.
    let after = [swapped[0], of_device("10.3.6.0/24", ME, MY_MAC)];
    let choice = choose_as(me, &small(), Some("10.3.6.0/24"), &after).unwrap();
    assert_eq!((choice.subnet, choice.why), (net("10.3.6.0/24"), Why::Own));

    // Without both, the subnet file and the MAC, it is another's.
    for (node, previous) in [
        (me, None),
        (me, Some("10.3.7.0/24")),
        (at(ME), Some("10.3.6.0/24")),
        (Holder { vtep_mac: Some(PEER_MAC), ..at(ME) }, Some("10.3.6.0/24")),
    ] {
        let choice = choose_as(node, &small(), previous, &leases).unwrap();
        assert_eq!(choice.why, Why::Free, "{node:?} {previous:?}");
        assert!(leases.iter().all(|held| held.subnet != choice.subnet));
    }
    let outside = [of_device("10.4.6.0/24", old, MY_MAC)];
    let choice = choose_as(me, &small(), Some("10.4.6.0/24"), &outside).unwrap();
    assert_eq!(choice.why, Why::Free);
}

/// A virtual address that comes from another node brings the lease in which that node published it.
#[test]
fn an_address_that_moved_here_does_not_bring_the_other_nodes_lease() {
    let virtual_ip = Ipv4Addr::new(192, 0, 2, 200);
    let me = Holder { vtep_mac: Some(MY_MAC), ..at(virtual_ip) };
    let theirs = of_device("10.3.5.0/24", virtual_ip, PEER_MAC);
    let with = |previous: Option<&str>, addresses: &[Ipv4Addr]| Identity {
        previous: previous.map(net),
        addresses: addresses.iter().copied().map(IpAddr::V4).collect(),
    };
    let choose = |node, identity: &Identity, held: &[Held]| {
        let choice = choose_knowing(node, identity, &small(), held).unwrap();
        (choice.subnet, choice.why, choice.misnamed, choice.release)
    };
    // On its first start, by its own address beside it; later by its subnet file, too.
    for identity in [with(None, &[ME]), with(Some("10.3.6.0/24"), &[]), with(Some("10.3.6.0/24"), &[ME])] {
        let (subnet, why, misnamed, release) = choose(me, &identity, &[theirs]);
        assert!(matches!(why, Why::Free | Why::Previous), "{identity:?}: {why:?}");
        assert!(subnet != theirs.subnet && release.is_none(), "{identity:?}: {subnet}");
        assert_eq!(misnamed, Some(theirs.subnet), "{identity:?}");
    }
    // Its own lease, in which another of its addresses is, it finds by either trace.
    for (mine, identity) in [
        (of_device("10.3.6.0/24", ME, MY_MAC), with(Some("10.3.6.0/24"), &[])),
        (of_device("10.3.6.0/24", ME, Mac([0x0e, 0, 0, 0, 0, 9])), with(Some("10.3.6.0/24"), &[ME])),
    ] {
        let (subnet, why, ..) = choose(me, &identity, &[theirs, mine]);
        assert_eq!((subnet, why), (mine.subnet, Why::Moved { from: ME.into() }));
    }
    // Without a tunnel there are no MACs to go by.
    let (plain, of_plain) = (at(virtual_ip), held("10.3.5.0/24", virtual_ip));
    assert_eq!(choose(plain, &with(None, &[ME]), &[of_plain]).1, Why::Free);
    let mine = held("10.3.6.0/24", ME);
    let (subnet, why, ..) = choose(plain, &with(Some("10.3.6.0/24"), &[ME]), &[of_plain, mine]);
    assert_eq!((subnet, why), (mine.subnet, Why::Moved { from: ME.into() }));
}

/// With `/run` empty and the device gone, a new MAC says nothing.
#[test]
fn a_node_that_lost_everything_but_its_address_has_its_lease_again() {
    let me = Holder { vtep_mac: Some(MY_MAC), ..at(ME) };
    let mine = of_device("10.3.6.0/24", ME, Mac([0x0e, 0, 0, 0, 0, 9]));
    let choice = choose_as(me, &small(), None, &[mine]).unwrap();
    assert_eq!((choice.subnet, choice.why, choice.misnamed), (mine.subnet, Why::Own, None));
    let choice = choose_as(me, &small(), Some("10.3.6.0/24"), &[mine]).unwrap();
    assert_eq!((choice.subnet, choice.why), (mine.subnet, Why::Own));
}

#[test]
fn nobody_is_without_an_address() {
    let nobody = Holder { address: None, vtep_mac: None };
    let taken = [Held { subnet: net("10.3.5.0/24"), holder: Some(nobody) }];
    let choice = choose_as(nobody, &small(), None, &taken).unwrap();
    assert_eq!(choice.why, Why::Free);
}

#[test]
fn dual_stack_draws_each_family_for_itself() {
    let taken = [held("10.3.5.0/24&fd00:0:0:8::/64", PEER), held("10.3.6.0/24&fd00:0:0:7::/64", PEER)];
    let taken = [taken.as_slice(), &[held("10.3.8.0/24&fd00:0:0:5::/64", PEER)]].concat();
    let choice = choose_with(&dual(), None, &taken).unwrap();
    assert_eq!((choice.subnet, choice.why), (net("10.3.7.0/24&fd00:0:0:6::/64"), Why::Free));
    let choice = choose_with(&dual(), Some("10.3.7.0/24&fd00:0:0:6::/64"), &taken).unwrap();
    assert_eq!((choice.subnet, choice.why), (net("10.3.7.0/24&fd00:0:0:6::/64"), Why::Previous));
    // A cluster that gets IPv6 keeps its pods' IPv4 addresses.
    let before = [taken.as_slice(), &[held("10.3.7.0/24", ME)]].concat();
    let choice = choose_with(&dual(), Some("10.3.7.0/24"), &before).unwrap();
    assert_eq!(
        (choice.subnet, choice.release),
        (net("10.3.7.0/24&fd00:0:0:6::/64"), Some(net("10.3.7.0/24")))
    );
    // And the other way round.
    let own = [held("10.3.7.0/24&fd00:0:0:6::/64", ME)];
    assert_eq!(choose_with(&dual(), None, &own).unwrap().why, Why::Own);
    let choice = choose_with(&small(), Some("10.3.7.0/24&fd00:0:0:6::/64"), &own).unwrap();
    assert_eq!((choice.subnet, choice.release), (net("10.3.7.0/24"), Some(own[0].subnet)));
}

/// All upstream's IPv6-only nodes have the PublicIP 0.0.0.0 and share one lease.
#[test]
fn ipv6_only_nodes_are_told_apart_by_their_ipv6_address() {
    let config = config(r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48"}"#);
    let [me, peer]: [Ipv6Addr; 2] = ["fd77::1", "fd77::2"].map(|text| text.parse().unwrap());
    let leases = [held("fd00:0:0:5::/64", peer), held("fd00:0:0:6::/64", me)];
    let choice = choose_as(at(me), &config, None, &leases).unwrap();
    assert_eq!((choice.subnet, choice.why), (net("fd00:0:0:6::/64"), Why::Own));
    let choice = choose_as(at(me), &config, None, &leases[..1]).unwrap();
    assert_eq!((choice.subnet.v4, choice.why), (None, Why::Free));
}

proptest! {
    #[test]
    fn never_overlaps_always_in_range_and_aligned(
        leases in proptest::collection::vec((any::<u16>(), 18u8..=30, any::<bool>()), 0..60),
        len in 18u8..=30, previous in proptest::option::of((any::<u16>(), 18u8..=30)), seed in any::<u64>(),
    ) {
        let within = |low: u16, len: u8| {
            let network = Ipv4Network::new((0x0a03_0000 | u32::from(low)).into(), len).unwrap();
            LeaseSubnet { v4: Some(Ipv4Network::new(network.network(), len).unwrap()), v6: None }
        };
        let config = config(&format!(r#"{{"Network":"10.3.0.0/16","SubnetLen":{len}}}"#));
        let held: Vec<Held> = leases.iter().map(|&(low, len, mine)| Held {
            subnet: within(low, len),
            holder: Some(at(if mine { ME } else { PEER })),
        }).collect();
        let previous = previous.map(|(low, len)| within(low, len));
        let rng = &mut SmallRng::seed_from_u64(seed);
        let Ok(choice) = choose(&config, at(ME), &previous.into(), &held, rng) else { return Ok(()) };
        let subnet = choice.subnet.v4.unwrap();
        prop_assert!(config.ipv4.unwrap().allows(subnet));
        prop_assert_eq!(subnet.network(), subnet.ip());
        if choice.why != Why::Own {
            for lease in held.iter().filter(|lease| Some(lease.subnet) != choice.release) {
                prop_assert!(!lease.subnet.v4.unwrap().overlaps(subnet), "{:?} {}", lease, subnet);
            }
        }
    }
}
