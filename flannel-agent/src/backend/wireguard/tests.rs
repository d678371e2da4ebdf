use super::*;
use crate::backend::LocalStack;

const PSK: &str = "aGVsbG8gd29ybGQgaGVsbG8gd29ybGQgaGVsbG8gd28=";

fn options(json: &str) -> Result<WireguardOptions, String> {
    let object = Object::parse("Backend.", json).unwrap();
    WireguardOptions::parse(&object).map_err(|error| error.to_string())
}

fn wireguard(json: &str) -> Wireguard {
    let key = keys::tests_key(1);
    Wireguard {
        options: options(json).unwrap(),
        private_key: key,
        families: Family::BOTH.into(),
        own: ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap()).into_iter().collect(),
    }
}

fn attrs(v4: &str, v6: &str, port: u16) -> LeaseAttrs {
    let address = [v4, v6].map(|text| text.parse().unwrap()).into_iter().collect();
    let data = WireguardData { public_key: keys::tests_key(2).public(), port }.written();
    LeaseAttrs {
        backend_data: data.clone(),
        backend_v6_data: data,
        ..LeaseAttrs::plain(address, "wireguard")
    }
}

#[test]
fn options_have_upstreams_defaults_and_hide_the_secret() {
    let values = |json: &str| format!("{:?}", options(json).unwrap().values());
    assert_eq!(
        values("{}"),
        "[Backend.ListenPort: 51820, Backend.ListenPortV6: 51821, Backend.MTU: unset, Backend.PSK: none, \
         Backend.PersistentKeepaliveInterval: 0, Backend.Mode: separate]"
    );
    let given = values(&format!(
        r#"{{"ListenPort":1,"ListenPortV6":2,"MTU":1400,"PSK":"{PSK}","PersistentKeepaliveInterval":25,"Mode":"auto"}}"#
    ));
    assert!(given.contains("Backend.PSK: (a secret)") && !given.contains(PSK), "{given}");
    assert!(given.contains("Backend.MTU: 1400") && given.ends_with("Backend.Mode: auto]"), "{given}");
}

#[test]
fn options_that_cannot_be_used_say_so_and_keep_the_secret() {
    for (json, start) in [
        (r#"{"ListenPort":0}"#, "Backend.ListenPort: 0 is not a UDP port"),
        (r#"{"ListenPortV6":65536}"#, "Backend.ListenPortV6: 65536 is not a UDP port"),
        (r#"{"PSK":"letmein"}"#, "Backend.PSK: (a secret) is no key: write 32 bytes"),
        (r#"{"PSK":7}"#, "Backend.PSK: expected a string"),
        (r#"{"PersistentKeepaliveInterval":65536}"#, "Backend.PersistentKeepaliveInterval: 65536 is no"),
        (r#"{"MTU":147}"#, "Backend.MTU: 147 is not an MTU"),
        (r#"{"Mode":"Auto"}"#, "Backend.Mode: \"Auto\": no valid Mode configured"),
    ] {
        let error = options(json).unwrap_err();
        assert!(error.starts_with(start) && !error.contains("letmein"), "{error}");
    }
}

#[test]
fn a_lease_says_key_and_port_as_upstreams_does() {
    let address = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap()).into_iter().collect();
    let key = keys::text(&keys::tests_key(1).public());
    let [separate, auto] =
        [r#"{}"#, r#"{"Mode":"auto"}"#].map(|json| wireguard(json).attrs(address).to_json());
    let expected = |v6| {
        format!(
            r#"{{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"wireguard","BackendData":{{"PublicKey":"{key}","Port":51820}},"BackendV6Data":{{"PublicKey":"{key}","Port":{v6}}}}}"#
        )
    };
    assert_eq!(separate, expected(51821));
    assert_eq!(auto, expected(51820), "one device has one port");
}

#[test]
fn each_mode_reaches_a_peer_at_its_address() {
    for (mode, v4, v6, family, expected) in [
        ("separate", "10.0.0.2", "2001:db8::2", Family::V4, "10.0.0.2:7"),
        ("separate", "10.0.0.2", "2001:db8::2", Family::V6, "[2001:db8::2]:7"),
        ("ipv4", "10.0.0.2", "2001:db8::2", Family::V6, "10.0.0.2:7"),
        ("ipv6", "10.0.0.2", "2001:db8::2", Family::V4, "[2001:db8::2]:7"),
        ("auto", "203.0.113.2", "2001:db8::2", Family::V6, "203.0.113.2:7"),
        ("auto", "10.0.0.2", "2001:db8::2", Family::V4, "[2001:db8::2]:7"),
        ("auto", "10.0.0.2", "fd00::2", Family::V4, "10.0.0.2:7"),
    ] {
        let backend = wireguard(&format!(r#"{{"Mode":"{mode}"}}"#));
        let endpoint = backend.endpoint(&attrs(v4, v6, 7), family);
        assert_eq!(endpoint.unwrap().to_string(), expected, "{mode} {v4} {v6} {family}");
    }
    let old = attrs("10.0.0.2", "2001:db8::2", 0);
    let endpoint = wireguard("{}").endpoint(&old, Family::V6).unwrap();
    assert_eq!(endpoint.port(), 51821, "where a lease names none, ours");
}

#[test]
fn leases_that_cannot_be_used_say_why() {
    let backend = wireguard(r#"{"Mode":"ipv6"}"#);
    let judge = |attrs: &LeaseAttrs| {
        let public_ip = attrs.address(Family::V4).unwrap();
        backend.judge(&Candidate { family: Family::V4, attrs, public_ip, on_link: false })
    };
    let good = attrs("192.0.2.2", "2001:db8::2", 51820);
    assert_eq!(judge(&good), Ok(PeerRoute::Objects));
    let without = LeaseAttrs { public_ipv6: None, ..good.clone() };
    assert_eq!(judge(&without), Err(Skip::NoAddress(Family::V6)));
    for (data, says) in [
        (None, "BackendData: absent"),
        (Some("7"), "BackendData: expected an object"),
        (Some("{}"), "BackendData.PublicKey: absent"),
        (Some(r#"{"PublicKey":"short"}"#), "BackendData.PublicKey: expected a key"),
        (Some(&format!(r#"{{"PublicKey":"{}"}}"#, keys::text(&backend.private_key.public()))), "our own"),
    ] {
        let backend_data = data.map(|text| RawJson::parse(text).unwrap());
        let error = judge(&LeaseAttrs { backend_data, ..good.clone() }).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn devices_carry_what_their_mode_says() {
    let stack = |family| {
        let (network, subnet, address) = match family {
            Family::V4 => ("10.244.0.0/16", "10.244.1.0/24", "192.0.2.1"),
            Family::V6 => ("fd00:10::/48", "fd00:10:0:1::/64", "2001:db8::1"),
        };
        let address = address.parse().unwrap();
        LocalStack {
            network: network.parse().unwrap(),
            subnet: subnet.parse().unwrap(),
            public_ip: address,
            address,
            device: None,
        }
    };
    let stacks: Stacks = Family::BOTH.map(|family| (family, stack(family))).into();
    let external = ExternalInterface::eth0(2, 1500, 1);
    let shown = |json: &str| -> Vec<String> {
        wireguard(json).objects(&external, &stacks).values().map(ToString::to_string).collect()
    };
    let separate = shown("{}");
    assert_eq!(separate.len(), 4, "{separate:?}");
    assert!(
        separate[0].starts_with(
            "device flannel-wg (WireGuard, MTU 1420, 10.244.1.0/32), listening at UDP port 51820"
        )
    );
    assert!(separate[1].starts_with(
        "device flannel-wg-v6 (WireGuard, MTU 1420, fd00:10:0:1::/128), listening at UDP port 51821"
    ));
    let one = shown(r#"{"Mode":"ipv4"}"#);
    assert_eq!(one.len(), 3, "{one:?}");
    assert!(one[0].starts_with("device flannel-wg (WireGuard, MTU 1420, 10.244.1.0/32, fd00:10:0:1::/128)"));
    assert_eq!(one[2], "the route to fd00:10::/48 on flannel-wg");
}
