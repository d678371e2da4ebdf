use flannel_common::mark::FLOW_MARK;
use serde_json::{Value, json};

use super::*;
use crate::masq::rules::{RuleOptions, tests::options};

const GOLDEN: &str = r#"table ip flannel-ipv4 {
}
delete table ip flannel-ipv4
table ip flannel-ipv4 {
	comment "rules for flannel-ipv4"
	chain exempt {
		comment "chain to let traffic keep its source, before anybody masquerades it"
		type nat hook postrouting priority srcnat - 5; policy accept;
		meta mark & 0x4040 == 0x40 ip saddr 10.244.1.0/24 snat to ip saddr
		meta mark & 0x4000 != 0x4000 ip saddr 10.244.1.0/24 ip daddr 10.244.0.0/16 ip daddr != 10.244.1.0/24 snat to ip saddr
	}
	chain postrtg {
		comment "chain to manage traffic masquerading by flannel"
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x4000 == 0x4000 return
		ip saddr 10.244.1.0/24 ip daddr 10.244.0.0/16 return
		ip saddr 10.244.0.0/16 ip daddr 10.244.1.0/24 return
		ip saddr != 10.244.0.0/16 ip daddr 10.244.1.0/24 return
		ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
		ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade fully-random
	}
	chain forward {
		comment "chain to accept flannel traffic"
		type filter hook forward priority filter; policy accept;
		ip saddr 10.244.0.0/16 accept
		ip daddr 10.244.0.0/16 accept
	}
}
"#;

#[test]
fn rules_of_ipv4_are_upstreams_in_its_order() {
    let table = Table::of(&RuleSet::new(&options()));
    assert_eq!(text::replace(&table, true), GOLDEN);
    let without = text::replace(&table, false);
    let bare: String =
        GOLDEN.lines().filter(|line| !line.contains("comment \"")).map(|line| format!("{line}\n")).collect();
    assert_eq!(without, bare);
}

#[test]
fn flows_are_marked_behind_all_filters() {
    let flow = RuleOptions { flow_mark: Some(FLOW_MARK), ..options() };
    let golden = r#"	chain established {
		comment "chain to mark packets of established flows behind all filters"
		type filter hook postrouting priority mangle; policy accept;
		ip saddr 10.244.0.0/16 ip daddr 10.244.0.0/16 meta mark set meta mark & 0xffffefff
		ip saddr 10.244.0.0/16 ip daddr 10.244.0.0/16 ct status snat,dnat ct original ip daddr 10.244.0.0/16 return
		ip saddr 10.244.0.0/16 ip daddr 10.244.0.0/16 ct status & 0x2000 != 0 return
		ip saddr 10.244.0.0/16 ip daddr 10.244.0.0/16 ct state established meta mark set meta mark | 0x1000
	}
}
"#;
    let whole = GOLDEN.strip_suffix("}\n").unwrap().to_owned() + golden;
    assert_eq!(text::replace(&Table::of(&RuleSet::new(&flow)), true), whole);

    // What nft 1.0.6 writes of those rules.
    let only = RuleOptions { ip_masq: false, forward: false, ..flow };
    let mut table = Table::of(&RuleSet::new(&only));
    table.chains.retain(|chain| chain.name == "established");
    let network = |field: &str| {
        json!({ "match": { "op": "==", "left": { "payload": { "protocol": "ip", "field": field } },
                "right": { "prefix": { "addr": "10.244.0.0", "len": 16 } } } })
    };
    let rule = |expr: Value| json!({ "rule": { "chain": "established", "expr": expr } });
    let listed = json!({ "nftables": [
        { "chain": { "name": "established", "type": "filter", "hook": "postrouting", "prio": -150,
                     "policy": "accept" } },
        rule(json!([network("saddr"), network("daddr"),
            { "mangle": { "key": { "meta": { "key": "mark" } },
                          "value": { "&": [{ "meta": { "key": "mark" } }, 4294963199u32] } } }])),
        rule(json!([network("saddr"), network("daddr"),
            { "match": { "op": "in", "left": { "ct": { "key": "status" } }, "right": ["snat", "dnat"] } },
            { "match": { "op": "==", "left": { "ct": { "key": "ip daddr", "dir": "original" } },
                         "right": { "prefix": { "addr": "10.244.0.0", "len": 16 } } } },
            { "return": null }])),
        rule(json!([network("saddr"), network("daddr"),
            { "match": { "op": "in", "left": { "ct": { "key": "status" } }, "right": 8192 } },
            { "return": null }])),
        rule(json!([network("saddr"), network("daddr"),
            { "match": { "op": "in", "left": { "ct": { "key": "state" } }, "right": "established" } },
            { "mangle": { "key": { "meta": { "key": "mark" } },
                          "value": { "|": [{ "meta": { "key": "mark" } }, 4096] } } }])),
    ] });
    assert_eq!(json::faults(&table, &listed.to_string(), Look::Start), Vec::<String>::new());
}

#[test]
fn rules_of_ipv6_are_the_same_with_its_networks() {
    let options = RuleOptions {
        network: "fd00:10:244::/48".parse().unwrap(),
        subnet: "fd00:10:244:1::/64".parse().unwrap(),
        ..options()
    };
    let six = GOLDEN
        .replace("table ip ", "table ip6 ")
        .replace("flannel-ipv4", "flannel-ipv6")
        .replace("ip saddr", "ip6 saddr")
        .replace("ip daddr", "ip6 daddr")
        .replace("10.244.0.0/16", "fd00:10:244::/48")
        .replace("10.244.1.0/24", "fd00:10:244:1::/64")
        .replace("224.0.0.0/4", "ff00::/8");
    assert_eq!(text::replace(&Table::of(&RuleSet::new(&options)), true), six);
}

#[test]
fn without_flags_only_the_exemption_of_peers_is_left() {
    let options =
        RuleOptions { ip_masq: false, forward: false, random_fully: false, exempt_mark: None, ..options() };
    let table = Table::of(&RuleSet::new(&options));
    assert_eq!(table.chains.iter().map(|chain| chain.name).collect::<Vec<_>>(), ["exempt"]);
    assert_eq!(table.chains[0].rules.len(), 1);
    let masq = RuleOptions { ip_masq: true, ..options };
    assert!(!text::replace(&Table::of(&RuleSet::new(&masq)), true).contains("random"));
}

/// What nft 1.0.6 writes of a small table, and the table.
fn listed() -> (Table, Value) {
    let options = RuleOptions { ip_masq: false, ..options() };
    let network = json!({ "prefix": { "addr": "10.244.0.0", "len": 16 } });
    let subnet = json!({ "prefix": { "addr": "10.244.1.0", "len": 24 } });
    let field = |name: &str| json!({ "payload": { "protocol": "ip", "field": name } });
    let compare =
        |op: &str, left: Value, right: &Value| json!({ "match": { "op": op, "left": left, "right": right } });
    let mark = |mask: u32| json!({ "&": [{ "meta": { "key": "mark" } }, mask] });
    let keep = json!({ "snat": { "addr": field("saddr") } });
    let chain = |name: &str, kind: &str, hook: &str, prio: i32| {
        json!({ "chain": { "family": "ip", "table": "flannel-ipv4", "name": name, "handle": 1,
                "type": kind, "hook": hook, "prio": prio, "policy": "accept" } })
    };
    let rule = |chain: &str, expr: Value| json!({ "rule": { "family": "ip", "table": "flannel-ipv4", "chain": chain, "handle": 2, "expr": expr } });
    let listed = json!({ "nftables": [
        { "metainfo": { "version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1 } },
        { "table": { "family": "ip", "name": "flannel-ipv4", "handle": 17 } },
        chain("exempt", "nat", "postrouting", 95),
        chain("forward", "filter", "forward", 0),
        rule("exempt", json!([compare("==", mark(0x4040), &json!(0x40)), compare("==", field("saddr"), &subnet), keep])),
        rule("exempt", json!([
            compare("!=", mark(0x4000), &json!(0x4000)),
            compare("==", field("saddr"), &subnet),
            compare("==", field("daddr"), &network),
            compare("!=", field("daddr"), &subnet),
            keep,
        ])),
        rule("forward", json!([compare("==", field("saddr"), &network), { "accept": null }])),
        rule("forward", json!([compare("==", field("daddr"), &network), { "accept": null }])),
    ] });
    (Table::of(&RuleSet::new(&options)), listed)
}

#[test]
fn what_nft_writes_is_recognised_and_every_damage_named() {
    let (table, whole) = listed();
    for look in [Look::Start, Look::Resync] {
        assert_eq!(json::faults(&table, &whole.to_string(), look), Vec::<String>::new());
    }
    let damaged = |change: fn(&mut Vec<Value>)| {
        let mut value = whole.clone();
        change(value["nftables"].as_array_mut().unwrap());
        json::faults(&table, &value.to_string(), Look::Resync).join("; ")
    };
    assert_eq!(damaged(|all| drop(all.remove(4))), "1 of 2 rules are missing from chain exempt");
    assert_eq!(
        damaged(|all| all.swap(6, 7)),
        "the rules of chain forward are not those, or not in the order, wanted"
    );
    assert_eq!(damaged(|all| drop(all.remove(3))), "chain forward is missing from table flannel-ipv4");
    assert_eq!(
        damaged(|all| all[2]["chain"]["prio"] = json!(101)),
        "chain exempt of table flannel-ipv4 is not hooked as wanted"
    );
    assert_eq!(
        json::faults(&table, "nonsense", Look::Start),
        ["nft does not list table flannel-ipv4 in JSON"]
    );
    let less = Table::of(&RuleSet::new(&RuleOptions { forward: false, ip_masq: false, ..options() }));
    assert_eq!(
        json::faults(&less, &whole.to_string(), Look::Start),
        ["a chain \"forward\" from an earlier run in table flannel-ipv4"]
    );
    assert_eq!(json::faults(&less, &whole.to_string(), Look::Resync), Vec::<String>::new());
}

#[test]
fn a_flag_alone_or_in_a_list_is_the_same() {
    let table = Table::of(&RuleSet::new(&RuleOptions { forward: false, ..options() }));
    let listed = |flags: &Value| {
        let mut rules = json::listing(&table);
        for rule in rules["nftables"].as_array_mut().unwrap() {
            if let Some(expressions) = rule["rule"]["expr"].as_array_mut() {
                for expression in expressions {
                    if expression.get("masquerade").is_some() {
                        expression["masquerade"]["flags"] = flags.clone();
                    }
                }
            }
        }
        json::faults(&table, &rules.to_string(), Look::Start)
    };
    assert_eq!(listed(&json!("fully-random")), Vec::<String>::new());
    assert_eq!(listed(&json!(["fully-random"])), Vec::<String>::new());
    assert_eq!(listed(&json!(["random"])).len(), 1);
}

/// An nft of a kernel without some things.
struct Without {
    what: &'static str,
    loaded: Vec<String>,
}

impl Exec for Without {
    async fn run(&mut self, program: &str, arguments: &[&str], input: &str) -> Result<String, ExecError> {
        let failed =
            || ExecError::Failed { program: program.to_owned(), stderr: "No such file or directory".into() };
        match arguments {
            ["--version"] => Ok("nftables v1.0.6".to_owned()),
            ["-f", "-"] if input.contains(self.what) => Err(failed()),
            ["-f", "-"] => {
                self.loaded.push(input.to_owned());
                Ok(String::new())
            }
            _ => Err(failed()),
        }
    }

    fn has(&self, _: &str) -> bool {
        true
    }
}

#[tokio::test]
async fn kernel_that_cannot_mark_flows_has_all_other_rules() {
    let rules = [RuleSet::new(&RuleOptions { flow_mark: Some(FLOW_MARK), ..options() })];
    let nft = async |what| {
        let exec = Without { what, loaded: Vec::new() };
        Nft::detect(exec, &rules).await.unwrap()
    };
    let mut kept = nft("ct state").await;
    assert_eq!(kept.flows(), Flows::Marked, "until it is known better");
    kept.repair(Look::Start).await.unwrap();
    assert!(matches!(kept.flows(), Flows::Unmarked(because) if because.contains("No such file")));
    let bare = text::replace(&Table::of(&RuleSet::new(&options())), true);
    assert_eq!(kept.exec.loaded[0], bare);
    kept.repair(Look::Resync).await.unwrap();
    assert_eq!(kept.exec.loaded[2], bare);

    let mut kept = nft("table").await;
    assert!(kept.repair(Look::Start).await.is_err());
    assert_eq!(kept.flows(), Flows::Marked);
    let mut kept = nft("never").await;
    kept.repair(Look::Start).await.unwrap();
    assert_eq!(kept.flows(), Flows::Marked);
    assert!(kept.exec.loaded[0].contains("ct state"));
}
