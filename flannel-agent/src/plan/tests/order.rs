//! The order of changes, and their sentences.

use super::*;

#[test]
fn changes_come_in_an_order_that_loses_nothing_and_read_as_sentences() {
    let old = planned(FastPath::All, &leases([lease("10.2.0.0/24", "192.0.2.2", mac(2))])).state;
    let new = planned(FastPath::All, &leases([lease("10.3.0.0/24", "198.51.100.3", mac(3))])).state;
    let sentences: Vec<_> = delta(&new, &old).iter().map(Change::to_string).collect();
    assert_eq!(
        sentences,
        [
            "forward frames for 0e:00:00:00:00:03 to 198.51.100.3",
            "resolve neighbour 10.3.0.0 to 0e:00:00:00:00:03",
            "route 10.3.0.0/24 via 10.3.0.0",
            "send packets for 10.3.0.0/24 to 198.51.100.3 by interface 2, next hop 192.0.2.254, MTU 1500",
            "accept packets of 10.3.0.0/24 from 198.51.100.3",
            "accept no packets from 192.0.2.2",
            "forget the route to 10.2.0.0/24",
            "delete the route to 10.2.0.0/24 via 10.2.0.0",
            "delete neighbour 10.2.0.0",
            "stop forwarding frames for 0e:00:00:00:00:02 to 192.0.2.2",
        ]
    );
    let from_nothing: Vec<_> = delta(&new, &State::default()).iter().map(Change::to_string).collect();
    assert_eq!(
        from_nothing[0],
        "set up device flannel.1 (VNI 1, port 8472, local address 192.0.2.1 on interface 2, \
         MAC 0e:00:00:00:00:ff, MTU 1450)"
    );
    assert_eq!(from_nothing[1], "give the VXLAN device address 10.1.0.0/32");
    let at = |sentence: &str| from_nothing.iter().position(|change| change == sentence).unwrap();
    let config = at("configure the programs for fast path all of IPv4");
    assert_eq!(
        config,
        at("let pods keep their address towards 10.0.0.0/8, the cluster's network") + 1,
        "the programs act when they know all"
    );
    assert!(from_nothing[config + 1].starts_with("attach "));
    assert_eq!(from_nothing.last().unwrap(), "attach from_pod to interface 12");
    let to_nothing: Vec<_> = delta(&State::default(), &new).iter().map(Change::to_string).collect();
    assert_eq!(to_nothing.last().unwrap(), "delete the VXLAN device for IPv4");
}

#[test]
fn a_new_device_or_mac_gets_back_what_was_on_the_old_one() {
    let state = planned(FastPath::Off, &leases([lease("10.2.0.0/24", "192.0.2.2", mac(2))])).state;
    let mut other_mac = state.clone();
    other_mac.devices.get_mut(&Family::V4).unwrap().mac = mac(9);
    let changes = delta(&state, &other_mac);
    assert!(matches!(changes[..], [Change::PutDevice(_), Change::PutNeighbour { .. }]), "{changes:?}");
    let mut other_port = state.clone();
    other_port.devices.get_mut(&Family::V4).unwrap().port = 4789;
    assert_eq!(delta(&state, &other_port).len(), 5);
    let mut other_gbp = state.clone();
    other_gbp.devices.get_mut(&Family::V4).unwrap().gbp = true;
    assert_eq!(delta(&state, &other_gbp).len(), 5);
    let changed_in_place: [fn(&mut VxlanDevice); 2] =
        [|device| device.mtu = 1400, |device| device.learning = true];
    for change in changed_in_place {
        let mut other = state.clone();
        change(other.devices.get_mut(&Family::V4).unwrap());
        assert_eq!(delta(&state, &other).len(), 1);
    }
}
