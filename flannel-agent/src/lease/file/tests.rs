use std::{fs, time::Duration};

use proptest::prelude::*;
use tokio::time::timeout;

use crate::values::Family;

use super::{
    cluster::{mac_of_v4, mac_of_v6},
    *,
};

const TWO: &str = "
network:
  Network: 10.244.0.0/16
  Backend: { Type: vxlan, VNI: 7 }
nodes:
- { name: a, publicIP: 192.0.2.1, subnet: 10.244.1.0/24 }
- name: b
  publicIP: 192.0.2.2
  subnet: 10.244.2.0/24
  mac: 02:42:10:20:30:40
";

fn leases(text: &str) -> Vec<String> {
    let cluster = Cluster::parse(text).unwrap();
    cluster
        .nodes
        .iter()
        .map(|node| format!("{} {} {}", node.name, node.lease.subnet, node.lease.attrs.to_json()))
        .collect()
}

#[test]
fn nodes_of_yaml_and_json_are_leases_as_etcd_has_them() {
    let expected = [
        r#"a 10.244.1.0/24 {"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"0e:04:0a:f4:01:00"}}"#,
        r#"b 10.244.2.0/24 {"PublicIP":"192.0.2.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"02:42:10:20:30:40"}}"#,
    ];
    assert_eq!(leases(TWO), expected);
    let json = r#"{"network":{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":7}},"nodes":[
        {"name":"a","publicIP":"192.0.2.1","subnet":"10.244.1.0/24"},
        {"name":"b","publicIP":"192.0.2.2","subnet":"10.244.2.0/24","mac":"02:42:10:20:30:40"}]}"#;
    assert_eq!(leases(json), expected);
    assert_eq!(
        leases(&TWO.replace("vxlan, VNI: 7", "host-gw"))[0],
        r#"a 10.244.1.0/24 {"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}"#
    );
}

#[test]
fn both_families() {
    let dual = "
network: { Network: 10.244.0.0/16, EnableIPv6: true, IPv6Network: 'fd00:10::/48', Backend: { Type: vxlan } }
nodes:
- { name: a, publicIP: 192.0.2.1, subnet: 10.244.1.0/24, publicIPv6: '2001:db8::1', ipv6Subnet: 'fd00:10:0:1::/64' }
";
    assert_eq!(
        leases(dual),
        [
            r#"a 10.244.1.0/24&fd00:10:0:1::/64 {"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:04:0a:f4:01:00"},"BackendV6Data":{"VNI":1,"VtepMAC":"0e:06:00:00:00:01"}}"#
        ]
    );
    let six = dual
        .replace("Network: 10.244.0.0/16, ", "EnableIPv4: false, ")
        .replace("subnet: 10.244.1.0/24, ", "");
    assert_eq!(
        leases(&six),
        [
            r#"a fd00:10:0:1::/64 {"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"0e:06:00:00:00:01"}}"#
        ]
    );
}

#[test]
fn what_is_wrong_is_named() {
    for (text, part) in [
        (String::new(), ""),
        (TWO.replace("nodes:", "node:"), "node"),
        (TWO.replace("publicIP: 192.0.2.1", "public: 192.0.2.1"), "public"),
        (TWO.replace("Network: 10.244.0.0/16", "Network: 10.244.0.0"), "network: "),
        (
            TWO.replace("publicIP: 192.0.2.1", "publicIP: 192.0.2"),
            "node a: publicIP: \"192.0.2\" is no address",
        ),
        (TWO.replace("publicIP: 192.0.2.1, ", ""), "node a: publicIP: missing"),
        (TWO.replace(", subnet: 10.244.1.0/24", ""), "node a: subnet: missing"),
        (TWO.replace("10.244.1.0/24", "10.244.1.1/24"), "node a: subnet: \"10.244.1.1/24\" is no subnet"),
        (
            TWO.replace("10.244.1.0/24", "10.245.1.0/24"),
            "node a: subnet: 10.245.1.0/24 is not in Network 10.244.0.0/16",
        ),
        (TWO.replace("10.244.1.0/24", "10.244.2.128/25"), "node a: subnet: overlaps that of node b"),
        (TWO.replace("name: b", "name: a"), "node a: name: node a has the same"),
        (TWO.replace("192.0.2.2", "192.0.2.1"), "node b: publicIP: node a has the same"),
        (TWO.replace("02:42:10:20:30:40", "0e:04:0a:f4:01:00"), "node b: mac: node a has the same"),
        (
            TWO.replace("02:42:10:20:30:40", "01:00:5e:00:00:01"),
            "node b: mac: 01:00:5e:00:00:01 is no address of one device",
        ),
        (TWO.replace("02:42:10:20:30:40", "02:42"), "02:42"),
        (TWO.replace("name: b", "name: ''"), "name: empty"),
        (
            TWO.replace("mac: 02", "ipv6Subnet: 'fd00::/64'\n  mac: 02"),
            "node b: ipv6Subnet: the network has no IPv6",
        ),
    ] {
        let error = Cluster::parse(&text).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn macs_follow_from_subnets() {
    let v4 = |text: &str| mac_of_v4(text.parse().unwrap()).to_string();
    let v6 = |text: &str| mac_of_v6(text.parse().unwrap()).to_string();
    assert_eq!(v4("10.244.7.128/25"), "0e:04:0a:f4:07:80");
    assert_eq!(v6("fd00:10:244:29::/64"), "0e:06:02:44:00:29");
    assert_eq!(v6("fd00:10:244:2900::/56"), "0e:06:10:02:44:29");
    assert_eq!(v6("fd00::1:2/128"), "0e:06:00:01:00:02");
    assert!(mac_of_v6("::/0".parse().unwrap()).is_of_one_device());
}

/// A store on a file with this content, for the node `name`.
fn store(text: &str, name: &str) -> (tempfile::TempDir, FileStore) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nodes.yaml");
    fs::write(&path, text).unwrap();
    (dir, FileStore::open(path, Some(name.to_owned())))
}

const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.expect("in time")
}

fn peers(event: LeaseEvent) -> Vec<String> {
    let LeaseEvent::Snapshot(leases) = event else { panic!("{event:?}") };
    leases.iter().map(|lease| format!("{} {}", lease.subnet, lease.attrs.public_ip)).collect()
}

#[tokio::test]
async fn peers_follow_the_file_and_garbage_changes_nothing() {
    let (dir, store) = store(TWO, "a");
    let path = dir.path().join("nodes.yaml");
    let this = soon(store.this_node()).await.unwrap();
    assert_eq!(this.public_ip.unwrap().to_string(), "192.0.2.1");
    assert!(this.settled && this.published.unwrap().vxlan(Family::V4).unwrap().vtep_mac.is_some());
    let config = soon(store.network_config()).await.unwrap();
    let attrs = LeaseAttrs::plain_v4("192.0.2.1".parse().unwrap(), "vxlan");
    let own = soon(store.acquire(&config, &attrs, None.into())).await.unwrap();
    assert_eq!(own.subnet().to_string(), "10.244.1.0/24");
    let mut watch = store.watch(&own, Vec::new());
    assert_eq!(peers(soon(watch.next()).await), ["10.244.2.0/24 192.0.2.2"]);

    let mut trouble = store.trouble();
    for garbage in ["", "{", "network: {}\nnodes: []", &TWO[..TWO.len() - 30], "\u{0}"] {
        fs::write(&path, garbage).unwrap();
        soon(trouble.wait_for(Option::is_some)).await.unwrap();
        assert!(timeout(Duration::from_millis(10), watch.next()).await.is_err(), "{garbage}");
        fs::write(&path, TWO).unwrap();
        soon(trouble.wait_for(Option::is_none)).await.unwrap();
        assert_eq!(peers(soon(watch.next()).await), ["10.244.2.0/24 192.0.2.2"]);
    }
    fs::remove_file(&path).unwrap();
    soon(trouble.wait_for(Option::is_some)).await.unwrap();

    let three = format!("{TWO}- {{ name: c, publicIP: 192.0.2.3, subnet: 10.244.3.0/24 }}\n");
    fs::write(dir.path().join("new"), three).unwrap();
    fs::rename(dir.path().join("new"), &path).unwrap();
    assert_eq!(peers(soon(watch.next()).await), ["10.244.2.0/24 192.0.2.2", "10.244.3.0/24 192.0.2.3"]);
}

#[tokio::test]
async fn what_the_file_says_of_this_node_is_followed() {
    let (dir, store) = store(TWO, "a");
    let path = dir.path().join("nodes.yaml");
    let own = OwnNode(soon(store.own_node()).await.unwrap());
    let mut keeper = store.keep(own);
    // Gone may be a slip.
    fs::write(&path, TWO.replace("name: a", "name: x")).unwrap();
    assert!(timeout(Duration::from_secs(2), keeper.ended()).await.is_err());
    fs::write(&path, TWO.replace("10.244.1.0/24", "10.244.9.0/24")).unwrap();
    let LeaseEnd::Replaced { old, new } = soon(keeper.ended()).await else { panic!("lost") };
    assert_eq!((old.to_string(), new.to_string()), ("10.244.1.0/24".to_owned(), "10.244.9.0/24".to_owned()));
    let mut keeper = store.keep(OwnNode(soon(store.own_node()).await.unwrap()));
    fs::write(&path, TWO.replace("10.244.1.0/24 }", "10.244.9.0/24, mac: 0e:00:00:00:00:09 }")).unwrap();
    let LeaseEnd::Replaced { old, new } = soon(keeper.ended()).await else { panic!("lost") };
    assert_eq!(old, new, "another MAC");
}

#[tokio::test]
async fn this_node_is_found_by_name_or_address() {
    let cluster = |first: &str, second: &str| {
        Cluster::parse(&TWO.replace("192.0.2.1", first).replace("192.0.2.2", second)).unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let nameless = FileStore::open(dir.path().join("absent"), None);
    let found = nameless.find(&cluster("127.0.0.9", "198.51.100.2")).unwrap();
    assert_eq!(found.unwrap().name, "a", "by its address");
    let error = nameless.find(&cluster("127.0.0.9", "127.0.0.10")).unwrap_err().to_string();
    assert!(error.contains("a, b") && error.contains("NODE_NAME"), "{error}");
    assert_eq!(nameless.find(&cluster("198.51.100.1", "198.51.100.2")).unwrap(), None);
    let host = fs::read_to_string(HOST_NAME).unwrap().trim().to_owned();
    let by_host = Cluster::parse(
        &TWO.replace("192.0.2.", "198.51.100.").replace("name: b", &format!("name: '{host}'")),
    )
    .unwrap();
    assert_eq!(nameless.find(&by_host).unwrap().unwrap().name, host);
    let named = FileStore::open(dir.path().join("absent"), Some("b".to_owned()));
    assert_eq!(
        named.find(&cluster("127.0.0.9", "198.51.100.2")).unwrap().unwrap().name,
        "b",
        "the name wins"
    );
}

#[tokio::test]
async fn a_start_waits_for_the_file_and_for_this_node() {
    let (dir, store) = store("nodes: [", "z");
    soon(store.trouble().wait_for(Option::is_some)).await.unwrap();
    assert!(timeout(Duration::from_millis(100), store.network_config()).await.is_err());
    fs::write(dir.path().join("nodes.yaml"), TWO).unwrap();
    soon(store.network_config()).await.unwrap();
    assert!(timeout(Duration::from_millis(100), store.this_node()).await.is_err());
    fs::write(dir.path().join("nodes.yaml"), TWO.replace("name: b", "name: z")).unwrap();
    assert_eq!(soon(store.this_node()).await.unwrap().public_ip.unwrap().to_string(), "192.0.2.2");
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,120}|((network|nodes|  Network|- name|  publicIP|  subnet|  mac)[: ]{1,2}['{\\[0-9a-f.:/]{0,20}\n){0,9}") {
        let _ = Cluster::parse(&text);
    }

    #[test]
    fn a_part_of_the_file_does_not_panic(end in 0..TWO.len()) {
        let _ = Cluster::parse(&TWO[..end]);
    }
}
