use std::{collections::BTreeMap, net::Ipv4Addr};

use super::*;
use crate::values::Mac;

const MAC: Mac = Mac([0x0e, 0, 0, 0, 0, 1]);
const MAC_V6: Mac = Mac([0x0e, 0, 0, 0, 0, 6]);

fn vxlan(options: VxlanOptions) -> Box<dyn Backend> {
    Box::new(Vxlan { options, macs: BTreeMap::from([(Family::V4, MAC)]) })
}

/// With the methods that all backends have.
fn host_gw() -> Box<dyn Backend> {
    Box::new(HostGw)
}

fn alloc() -> Box<dyn Backend> {
    Box::new(Alloc)
}

fn eth0(mtu: u32) -> ExternalInterface {
    ExternalInterface::eth0(2, mtu, 1)
}

fn dual(mtu: u32) -> ExternalInterface {
    ExternalInterface { address_v6: Some("2001:db8::1".parse().unwrap()), ..eth0(mtu) }
}

fn six(mtu: u32) -> ExternalInterface {
    ExternalInterface { address: Ipv4Addr::UNSPECIFIED, ..dual(mtu) }
}

#[test]
fn leases_say_what_upstreams_say() {
    let json = |backend: &dyn Backend| backend.attrs(public(&eth0(1500))).to_json();
    assert_eq!(json(&HostGw), r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}"#);
    assert_eq!(json(&Alloc), r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#);
    assert_eq!(
        json(&*vxlan(VxlanOptions { vni: 7, ..VxlanOptions::default() })),
        r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"0e:00:00:00:00:01"}}"#
    );
}

#[test]
fn leases_of_ipv6_too() {
    let of = |external: &ExternalInterface, families: &[(Family, Mac)]| {
        let macs = families.iter().copied().collect();
        let backend = Vxlan { options: VxlanOptions::default(), macs };
        backend.attrs(public(external)).to_json()
    };
    let (v4, v6) = ((Family::V4, MAC), (Family::V6, MAC_V6));
    assert_eq!(
        of(&dual(1500), &[v4, v6]),
        r#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:01"},"BackendV6Data":{"VNI":1,"VtepMAC":"0e:00:00:00:00:06"}}"#
    );
    assert_eq!(
        of(&six(1500), &[v6]),
        r#"{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"0e:00:00:00:00:06"}}"#
    );
    assert_eq!(
        host_gw().attrs(public(&dual(1500))).to_json(),
        r#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"host-gw"}"#
    );
}

fn public(external: &ExternalInterface) -> NodeAddress {
    external.addresses().map(|(_, address)| address).collect()
}

#[test]
fn pods_get_the_mtu_of_the_way() {
    let with = |mtu| vxlan(VxlanOptions { mtu, ..VxlanOptions::default() });
    assert_eq!(with(None).pod_mtu(&eth0(1500)), 1450);
    assert_eq!(with(Some(1400)).pod_mtu(&eth0(1500)), 1350);
    assert_eq!(with(Some(9000)).pod_mtu(&eth0(1500)), 1450, "more than the underlay carries");
    assert_eq!(with(None).pod_mtu(&dual(1500)), 1450, "upstream's, which IPv4 can use");
    assert_eq!(with(None).pod_mtu(&six(1500)), 1430);
    assert_eq!(with(Some(1400)).pod_mtu(&six(1500)), 1330);
    assert_eq!(host_gw().pod_mtu(&dual(1500)), 1500);
    assert_eq!(alloc().pod_mtu(&eth0(9000)), 9000);
}

#[test]
fn the_devices_have_the_options() {
    let options =
        VxlanOptions { vni: 7, port: Some(4789), gbp: true, learning: true, ..VxlanOptions::default() };
    let backend = Vxlan { options, macs: Family::BOTH.map(|family| (family, MAC)).into() };
    let device = backend.device(Family::V4, &dual(1500)).unwrap();
    assert_eq!((device.name.as_str(), device.port, device.mtu), ("flannel.7", 4789, 1450));
    assert!(device.gbp && device.learning);
    assert_eq!((device.underlay_ifindex, device.local), (2, Ipv4Addr::new(192, 0, 2, 1).into()));
    let device = backend.device(Family::V6, &dual(1500)).unwrap();
    assert_eq!((device.name.as_str(), device.port, device.mtu), ("flannel-v6.7", 4789, 1430));
    assert_eq!((device.local.to_string().as_str(), device.family()), ("2001:db8::1", Family::V6));
    assert_eq!(backend.device(Family::V6, &eth0(1500)), None);
    assert_eq!(host_gw().device(Family::V4, &eth0(1500)), None);
}

#[test]
fn only_host_gw_minds_another_public_address() {
    let other = NodeAddress { v4: Some(Ipv4Addr::new(203, 0, 113, 9)), v6: None };
    let error = host_gw().check(&eth0(1500), other).unwrap_err().to_string();
    let upstreams = "your PublicIP differs from interface IP, meaning that probably you're on a NAT, which is \
                     not supported by host-gw backend";
    assert!(error.starts_with(upstreams), "{error}");
    assert!(
        error.contains("203.0.113.9") && error.contains("192.0.2.1") && error.contains("drop --public-ip,")
    );
    let other_v6 = NodeAddress { v6: Some("2001:db8::9".parse().unwrap()), ..public(&dual(1500)) };
    let error = host_gw().check(&dual(1500), other_v6).unwrap_err().to_string();
    assert!(error.contains("PublicIPv6 2001:db8::9") && error.contains("--public-ipv6"), "{error}");
    assert_eq!(host_gw().check(&dual(1500), public(&dual(1500))), Ok(()));
    assert_eq!(vxlan(VxlanOptions::default()).check(&eth0(1500), other), Ok(()));
    assert_eq!(alloc().check(&eth0(1500), other), Ok(()));
}

#[test]
fn ipv6_needs_1280_bytes() {
    let backend = vxlan(VxlanOptions::default());
    assert_eq!(backend.check(&dual(1350), public(&dual(1350))), Ok(()));
    let error = backend.check(&dual(1349), public(&dual(1349))).unwrap_err().to_string();
    assert!(error.starts_with("the MTU of eth0, 1349, leaves 1279 bytes"), "{error}");
    assert!(error.contains("raise it to 1350"), "{error}");
    assert_eq!(backend.check(&eth0(1349), public(&eth0(1349))), Ok(()), "IPv4 does not");
}

#[test]
fn what_the_programs_cannot_carry_says_why() {
    let why = |options| vxlan(options).kernel_only();
    assert_eq!(why(VxlanOptions::default()), None);
    assert!(why(VxlanOptions { gbp: true, ..VxlanOptions::default() }).unwrap().contains("GBP"));
    assert!(why(VxlanOptions { learning: true, ..VxlanOptions::default() }).unwrap().contains("Learning"));
    assert!(host_gw().kernel_only().is_none() && alloc().kernel_only().is_some());
}
