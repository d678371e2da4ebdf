use std::path::Path;

use proptest::prelude::*;
use serde_json::json;

use super::*;

mod calls;

const V4: &str =
    "\nFLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";
const V4_TWO_NETWORKS: &str = "FLANNEL_NETWORK=10.1.0.0/16,192.168.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n\
                               FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";
const V6: &str =
    "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";
const DUAL: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_IPV6_NETWORK=fc00::/48\n\
                    FLANNEL_IPV6_SUBNET=fc00::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";

fn delegate_of(conf: &Value, env: &str) -> Value {
    let conf = NetConf::parse(&conf.to_string()).unwrap();
    Value::Object(delegate_config(&conf, &SubnetEnv::parse(env).unwrap()).unwrap())
}

fn refusal(conf: &str, env: &str) -> CniError {
    NetConf::parse(conf).and_then(|conf| delegate_config(&conf, &SubnetEnv::parse(env).unwrap())).unwrap_err()
}

/// What the delegate of the plainest configuration is told, with these ranges and routes.
fn plain(ranges: Value, routes: Value) -> Value {
    json!({
        "name": "cni-flannel", "type": "bridge", "ipMasq": false, "isGateway": true, "mtu": 1472,
        "ipam": { "type": "host-local", "ranges": ranges, "routes": routes },
    })
}

#[test]
fn delegate_of_the_plainest_configuration() {
    let conf = json!({ "name": "cni-flannel", "type": "flannel" });
    let (v4, v6) = (json!([{ "subnet": "10.1.17.0/24" }]), json!([{ "subnet": "fc00::/64" }]));
    let (to_v4, to_v6) = (json!({ "dst": "10.1.0.0/16" }), json!({ "dst": "fc00::/48" }));
    let second = json!({ "dst": "192.168.0.0/16" });
    for (env, expected) in [
        (V4, plain(json!([v4]), json!([to_v4]))),
        (V4_TWO_NETWORKS, plain(json!([v4]), json!([to_v4, second]))),
        (V6, plain(json!([v6]), json!([to_v6]))),
        (DUAL, plain(json!([v4, v6]), json!([to_v4, to_v6]))),
    ] {
        assert_eq!(delegate_of(&conf, env), expected, "{env}");
    }
}

#[test]
fn delegate_of_kube_flannels_configuration() {
    let conf = json!({
        "name": "cbr0", "cniVersion": "0.3.1", "type": "flannel",
        "delegate": { "hairpinMode": true, "isDefaultGateway": true },
    });
    let env = V4.replace("10.1.17.1", "10.244.5.1").replace("10.1.0.0", "10.244.0.0").replace("1472", "1450");
    let mut sorted: Vec<_> = delegate_of(&conf, &env).as_object().unwrap().clone().into_iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = json!({
        "cniVersion": "0.3.1", "hairpinMode": true, "ipMasq": false,
        "ipam": {
            "ranges": [[{ "subnet": "10.244.5.0/24" }]],
            "routes": [{ "dst": "10.244.0.0/16" }],
            "type": "host-local",
        },
        "isDefaultGateway": true, "isGateway": true, "mtu": 1450, "name": "cbr0", "type": "bridge",
    });
    assert_eq!(Value::Object(sorted.into_iter().collect()), expected);
}

#[test]
fn delegate_ipam_completes_what_is_given() {
    let routes = json!([{ "dst": "10.96.0.0/12" }, { "dst": "192.168.244.0/24", "gw": "10.1.17.20" }]);
    let (v4, v6) = (json!([{ "subnet": "10.1.17.0/24" }]), json!([{ "subnet": "fc00::/64" }]));
    let (to_v4, to_v6) = (json!({ "dst": "10.1.0.0/16" }), json!({ "dst": "fc00::/48" }));
    for kind in [Some("my-ipam"), None] {
        let mut given = json!({ "unknown-param": "unknown-value", "routes": routes });
        if let Some(kind) = kind {
            given["type"] = kind.into();
        }
        for (env, ranges, further) in [
            (V4, json!([v4]), vec![&to_v4]),
            (V6, json!([v6]), vec![&to_v6]),
            (DUAL, json!([v4, v6]), vec![&to_v4, &to_v6]),
        ] {
            let conf = json!({ "name": "n", "ipam": given });
            let all: Vec<&Value> = routes.as_array().unwrap().iter().chain(further).collect();
            let expected = json!({
                "type": kind.unwrap_or("host-local"), "unknown-param": "unknown-value", "ranges": ranges, "routes": all,
            });
            assert_eq!(delegate_of(&conf, env)["ipam"], expected, "{env}");
        }
    }
    let none = json!({ "name": "n", "ipam": { "type": "host-local", "routes": null } });
    let two = json!({
        "type": "host-local", "ranges": [v4], "routes": [{ "dst": "10.1.0.0/16" }, { "dst": "192.168.0.0/16" }],
    });
    assert_eq!(delegate_of(&none, V4_TWO_NETWORKS)["ipam"], two);
}

#[test]
fn delegate_routes_keep_the_specifications_fields() {
    let route = json!({
        "dst": "fd00::1/64", "gw": "fd00::2", "mtu": 1400, "advmss": 0, "priority": 7, "table": 0, "scope": 253, "x": 1,
    });
    let conf = json!({ "name": "n", "ipam": { "routes": [route] } });
    let expected = json!({
        "dst": "fd00::1/64", "gw": "fd00::2", "mtu": 1400, "priority": 7, "table": 0, "scope": 253,
    });
    assert_eq!(delegate_of(&conf, V4)["ipam"]["routes"][0], expected);
    for routes in ["1", "{}", "[1]", "[{}]", r#"[{"dst":"10.0.0.1"}]"#, r#"[{"dst":"10.0.0.0/8","gw":"x"}]"#]
    {
        let error = refusal(&format!(r#"{{"name":"n","ipam":{{"routes":{routes}}}}}"#), V4);
        assert!(error.code() == 7 && error.to_string().contains("ipam.routes"), "{error}");
    }
}

#[test]
fn delegate_keeps_what_it_was_given() {
    let given = json!({
        "type": "ptp", "mtu": 9000, "ipMasq": true, "x": [1, 2.5, 18446744073709551615_u64], "cniVersion": "0.3.1",
    });
    let conf = json!({
        "NAME": "n", "cniVersion": "0.4.0", "delegate": given, "runtimeConfig": { "portMappings": [{ "hostPort": 1 }] },
    });
    let told = delegate_of(&conf, V4);
    for field in ["type", "mtu", "ipMasq", "x"] {
        assert_eq!(told[field], given[field]);
    }
    assert_eq!((&told["cniVersion"], &told["name"]), (&json!("0.4.0"), &json!("n")));
    assert_eq!(told["runtimeConfig"], json!({ "portMappings": [{ "hostPort": 1 }] }));
    assert_eq!(told.get("isGateway"), None, "that is for a bridge");
    let bridge = json!({ "name": "n", "delegate": { "type": "bridge", "isGateway": false } });
    assert_eq!(delegate_of(&bridge, V4)["isGateway"], json!(false));
    let unmasked = V4.replace("IPMASQ=true", "IPMASQ=false");
    assert_eq!(delegate_of(&json!({ "name": "n", "delegate": null }), &unmasked)["ipMasq"], json!(true));
}

/// What is kept of a pod with a netkit, and told to the plugin that deletes it, is what `bridge` is told.
#[test]
fn delegate_netkit_is_a_bridge_with_other_interfaces() {
    let conf = |kind: &str| json!({ "name": "n", "delegate": { "type": kind, "hairpinMode": true } });
    assert_eq!(delegate_of(&conf("netkit"), DUAL), delegate_of(&conf("bridge"), DUAL));
    let unmasked = V4.replace("IPMASQ=true", "IPMASQ=false");
    for (delegate, env, part) in [
        (r#"{"type":"netkit","vlan":5}"#, V4, "delegate.vlan"),
        (r#"{"type":"netkit"}"#, &unmasked, "delegate.ipMasq"),
    ] {
        let error = refusal(&format!(r#"{{"name":"n","delegate":{delegate}}}"#), env);
        assert!(error.code() == 7 && error.to_string().contains(part), "{error}");
    }
    delegate_of(&json!({ "name": "n", "delegate": { "type": "netkit", "ipMasq": false } }), &unmasked);
}

#[test]
fn delegate_fields_that_are_ours_are_refused() {
    for (delegate, part) in [
        (r#"{"type":1}"#, "(string) 'type'"),
        (r#"{"name":"x"}"#, "must not have 'name'"),
        (r#"{"ipam":{}}"#, "must not have 'ipam'"),
    ] {
        let error = refusal(&format!(r#"{{"name":"n","delegate":{delegate}}}"#), V4);
        assert!(error.code() == 7 && error.to_string().contains(part), "{error}");
    }
}

#[test]
fn netconf_paths_are_given_or_default() {
    let conf = NetConf::parse(r#"{"name":"cni-flannel","type":"flannel","subnetFile":"/a","dataDir":"/b"}"#)
        .unwrap();
    assert_eq!((conf.name.as_str(), conf.cni_version.as_str()), ("cni-flannel", "0.1.0"));
    assert_eq!((conf.subnet_file.as_path(), conf.data_dir.as_path()), (Path::new("/a"), Path::new("/b")));
    let conf = NetConf::parse(r#"{"name":"cni-flannel","type":"flannel"}"#).unwrap();
    assert_eq!(conf.subnet_file, Path::new("/run/flannel/subnet.env"));
    assert_eq!(conf.data_dir, Path::new("/var/lib/cni/flannel"));
}

#[test]
fn netconf_that_cannot_be_names_the_field() {
    for (text, code, part) in [
        ("", 6, "failed to load netconf"),
        ("[]", 6, "not a JSON object"),
        ("{}", 7, "missing network name"),
        (r#"{"name":"a/b"}"#, 7, "a/b"),
        (r#"{"name":"-b"}"#, 7, "-b"),
        (r#"{"name":1}"#, 6, "name: expected a string"),
        (r#"{"name":"n","subnetFile":[]}"#, 6, "subnetFile"),
        (r#"{"name":"n","dataDir":""}"#, 7, "dataDir: empty"),
        (r#"{"name":"n","ipam":"host-local"}"#, 6, "ipam: expected an object"),
        (r#"{"name":"n","delegate":[]}"#, 6, "delegate: expected an object"),
        (r#"{"name":"n","runtimeConfig":1}"#, 6, "runtimeConfig"),
    ] {
        let error = NetConf::parse(text).unwrap_err();
        assert!(error.code() == code && error.to_string().contains(part), "{text}: {error:?}");
    }
}

#[test]
fn subnet_env_of_each_family() {
    let read = |env: &str| {
        let env = SubnetEnv::parse(env).unwrap();
        let text = |all: Vec<ipnetwork::IpNetwork>| {
            all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        (text(env.networks), text(env.subnets), env.mtu, env.ip_masq)
    };
    let row = |networks: &str, subnets: &str| (networks.to_owned(), subnets.to_owned(), 1472, true);
    assert_eq!(read(V4), row("10.1.0.0/16", "10.1.17.0/24"));
    assert_eq!(read(V4_TWO_NETWORKS), row("10.1.0.0/16 192.168.0.0/16", "10.1.17.0/24"));
    let listed_twice = V4_TWO_NETWORKS.replace("192.168.0.0/16", "192.168.0.0/16,10.1.0.0/16");
    assert_eq!(read(&listed_twice), row("10.1.0.0/16 192.168.0.0/16", "10.1.17.0/24"));
    assert_eq!(read(&format!("FLANNEL_NETWORK=10.9.0.0/16{V4}")), row("10.1.0.0/16", "10.1.17.0/24"));
    assert_eq!(read(V6), row("fc00::/48", "fc00::/64"));
    assert_eq!(read(DUAL), row("10.1.0.0/16 fc00::/48", "10.1.17.0/24 fc00::/64"));
}

#[test]
fn subnet_env_that_lacks_something_says_what() {
    for (env, expected) in [
        (
            "foo=bar",
            "it is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, \
             FLANNEL_IPMASQ",
        ),
        (&V4.replace("FLANNEL_MTU", "X"), "it is missing FLANNEL_MTU"),
        (
            "FLANNEL_MTU",
            "it is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, \
          FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ",
        ),
        (&V4.replace("1472", "big"), "FLANNEL_MTU=big is not a number of bytes"),
        (
            &V4.replace("10.1.17.1/24", "10.1.17.1"),
            "FLANNEL_SUBNET=10.1.17.1 is not a network, as 10.244.1.1/24",
        ),
        (&V4.replace("17.1/24", "17.1/24,10.1.18.1/24"), "FLANNEL_SUBNET is more than one network"),
    ] {
        assert_eq!(SubnetEnv::parse(env).unwrap_err(), expected);
    }
    let error = SubnetEnv::read(Path::new("/nonexistent/subnet.env")).unwrap_err();
    assert_eq!(error.code(), 11);
    let said = error.to_string();
    assert!(
        said.contains("failed to load flannel 'subnet.env' file: /nonexistent/subnet.env: No such file"),
        "{said}"
    );
}

/// JSON that looks like a configuration, and some that does not.
fn configuration() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        "10\\.[0-9]{1,3}\\.0\\.0/[0-9]{1,2}".prop_map(Value::from),
    ];
    let name = "name|type|ipam|delegate|subnetFile|dataDir|runtimeConfig|cniVersion|routes|dst|gw|ranges|prevResult|\
                cni\\.dev/valid-attachments|containerID|mtu|\\PC{0,4}";
    let value = leaf.prop_recursive(4, 32, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((name, inner), 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    });
    (value, any::<bool>(), "\\PC{0,6}").prop_map(|(mut value, named, tail)| {
        if let Some(fields) = value.as_object_mut().filter(|_| named) {
            fields.insert("name".to_owned(), "net".into());
            fields.remove("cniVersion");
        }
        if named { value.to_string() } else { format!("{value}{tail}") }
    })
}

proptest! {
    #[test]
    fn no_input_panics(
        verb in "ADD|DEL|CHECK|STATUS|GC|VERSION|\\PC{0,6}",
        variable in "\\PC{0,20}|[a-z0-9.]{1,20}",
        text in prop_oneof![configuration(), "\\PC{0,80}"],
        env in "\\PC{0,80}|(FLANNEL_(IPV6_)?(NETWORK|SUBNET|MTU|IPMASQ)[=: ]{0,2}['\"# 0-9a-f.:/,]{0,24}\n){0,8}",
    ) {
        if let (Ok(conf), Ok(env)) = (NetConf::parse(&text), SubnetEnv::parse(&env)) {
            let _ = delegate_config(&conf, &env);
            let _ = conf.valid_containers();
        }
        // Nothing is started or written: no directory of plugins has a delegate, and no subnet.env is there.
        let environment = |name: &str| match name {
            "CNI_COMMAND" => Some(verb.clone().into()),
            "CNI_PATH" => Some("/nonexistent".into()),
            _ => Some(variable.clone().into()),
        };
        let mut stdout = Vec::new();
        let _ = main(environment, &mut text.as_bytes(), &mut stdout);
        if !stdout.is_empty() {
            let value: Value = serde_json::from_slice(&stdout).unwrap();
            prop_assert!(value.get("cniVersion").is_some());
        }
    }
}
