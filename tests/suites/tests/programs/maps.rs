//! The maps: adopted, replaced, and readable by people.

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapInfo;
use flannel_agent::bpf::{LogLevel, Programs, Tables, read_counters};
use flannel_common::{
    family::V4,
    layout::{Exempt, Flow, FlowProtocol, Permit, SubnetV4, Vtep},
    map::{
        CONFIG_V4, CONFIG_V6, COUNTERS, FLOWS_V4, FLOWS_V6, MAX_EXEMPT, MAX_FLOWS, PINNED_MAPS, PODS_V4,
        PODS_V6, ROUTES_V4, ROUTES_V6, SNAT_EXEMPT_V4, SNAT_EXEMPT_V6, VTEPS_V4, VTEPS_V6,
    },
    path::Hook,
};
use flannel_common_testing::{Frame, HERE, NOW, THERE, interface, seen_at};
use serde_json::{Value, json};

use crate::{
    loaded::Loaded,
    sandbox::{Sandbox, bpftool, in_sandbox},
};

const FLOW: Flow<V4> = Flow {
    local: HERE.pod(2),
    remote: THERE.pod(2),
    local_port: 5000,
    remote_port: 5001,
    protocol: FlowProtocol::Udp,
};

#[test]
fn a_second_load_adopts_the_maps() {
    in_sandbox(|sandbox| {
        let mut first = Loaded::new(sandbox)?;
        let mut tables = HERE.tables(&[THERE]);
        tables.exempt.insert(HERE.config().network, Exempt::Cluster);
        tables.flows.insert(FLOW, Permit { egress: NOW, ifindex: interface::POD, ..Permit::default() });
        first.fill(&tables)?;
        let flows = first.tables.v4.flows.entries()?;
        let frame =
            Frame::udp(HERE.pod(2), THERE.pod(2), 64).macs(HERE.gateway_mac(), HERE.pod_mac(2)).bytes();
        first.run(Hook::FromPod, &frame, &seen_at(Hook::FromPod), 0)?;
        let ids = map_ids(sandbox)?;
        let counted = read_counters(&first.pins)?;
        drop(first);

        let mut second = Loaded::new(sandbox)?;
        ensure!(map_ids(sandbox)? == ids, "maps were made anew");
        ensure!(read_counters(&second.pins)? == counted, "counters were lost");
        ensure!(second.tables.v4.routes.entries()? == tables.routes, "routes were lost");
        ensure!(second.tables.v4.vteps.entries()? == tables.vteps, "VTEPs were lost");
        ensure!(second.tables.v4.pods.entries()? == tables.pods, "pods were lost");
        ensure!(second.tables.v4.exempt.entries()? == tables.exempt, "exemptions were lost");
        ensure!(second.tables.v4.flows.entries()? == flows, "flows were lost");
        ensure!(second.tables.v4.config.get()? == tables.config, "the config was lost");
        // And the new programs use them.
        let outcome = second.run(Hook::FromPod, &frame, &seen_at(Hook::FromPod), 0)?;
        ensure!(outcome.action == 7, "action {}", outcome.action);
        Ok(())
    });
}

/// What an agent that knew fewer maps left is adopted, and what it lacks is made.
#[test]
fn a_map_that_an_earlier_agent_did_not_have_is_made_beside_the_others() {
    in_sandbox(|sandbox| {
        drop(Loaded::new(sandbox)?);
        let before = map_ids(sandbox)?;
        std::fs::remove_file(sandbox.pins()?.map(SNAT_EXEMPT_V4))?;
        let mut loaded = Loaded::new(sandbox)?;
        for ((name, before), after) in PINNED_MAPS.into_iter().zip(before).zip(map_ids(sandbox)?) {
            ensure!((before != after) == (name == SNAT_EXEMPT_V4), "{name}: {before}, now {after}");
        }
        loaded.tables.v4.exempt.put(&HERE.config().network, &Exempt::Cluster)?;
        ensure!(loaded.tables.v4.exempt.entries()? == [(HERE.config().network, Exempt::Cluster)].into());
        Ok(())
    });
}

/// A trie says in its own way that it is full, and what is replaced needs no room.
#[test]
fn a_full_trie_says_so() {
    in_sandbox(|sandbox| {
        let mut loaded = Loaded::new(sandbox)?;
        let exempt = &mut loaded.tables.v4.exempt;
        let host = |n: u32| SubnetV4::of(n.to_be_bytes(), 32);
        for n in 0..MAX_EXEMPT {
            exempt.put(&host(n), &Exempt::User)?;
        }
        let Err(error) = exempt.put(&host(MAX_EXEMPT), &Exempt::User) else { anyhow::bail!("one too many") };
        ensure!(error.to_string() == "map snat_exempt_v4 is full", "{error}");
        exempt.remove(&host(7))?;
        exempt.remove(&host(7)).context("what is absent is gone already")?;
        exempt.put(&host(MAX_EXEMPT), &Exempt::Node)?;
        ensure!(exempt.entries()?.len() == MAX_EXEMPT as usize);
        Ok(())
    });
}

fn map_ids(sandbox: &Sandbox) -> Result<Vec<u32>> {
    let pins = sandbox.pins()?;
    PINNED_MAPS.into_iter().map(|name| Ok(MapInfo::from_pin(pins.map(name))?.id())).collect()
}

#[test]
fn a_pinned_map_of_another_shape_is_replaced() {
    // Name, and a map that is not what the programs have there.
    const FOREIGN: [(&str, &str); 9] = [
        (ROUTES_V4, "type hash key 8 value 32 entries 65536"),
        (ROUTES_V4, "type hash key 8 value 36 entries 100"),
        (PODS_V4, "type hash key 16 value 16 entries 4096"),
        (SNAT_EXEMPT_V4, "type lpm_trie key 8 value 4 entries 1024 flags 1"),
        // The same sizes, but not a hash map: its keys would be indexes.
        (VTEPS_V4, "type array key 4 value 8 entries 65536"),
        // The same sizes, but full it would take no new flow.
        (FLOWS_V4, "type hash key 16 value 24 entries 65536"),
        (COUNTERS, "type array key 4 value 16 entries 128"),
        (ROUTES_V6, "type hash key 24 value 60 entries 65536"),
        (SNAT_EXEMPT_V6, "type lpm_trie key 24 value 4 entries 65536 flags 1"),
    ];
    in_sandbox(|sandbox| {
        let pins = sandbox.pins()?;
        drop(Programs::load(pins.clone(), LogLevel::Off)?);
        for (name, shape) in FOREIGN {
            let kept = Tables::open(&pins)?;
            drop(kept);
            let before = map_ids(sandbox)?;
            std::fs::remove_file(pins.map(name))?;
            let path = pins.map(name);
            let path = path.to_str().context("path")?;
            let mut arguments = vec!["map", "create", path];
            arguments.extend(shape.split(' '));
            arguments.extend(["name", name]);
            bpftool(&arguments)?;
            let foreign = MapInfo::from_pin(path)?.id();

            let mut loaded = Loaded::new(sandbox).with_context(|| format!("{name}: {shape}"))?;
            ensure!(MapInfo::from_pin(path)?.id() != foreign, "{name} ({shape}) was adopted");
            for ((other, before), after) in PINNED_MAPS.into_iter().zip(before).zip(map_ids(sandbox)?) {
                ensure!(other == name || before == after, "{other} was replaced with {name}");
            }
            let tables = HERE.tables(&[THERE]);
            loaded.fill(&tables).with_context(|| format!("{name}: {shape}"))?;
            ensure!(loaded.tables.v4.vteps.entries()? == tables.vteps, "{name}: {shape}");
        }
        Ok(())
    });
}

/// A full map takes new flows all the same, and forgets others for them.
#[test]
fn there_is_always_room_for_a_flow() {
    in_sandbox(|sandbox| {
        let mut loaded = Loaded::new(sandbox)?;
        let flow = |number: u32| {
            let [_, a, b, c] = number.to_be_bytes();
            Flow { remote: [10, a, b, c], ..FLOW }
        };
        let permit = Permit { egress: 1, ingress: 1, ifindex: interface::POD, ..Permit::default() };
        let flows = &mut loaded.tables.v4.flows;
        for number in 0..MAX_FLOWS + 2_000 {
            flows.put(&flow(number), &permit).with_context(|| format!("flow {number}"))?;
        }
        let known = flows.entries()?;
        ensure!(known.len() <= MAX_FLOWS as usize && known.len() > MAX_FLOWS as usize / 2, "{}", known.len());
        ensure!(known.contains_key(&flow(MAX_FLOWS + 1_999)), "the newest flow was forgotten");
        ensure!(flows.remove_all(|_| true)? > MAX_FLOWS as usize / 2);
        ensure!(flows.entries()?.is_empty());
        Ok(())
    });
}

/// What `bpftool` says of the map's entries in words.
fn dump(sandbox: &Sandbox, name: &str) -> Result<Vec<Value>> {
    let path = sandbox.pins()?.map(name);
    let entries = bpftool(&["map", "dump", "pinned", path.to_str().context("path")?])?;
    let entries = entries.as_array().with_context(|| format!("{name}: no list"))?;
    Ok(entries.iter().map(|entry| entry.get("formatted").cloned().unwrap_or(Value::Null)).collect())
}

#[test]
fn bpftool_prints_maps_in_words() {
    in_sandbox(|sandbox| {
        let mut loaded = Loaded::new(sandbox)?;
        let mut tables = HERE.tables(&[THERE]);
        tables.exempt.insert(HERE.config().network, Exempt::Cluster);
        tables.exempt.insert(SubnetV4::of(THERE.vtep, 32), Exempt::Node);
        tables.flows.insert(FLOW, Permit { ifindex: interface::POD, ..Permit::default() });
        tables.exempt.insert(SubnetV4::of([198, 51, 100, 0], 24), Exempt::User);
        loaded.fill(&tables)?;
        let subnet = json!({ "prefix_len": 24, "network": [10, 244, 2, 0] });

        let routes = dump(sandbox, ROUTES_V4)?;
        let peer = json!({
            "kind": "Vxlan", "vtep": [192, 168, 0, 2], "vni": 1, "ifindex": 21,
            "next_hop": [192, 168, 0, 2], "mtu": 1500,
            "vtep_mac": [10, 88, 0, 0, 0, 2], "local_mac": [10, 88, 0, 0, 0, 1], "reserved": [0, 0, 0, 0],
        });
        ensure!(routes == [json!({ "key": subnet, "value": peer })], "{routes:#?}");

        let vteps = dump(sandbox, VTEPS_V4)?;
        let expected = json!({ "key": [192, 168, 0, 2], "value": { "subnet": subnet } });
        ensure!(vteps == [expected], "{vteps:#?}");

        let pods = dump(sandbox, PODS_V4)?;
        let pod = json!({ "ifindex": 41, "mtu": 9000, "mac": [2, 0, 0, 1, 0, 2], "gateway_mac": [2, 0, 0, 1, 0, 1] });
        ensure!(pods.contains(&json!({ "key": [10, 244, 1, 2], "value": pod })), "{pods:#?}");

        let exempt = dump(sandbox, SNAT_EXEMPT_V4)?;
        let entry = |prefix: u32, address, why: &str| json!({ "key": { "prefix_len": prefix, "data": address }, "value": why });
        for entry in [
            entry(16, json!([10, 244, 0, 0]), "Cluster"),
            entry(32, json!([192, 168, 0, 2]), "Node"),
            entry(24, json!([198, 51, 100, 0]), "User"),
        ] {
            ensure!(exempt.contains(&entry), "{entry} is missing in {exempt:#?}");
        }

        let flows = dump(sandbox, FLOWS_V4)?;
        let flow = json!({
            "local": [10, 244, 1, 2], "remote": [10, 244, 2, 2],
            "local_port": 5000, "remote_port": 5001, "protocol": "Udp",
        });
        let permit = json!({
            "egress": 0, "ingress": 0, "ifindex": 41, "gateway": 0, "sent": 0, "received": 0, "priority": 0, "reserved": 0
        });
        ensure!(flows == [json!({ "key": flow, "value": permit })], "{flows:#?}");

        let config = dump(sandbox, CONFIG_V4)?;
        let value = config.first().map(|entry| &entry["value"]).context("config")?;
        ensure!(value["fast_path"] == "All" && value["port"] == 8472, "{config:#?}");

        let counters = dump(sandbox, COUNTERS)?;
        let of_cpu = &counters.first().context("counters")?["values"][0]["value"];
        ensure!(*of_cpu == json!({ "packets": 0, "bytes": 0 }), "{:#?}", counters.first());
        Ok(())
    });
}

#[test]
fn bpftool_prints_ipv6_maps_in_words() {
    in_sandbox(|sandbox| {
        let mut loaded = Loaded::new(sandbox)?;
        let mut tables = HERE.dual_tables(&[THERE]);
        tables.v6.exempt.insert(HERE.config_v6().network, Exempt::Cluster);
        let (local, remote) = (HERE.pod_v6(2), THERE.pod_v6(2));
        let flow = Flow { local, remote, local_port: 5000, remote_port: 5001, protocol: FlowProtocol::Tcp };
        tables.v6.flows.insert(flow, Permit { ifindex: interface::POD, ..Permit::default() });
        loaded.fill(&tables)?;
        let address = |head: [u8; 8], last: u8| {
            let mut octets = head.to_vec();
            octets.extend([0, 0, 0, 0, 0, 0, 0, last]);
            json!({ "octets": octets })
        };
        let vtep = |last| address([0xfd, 0, 0, 0x77, 0, 0, 0, 0], last);
        let pod = |node, last| address([0xfd, 0, 0, 0x10, 0, node, 0, 0], last);
        let subnet = json!({ "prefix_len": 64, "network": pod(2, 0) });

        let routes = dump(sandbox, ROUTES_V6)?;
        let peer = json!({
            "kind": "Vxlan", "vni": 1, "vtep": vtep(2), "next_hop": vtep(2), "ifindex": 21, "mtu": 1500,
            "vtep_mac": [10, 88, 0, 0, 6, 2], "local_mac": [10, 88, 0, 0, 6, 1], "reserved": [0, 0, 0, 0],
        });
        ensure!(routes == [json!({ "key": subnet, "value": peer })], "{routes:#?}");

        let vteps = dump(sandbox, VTEPS_V6)?;
        ensure!(vteps == [json!({ "key": vtep(2), "value": { "subnet": subnet } })], "{vteps:#?}");

        let pods = dump(sandbox, PODS_V6)?;
        let place = json!({ "ifindex": 41, "mtu": 9000, "mac": [2, 0, 0, 1, 0, 2], "gateway_mac": [2, 0, 0, 1, 0, 1] });
        ensure!(pods.contains(&json!({ "key": pod(1, 2), "value": place })), "{pods:#?}");

        let exempt = dump(sandbox, SNAT_EXEMPT_V6)?;
        let data = &pod(0, 0)["octets"];
        let expected = json!({ "key": { "prefix_len": 32, "data": data }, "value": "Cluster" });
        ensure!(exempt == [expected], "{exempt:#?}");

        let flows = dump(sandbox, FLOWS_V6)?;
        let flow = json!({
            "local": pod(1, 2), "remote": pod(2, 2), "local_port": 5000, "remote_port": 5001, "protocol": "Tcp",
        });
        let permit = json!({
            "egress": 0, "ingress": 0, "ifindex": 41, "gateway": 0, "sent": 0, "received": 0, "priority": 0, "reserved": 0
        });
        ensure!(flows == [json!({ "key": flow, "value": permit })], "{flows:#?}");

        let config = dump(sandbox, CONFIG_V6)?;
        let value = config.first().map(|entry| &entry["value"]).context("config_v6")?;
        ensure!(value["fast_path"] == "All" && value["vtep"] == vtep(1), "{config:#?}");
        // What was put is found again.
        ensure!(loaded.tables.v6.routes.entries()? == tables.v6.routes);
        ensure!(loaded.tables.v6.exempt.entries()? == tables.v6.exempt);
        ensure!(loaded.tables.v6.config.get()? == tables.v6.config);
        Ok(())
    });
}

#[test]
fn what_is_put_is_found_until_it_is_removed() {
    in_sandbox(|sandbox| {
        let mut loaded = Loaded::new(sandbox)?;
        let vteps = &mut loaded.tables.v4.vteps;
        let lease = |node: &flannel_common_testing::Node| Vtep { subnet: node.subnet };
        vteps.put(&THERE.vtep, &lease(&THERE))?;
        vteps.put(&HERE.vtep, &lease(&HERE))?;
        vteps.put(&THERE.vtep, &lease(&HERE))?;
        ensure!(vteps.entries()? == [(HERE.vtep, lease(&HERE)), (THERE.vtep, lease(&HERE))].into());
        vteps.remove(&THERE.vtep)?;
        vteps.remove(&THERE.vtep).context("what is absent is gone already")?;
        ensure!(vteps.entries()? == [(HERE.vtep, lease(&HERE))].into());
        ensure!(loaded.tables.v4.config.get()?.is_none(), "a config before one was written");
        Ok(())
    });
}
