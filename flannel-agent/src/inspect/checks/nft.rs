//! What nftables holds that may be in the way of packets: rules that drop our tunnel's, and all that forwarded ones meet.
//!
//! Of the first only what is plain is named: a rule with a condition that cannot be judged here may be for other packets.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Command, Stdio},
};

use serde_json::Value;

use super::forwarded::{self, Bases};
use crate::netlink::Netfilter;

/// All tables of nftables, as `nft -j list ruleset` writes them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Nft {
    chains: BTreeMap<ChainId, Chain>,
    /// The chains that packets meet.
    pub(super) bases: Bases,
}

/// A chain, by family, table and name.
type ChainId = (String, String, String);

#[derive(Clone, Debug, Default, PartialEq)]
struct Chain {
    /// The hook of a base chain.
    hook: Option<String>,
    /// The expressions of each rule.
    rules: Vec<Vec<Value>>,
}

/// What iptables makes of nftables is looked at as iptables.
const OF_IPTABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];
/// Hooks that packets of this node's own addresses pass.
const OF_NODE: [&str; 5] = ["ingress", "prerouting", "input", "output", "postrouting"];

impl Nft {
    /// Asks the program; `None` where there is none, or it may not look.
    pub(super) fn read() -> Option<Self> {
        let mut command = Command::new("nft");
        command.args(["-j", "list", "ruleset"]).stdin(Stdio::null());
        let output = command.output().ok().filter(|output| output.status.success())?;
        let mut found = Self::of(&String::from_utf8_lossy(&output.stdout))?;
        found.find_devices();
        Some(found)
    }

    /// Asks the kernel which interfaces the chains of interfaces are of: not every version of the program lists them.
    fn find_devices(&mut self) {
        let chains = Netfilter::without_notices().and_then(|mut netfilter| netfilter.chains());
        let chains = chains.map(|chains| chains.devices).unwrap_or_default();
        for base in self.bases.filters.values_mut().flatten() {
            let hook = |egress| if egress { "egress" } else { "ingress" };
            let its =
                chains.iter().filter(|chain| base.is_called(&chain.name) && base.hook == hook(chain.egress));
            let devices: Vec<String> = its.flat_map(|chain| chain.devices.iter().cloned()).collect();
            base.devices.extend(devices);
        }
    }

    /// From what `nft -j list ruleset` writes; `None` where that is something else.
    pub(super) fn of(text: &str) -> Option<Self> {
        let listed: Value = serde_json::from_str(text).ok()?;
        let mut found = Self { bases: forwarded::of_nft(&listed), ..Self::default() };
        let id = |object: &Value, chain: &str| {
            let word = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
            (word("family"), word("table"), word(chain))
        };
        for object in listed["nftables"].as_array()? {
            if let Some(chain) = object.get("chain") {
                let into = found.chains.entry(id(chain, "name")).or_default();
                into.hook = chain["hook"].as_str().map(str::to_owned);
            }
            if let Some(rule) = object.get("rule") {
                let expressions = rule["expr"].as_array().cloned().unwrap_or_default();
                found.chains.entry(id(rule, "chain")).or_default().rules.push(expressions);
            }
        }
        found.chains.retain(|(family, table, _), _| {
            !(OF_IPTABLES.contains(&table.as_str()) && ["ip", "ip6", "bridge"].contains(&family.as_str()))
        });
        Some(found)
    }

    /// The chains with rules that drop UDP for `port`, whoever sends it, on whatever interface or on `external`.
    pub(super) fn drops_port(&self, port: u16, external: Option<&str>) -> Vec<String> {
        let is_dropped = |rule: &Vec<Value>| {
            ends_in(rule, &["drop", "reject"])
                && conditions(rule).any(|condition| is_port(condition, port))
                && conditions(rule).all(|condition| {
                    is_port(condition, port) || is_udp(condition) || is_interface(condition, external)
                })
        };
        self.rules_at(&OF_NODE, is_dropped)
    }

    /// Where, at one of these hooks, a rule is as `is_meant`.
    fn rules_at(&self, hooks: &[&str], is_meant: impl Fn(&Vec<Value>) -> bool) -> Vec<String> {
        let mut found = Vec::new();
        for (base, chain) in &self.chains {
            let Some(hook) = chain.hook.as_deref().filter(|hook| hooks.contains(hook)) else { continue };
            for id in self.reached_from(base) {
                let rules = self.chains.get(id).map(|chain| chain.rules.as_slice()).unwrap_or_default();
                if rules.iter().any(&is_meant) {
                    found.push(place(id, hook));
                }
            }
        }
        found
    }

    /// The chain and those that it jumps to without a condition.
    fn reached_from<'a>(&'a self, base: &'a ChainId) -> BTreeSet<&'a ChainId> {
        let (mut reached, mut next) = (BTreeSet::from([base]), vec![base]);
        while let Some(id) = next.pop() {
            let rules = self.chains.get(id).map(|chain| chain.rules.as_slice()).unwrap_or_default();
            for rule in rules.iter().filter(|rule| conditions(rule).next().is_none()) {
                let target = rule
                    .iter()
                    .find_map(|item| item.get("jump").or_else(|| item.get("goto"))?["target"].as_str());
                let to = target.map(|target| (id.0.clone(), id.1.clone(), target.to_owned()));
                if let Some((to, _)) = to.and_then(|to| self.chains.get_key_value(&to))
                    && reached.insert(to)
                {
                    next.push(to);
                }
            }
        }
        reached
    }
}

fn place((family, table, chain): &ChainId, hook: &str) -> String {
    format!("chain {chain} of table {family} {table}, hook {hook}")
}

fn ends_in(rule: &[Value], verdicts: &[&str]) -> bool {
    rule.iter().any(|item| verdicts.iter().any(|verdict| item.get(verdict).is_some()))
}

/// What a rule compares. What limits or looks things up is a condition as well, that nothing here knows.
fn conditions(rule: &[Value]) -> impl Iterator<Item = &Value> {
    const PLAIN: [&str; 8] = ["counter", "log", "drop", "reject", "accept", "jump", "goto", "return"];
    rule.iter().filter(|item| !PLAIN.iter().any(|plain| item.get(plain).is_some()))
}

/// The word that the left side of a comparison has as `name`, where it is of this `kind` and no negation.
fn field<'a>(condition: &'a Value, kind: &str, name: &str) -> Option<&'a str> {
    let compared =
        condition.get("match").filter(|compared| ["==", "in"].iter().any(|op| compared["op"] == *op))?;
    compared["left"].get(kind)?[name].as_str()
}

/// The right side of a comparison, one by one.
fn values(condition: &Value) -> Vec<&Value> {
    let right = &condition["match"]["right"];
    match right["set"].as_array() {
        Some(set) => set.iter().collect(),
        None => vec![right],
    }
}

fn is_port(condition: &Value, port: u16) -> bool {
    let protocol = field(condition, "payload", "protocol");
    let of_udp = protocol.is_some_and(|protocol| ["udp", "th"].contains(&protocol));
    let port = u64::from(port);
    of_udp
        && field(condition, "payload", "field") == Some("dport")
        && values(condition).into_iter().any(|value| match value["range"].as_array().map(Vec::as_slice) {
            Some([from, to]) => from.as_u64() <= Some(port) && Some(port) <= to.as_u64(),
            _ => value.as_u64() == Some(port),
        })
}

fn is_udp(condition: &Value) -> bool {
    let by_name = field(condition, "meta", "key") == Some("l4proto")
        || ["protocol", "nexthdr"].iter().any(|name| field(condition, "payload", "field") == Some(*name));
    by_name && values(condition).into_iter().any(|value| value == "udp" || value.as_u64() == Some(17))
}

fn is_name(key: &str) -> bool {
    ["iif", "iifname", "oif", "oifname"].contains(&key)
}

fn is_interface(condition: &Value, external: Option<&str>) -> bool {
    field(condition, "meta", "key").is_some_and(is_name)
        && values(condition).into_iter().any(|value| value.as_str() == external)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn compare(left: Value, op: &str, right: Value) -> Value {
        json!({ "match": { "op": op, "left": left, "right": right } })
    }

    fn dport(right: Value) -> Value {
        compare(json!({ "payload": { "protocol": "udp", "field": "dport" } }), "==", right)
    }

    fn saddr(op: &str, network: &str, length: u8) -> Value {
        let right = json!({ "prefix": { "addr": network, "len": length } });
        compare(json!({ "payload": { "protocol": "ip", "field": "saddr" } }), op, right)
    }

    fn meta(key: &str, right: &str) -> Value {
        compare(json!({ "meta": { "key": key } }), "==", json!(right))
    }

    /// A table with a base chain that jumps to another, which has `rule`.
    fn ruleset(hook: &str, policy: &str, rule: &[Value]) -> Nft {
        let chain = |name: &str| json!({ "family": "inet", "table": "own", "name": name });
        let mut base = chain("base");
        (base["hook"], base["policy"]) = (json!(hook), json!(policy));
        let of = |chain: &str, expr: Value| json!({ "rule": { "family": "inet", "table": "own", "chain": chain, "expr": expr } });
        let listed = json!({ "nftables": [
            { "metainfo": {} }, { "chain": base }, { "chain": chain("more") },
            of("base", json!([{ "jump": { "target": "more" } }])), of("more", json!(rule)),
        ]});
        Nft::of(&listed.to_string()).unwrap()
    }

    #[test]
    fn a_drop_of_our_port_is_told_from_drops_of_others() {
        let drop = json!({ "drop": null });
        for (rule, found) in [
            (vec![dport(json!(8472)), drop.clone()], true),
            (vec![dport(json!({ "set": [53, 8472] })), json!({ "reject": null })], true),
            (
                vec![
                    dport(json!({ "set": [{ "range": [8000, 9000] }] })),
                    json!({ "counter": {} }),
                    drop.clone(),
                ],
                true,
            ),
            (vec![meta("l4proto", "udp"), meta("iifname", "eth0"), dport(json!(8472)), drop.clone()], true),
            (vec![dport(json!(4789)), drop.clone()], false),
            (vec![dport(json!(8472)), json!({ "accept": null })], false),
            (vec![meta("iifname", "eth9"), dport(json!(8472)), drop.clone()], false),
            // Whoever lets only nodes send to it does right.
            (vec![saddr("!=", "192.0.2.0", 24), dport(json!(8472)), drop.clone()], false),
            (vec![json!({ "limit": { "rate": 5 } }), dport(json!(8472)), drop.clone()], false),
        ] {
            let dropped = ruleset("input", "accept", &rule).drops_port(8472, Some("eth0"));
            assert_eq!(!dropped.is_empty(), found, "{rule:?}");
            if found {
                assert_eq!(dropped[0], "chain more of table inet own, hook input");
            }
            assert!(ruleset("forward", "accept", &rule).drops_port(8472, Some("eth0")).is_empty());
        }
        assert_eq!(Nft::of("garbage"), None);
    }
}
