//! What comes from outside, as any bytes: the inputs of a fuzzer, one function for each kind of them.
//!
//! `tests/fuzz` runs them under libFuzzer; a test here runs the inputs that it keeps. Each holds what it reads to promises
//! of its own, beside that nothing panics.

#[cfg(test)]
mod tests;

use crate::{
    cni,
    config::NetworkConfig,
    control, lease,
    lease::{
        LeaseAttrs,
        file::Cluster,
        wire::{lease_key, parse_lease_key},
    },
    masq,
    subnet_file::Previous,
    tunnel,
    values::Family,
};

/// One kind of input.
pub struct Target {
    /// Its name, which is also that of its corpus.
    pub name: &'static str,
    /// What reads it.
    pub run: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: &'static [&'static str],
}

/// All kinds.
pub const TARGETS: &[Target] = &[
    Target { name: "network-config", run: network_config, seeds: NETWORK_CONFIGS },
    Target { name: "lease", run: lease_of_etcd, seeds: LEASES },
    Target { name: "node", run: lease::kubernetes::fuzz::node, seeds: NODES },
    Target { name: "lease-file", run: lease_file, seeds: LEASE_FILES },
    Target { name: "subnet-env", run: subnet_env, seeds: SUBNET_ENVS },
    Target { name: "cni", run: cni::fuzz::inputs, seeds: CNI },
    Target { name: "iptables-save", run: masq::fuzz::iptables_save, seeds: IPTABLES },
    Target { name: "nft-list", run: masq::fuzz::nft_list, seeds: NFT },
    Target { name: "tunnel-in", run: tunnel::fuzz::from_nodes, seeds: &[] },
    Target { name: "tunnel-out", run: tunnel::fuzz::from_pods, seeds: &[] },
    Target { name: "control-socket", run: control::fuzz::client, seeds: REQUESTS },
];

const NETWORK_CONFIGS: &[&str] = &[
    r#"{"Network":"10.244.0.0/16","SubnetLen":24,"SubnetMin":"10.244.1.0","SubnetMax":"10.244.9.0","Backend":{"Type":"vxlan","VNI":1,"Port":8472,"DirectRouting":true,"MTU":1400}}"#,
    r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10::/32","IPv6SubnetLen":64,"EnableNFTables":true,"Backend":{"Type":"host-gw"}}"#,
    r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard","Mode":"separate","PSK":"","PersistentKeepaliveInterval":25}}"#,
    r#"{"Network":"10.244.0.0/16","Backend":{"Type":"extension","SubnetAddCommand":"echo $SUBNET","Shell":true}}"#,
    r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp","Port":8285}}"#,
    r#"{"Network":"10.244.0.0/16","Backend":{"Type":"ipsec","UDPEncap":true,"ESPProposal":"aes128gcm16-prfsha256-ecp256"}}"#,
];

const LEASES: &[&str] = &[
    "/coreos.com/network/subnets/10.244.1.0-24\n{\"PublicIP\":\"192.0.2.1\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\"BackendData\":{\"VNI\":1,\"VtepMAC\":\"5e:60:bd:18:41:f3\"}}",
    "/a/subnets/10.244.1.0-24&fd00:10:0:1::-64\n{\"PublicIP\":\"192.0.2.1\",\"PublicIPv6\":\"2001:db8::1\",\"BackendType\":\"vxlan\",\"BackendData\":{\"VNI\":1,\"VtepMAC\":\"5e:60:bd:18:41:f3\"},\"BackendV6Data\":{\"VNI\":1,\"VtepMAC\":\"5e:60:bd:18:41:f4\"}}",
    "10.244.1.0-24\n{\"PublicIP\":\"192.0.2.1\",\"BackendType\":\"host-gw\"}",
];

const NODES: &[&str] = &[
    r#"{"metadata":{"name":"a","uid":"1","resourceVersion":"7","annotations":{"flannel.alpha.coreos.com/kube-subnet-manager":"true","flannel.alpha.coreos.com/backend-type":"vxlan","flannel.alpha.coreos.com/backend-data":"{\"VNI\":1,\"VtepMAC\":\"5e:60:bd:18:41:f3\"}","flannel.alpha.coreos.com/public-ip":"192.0.2.1"}},"spec":{"podCIDR":"10.244.1.0/24","podCIDRs":["10.244.1.0/24"]}}"#,
    r#"{"metadata":{"name":"b","annotations":{"flannel.alpha.coreos.com/kube-subnet-manager":"true","flannel.alpha.coreos.com/backend-type":"host-gw","flannel.alpha.coreos.com/public-ip-overwrite":"198.51.100.1","flannel.alpha.coreos.com/public-ip":"192.0.2.1","flannel.alpha.coreos.com/public-ipv6":"2001:db8::1"}},"spec":{"podCIDRs":["10.244.1.0/24","fd00:10:0:1::/64"]}}"#,
];

const LEASE_FILES: &[&str] = &[
    "network:\n  Network: 10.244.0.0/16\n  Backend: { Type: vxlan }\nnodes:\n- name: node1\n  publicIP: 192.0.2.1\n  subnet: 10.244.1.0/24\n- { name: node2, publicIP: 192.0.2.2, subnet: 10.244.2.0/24, mac: 0e:00:00:00:00:02 }\n",
    r#"{"network":{"EnableIPv6":true,"Network":"10.244.0.0/16","IPv6Network":"fd00:10::/32","Backend":{"Type":"wireguard"}},"nodes":[{"name":"a","publicIP":"192.0.2.1","publicIPv6":"2001:db8::1","subnet":"10.244.1.0/24","ipv6Subnet":"fd00:10:0:1::/64","backendData":{"PublicKey":"x"}}]}"#,
];

const SUBNET_ENVS: &[&str] = &[
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
    "FLANNEL_NETWORK=10.244.0.0/16,10.245.0.0/16\nFLANNEL_IPV6_NETWORK=fd00:10::/32\nexport FLANNEL_IPV6_SUBNET='fd00:10:0:1::1/64' # ours\n",
];

const CNI: &[&str] = &[
    "{\"cniVersion\":\"1.1.0\",\"name\":\"cbr0\",\"type\":\"flannel\",\"delegate\":{\"hairpinMode\":true,\"isDefaultGateway\":true},\"ipam\":{\"routes\":[{\"dst\":\"10.96.0.0/12\",\"gw\":\"10.1.17.20\",\"mtu\":1400}]},\"runtimeConfig\":{\"portMappings\":[]}}\0FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n\0{\"code\":11,\"msg\":\"later\",\"details\":\"x\"}",
    "{\"name\":\"n\",\"cni.dev/valid-attachments\":[{\"containerID\":\"a\",\"ifname\":\"eth0\"}]}\0FLANNEL_IPV6_NETWORK=fd00:10::/32\nFLANNEL_IPV6_SUBNET=fd00:10:0:1::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n\0{}",
];

const IPTABLES: &[&str] = &[
    "*nat\n:POSTROUTING ACCEPT [0:0]\n:FLANNEL-POSTRTG - [0:0]\n-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully\nCOMMIT\n",
    "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp\n-A PREROUTING -p udp -m multiport --dports 69,5060 -j CT --timeout \"a b\"\nCOMMIT\n*filter\n:FORWARD ACCEPT [0:0]\n:FLANNEL-FWD - [0:0]\n-A FORWARD -j FLANNEL-FWD\n-A FLANNEL-FWD -d 10.244.0.0/16 -j ACCEPT\nCOMMIT\n",
];

const NFT: &[&str] = &[
    r#"{"nftables":[{"metainfo":{"json_schema_version":1}},{"table":{"family":"ip","name":"flannel-ipv4"}},{"chain":{"family":"ip","table":"flannel-ipv4","name":"postrtg","type":"nat","hook":"postrouting","prio":100,"policy":"accept"}},{"rule":{"chain":"postrtg","expr":[{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"saddr"}},"right":{"prefix":{"addr":"10.244.0.0","len":16}}}},{"counter":{"packets":1,"bytes":2}},{"masquerade":{"flags":["fully-random"]}}]}}]}"#,
];

const REQUESTS: &[&str] = &[
    "GET /v1/snapshot HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /v1/trace?by=1 HTTP/1.1\r\nhost: a\r\n\r\nGET /v1/peers HTTP/1.1\r\nhost: a\r\n\r\n",
    "POST /v1/drift HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
];

fn network_config(bytes: &[u8]) {
    let Ok(config) = NetworkConfig::parse(bytes) else { return };
    assert!(config.changes_to(&config).is_empty(), "it differs from itself");
    assert!(!config.pools().is_empty(), "a network of no family");
    for (family, pool) in config.pools() {
        assert_eq!(Family::of(pool.network().ip()), family);
    }
    assert!(!config.backend_kind().is_empty());
    let _ = config.built();
}

/// The key in the first line, and the value behind it.
fn lease_of_etcd(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let [key, value] = [(); 2].map(|()| parts.next().unwrap_or_default());
    if let Ok(subnet) = parse_lease_key(&String::from_utf8_lossy(key)) {
        // An address of the mapped range has dots in its text, which no key can have.
        if subnet.v6.is_none_or(|v6| v6.ip().to_ipv4_mapped().is_none()) {
            assert_eq!(parse_lease_key(&lease_key(&subnet)), Ok(subnet));
        }
    }
    if let Ok(attrs) = LeaseAttrs::from_json(value) {
        let _ = (attrs.vxlan(Family::V4), attrs.vxlan(Family::V6));
        let text = attrs.to_json();
        assert_eq!(LeaseAttrs::from_json(text.as_bytes()).ok().as_ref(), Some(&attrs), "{text}");
    }
}

fn lease_file(bytes: &[u8]) {
    let Ok(cluster) = Cluster::parse(&String::from_utf8_lossy(bytes)) else { return };
    for node in &cluster.nodes {
        assert!(cluster.node(&node.name).is_some(), "{} is not found", node.name);
    }
}

fn subnet_env(bytes: &[u8]) {
    let previous = Previous::parse(&String::from_utf8_lossy(bytes));
    let _ = (previous.networks(), previous.lease());
}
