//! The rules as `nft -j` writes them: that, unlike its text, reads the same in all versions.

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::{
    Chain, Table,
    text::{address_bits, word},
};
use crate::{
    masq::{
        keep::Look,
        rules::{IPS_HELPER, In, Rule, State, Transport, Verdict},
    },
    values::Family,
};

/// What is wrong with `table`, given what `nft -j -s list table` writes of it.
pub(super) fn faults(table: &Table, listed: &str, look: Look) -> Vec<String> {
    let Ok(listed) = serde_json::from_str::<Value>(listed) else {
        return vec![format!("nft does not list table {} in JSON", table.name)];
    };
    let objects = listed["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let of = |kind: &'static str| objects.iter().filter_map(move |object| object.get(kind));
    let mut faults = Vec::new();
    for chain in &table.chains {
        let Some(found) = of("chain").find(|found| found["name"] == chain.name) else {
            faults.push(format!("chain {} is missing from table {}", chain.name, table.name));
            continue;
        };
        if !is_hooked(found, chain) {
            faults.push(format!("chain {} of table {} is not hooked as wanted", chain.name, table.name));
        }
        let rules: Vec<Value> = of("rule")
            .filter(|rule| rule["chain"] == chain.name)
            .map(|rule| plain(rule["expr"].clone()))
            .collect();
        let wanted: Vec<Value> =
            chain.rules.iter().map(|rule| plain(expressions(rule, table.family))).collect();
        let right = match look {
            Look::Start => rules == wanted,
            Look::Resync => contains_in_order(&rules, &wanted),
        };
        if !right {
            let missing = wanted.iter().filter(|rule| !rules.contains(rule)).count();
            faults.push(match missing {
                0 => format!("the rules of chain {} are not those, or not in the order, wanted", chain.name),
                _ => format!("{missing} of {} rules are missing from chain {}", wanted.len(), chain.name),
            });
        }
    }
    if look == Look::Start {
        let ours = |chain: &&Value| table.chains.iter().any(|ours| chain["name"] == ours.name);
        faults.extend(
            of("chain").filter(|chain| !ours(chain)).map(|chain| {
                format!("a chain {} from an earlier run in table {}", chain["name"], table.name)
            }),
        );
    }
    faults
}

fn is_hooked(found: &Value, chain: &Chain) -> bool {
    found["type"] == chain.kind
        && found["hook"] == chain.hook
        && found["prio"] == chain.priority
        && found["policy"] == "accept"
}

fn contains_in_order(there: &[Value], rules: &[Value]) -> bool {
    let mut rest = there.iter();
    rules.iter().all(|rule| rest.any(|other| other == rule))
}

/// The expressions of one rule.
fn expressions(rule: &Rule, family: Family) -> Value {
    let protocol = word(family);
    let field = |name: &str| json!({ "payload": { "protocol": protocol, "field": name } });
    let compare = |negated: bool, left: Value, right: Value| json!({ "match": { "op": if negated { "!=" } else { "==" }, "left": left, "right": right } });
    let mut all = Vec::new();
    if let Some(mark) = rule.mark {
        let masked = json!({ "&": [{ "meta": { "key": "mark" } }, mark.mask] });
        all.push(compare(mark.negated, masked, json!(mark.value)));
    }
    for (name, end) in [("saddr", rule.source), ("daddr", rule.destination)] {
        if let Some(In { network: within, negated }) = end {
            all.push(compare(negated, field(name), network(within)));
        }
    }
    if let Some(within) = rule.destination_not {
        all.push(compare(true, field("daddr"), network(within)));
    }
    if let Some(transport) = rule.transport {
        all.extend(of_transport(&transport));
    }
    if let Some(state) = rule.state {
        let condition = match state {
            State::Established => Some(("state", json!("established"))),
            State::TranslatedIn(_) => Some(("status", json!(["snat", "dnat"]))),
            State::Helped => Some(("status", json!(IPS_HELPER))),
            State::BegunTo(_) => None,
        };
        all.extend(condition.map(|(key, right)| {
            json!({ "match": { "op": "in", "left": { "ct": { "key": key } }, "right": right } })
        }));
        if let State::TranslatedIn(within) | State::BegunTo(within) = state {
            let destination = json!({ "ct": { "key": format!("{protocol} daddr"), "dir": "original" } });
            all.push(compare(false, destination, network(within)));
        }
    }
    all.push(match rule.verdict {
        Verdict::Return => json!({ "return": null }),
        Verdict::Accept => json!({ "accept": null }),
        Verdict::Masquerade { random_fully: true } => json!({ "masquerade": { "flags": "fully-random" } }),
        Verdict::Masquerade { random_fully: false } => json!({ "masquerade": null }),
        Verdict::Keep => json!({ "snat": { "addr": field("saddr") } }),
        Verdict::Mark(bits) => set_mark("|", bits),
        Verdict::Unmark(bits) => set_mark("&", !bits),
    });
    Value::Array(all)
}

fn of_transport(transport: &Transport) -> Vec<Value> {
    let Transport { protocol, source_ports, destination_ports } = transport;
    let equal = |left: Value, right: Value| json!({ "match": { "op": "==", "left": left, "right": right } });
    let mut all = Vec::new();
    for (field, ports) in [("sport", source_ports), ("dport", destination_ports)] {
        if let Some((low, high)) = ports {
            let right = if low == high { json!(low) } else { json!({ "range": [low, high] }) };
            all.push(equal(json!({ "payload": { "protocol": protocol, "field": field } }), right));
        }
    }
    if all.is_empty() {
        all.push(equal(json!({ "meta": { "key": "l4proto" } }), json!(protocol)));
    }
    all
}

/// The mark becomes what it was, combined with `bits` by `operator`.
fn set_mark(operator: &str, bits: u32) -> Value {
    let mark = json!({ "meta": { "key": "mark" } });
    json!({ "mangle": { "key": mark, "value": { operator: [mark, bits] } } })
}

fn network(network: IpNetwork) -> Value {
    if network.prefix() == address_bits(network) {
        return json!(network.ip());
    }
    json!({ "prefix": { "addr": network.network(), "len": network.prefix() } })
}

/// Without what versions of nft differ in: whether one flag is written as a list.
fn plain(value: Value) -> Value {
    match value {
        Value::Object(object) => {
            let unlisted = |(key, value): (String, Value)| match value {
                Value::Array(mut list) if key == "flags" && list.len() == 1 => (key, list.remove(0)),
                value => (key, plain(value)),
            };
            Value::Object(object.into_iter().map(unlisted).collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(plain).collect()),
        value => value,
    }
}

/// What nft would list of `table`.
#[cfg(test)]
pub(super) fn listing(table: &Table) -> Value {
    let chains = table.chains.iter().map(|chain| {
        json!({ "chain": { "name": chain.name, "type": chain.kind, "hook": chain.hook,
                "prio": chain.priority, "policy": "accept" } })
    });
    let rules = table.chains.iter().flat_map(|chain| {
        let rule = |rule| json!({ "rule": { "chain": chain.name, "expr": expressions(rule, table.family) } });
        chain.rules.iter().map(rule)
    });
    json!({ "nftables": chains.chain(rules).collect::<Vec<_>>() })
}
