//! Chains as `nft -j list ruleset` lists them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    Asks, Base, Chains, Condition, Rule, Step,
    compared::{Sets, compared, condition, something},
};
use crate::values::Family;

/// Hooks of packets that have an IP header.
const HOOKS: [&str; 5] = ["prerouting", "input", "forward", "output", "postrouting"];
/// Hooks of packets of some interfaces.
const HOOKS_OF_DEVICES: [&str; 2] = ["ingress", "egress"];
/// Chains that iptables has made in these tables are looked at as iptables'; its others are not listed there.
const TABLES_OF_IPTABLES: [&str; 3] = ["filter", "nat", "mangle"];
const CHAINS_OF_IPTABLES: [&str; 5] = ["INPUT", "FORWARD", "OUTPUT", "PREROUTING", "POSTROUTING"];
/// What a rule has besides conditions and what it does in the end.
const NEUTRAL: [&str; 8] =
    ["counter", "log", "mangle", "notrack", "ct helper", "ct timeout", "secmark", "comment"];

/// The chains that packets meet, by family.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::inspect::checks) struct Bases {
    /// Those that may drop them.
    pub(in crate::inspect::checks) filters: BTreeMap<Family, Vec<Base>>,
    /// Those that may give them another source.
    pub(in crate::inspect::checks) translations: BTreeMap<Family, Vec<Base>>,
    /// Those that may give them another destination.
    pub(in crate::inspect::checks) destinations: BTreeMap<Family, Vec<Base>>,
    /// Rules of others put marks on packets.
    pub(in crate::inspect::checks) sets_marks: bool,
}

/// The chains that packets meet, from what the program lists.
pub(in crate::inspect::checks) fn bases(listed: &Value) -> Bases {
    let objects = listed["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut tables = BTreeMap::<TableId, Chains>::new();
    let mut all = Vec::new();
    let (sets, none) = (sets(objects), Sets::new());
    for object in objects {
        if let Some(chain) = object.get("chain") {
            let table = table_of(chain);
            let name = word(chain, "name");
            tables.entry(table.clone()).or_default().entry(name.clone()).or_default();
            let of_iptables = ["ip", "ip6"].contains(&table.0.as_str())
                && TABLES_OF_IPTABLES.contains(&table.1.as_str())
                && CHAINS_OF_IPTABLES.contains(&name.as_str());
            let is_nat = chain["type"] == "nat";
            let hook = word(chain, "hook");
            if !of_iptables && (HOOKS.contains(&hook.as_str()) || HOOKS_OF_DEVICES.contains(&hook.as_str())) {
                let devices = match &chain["dev"] {
                    Value::Array(several) => {
                        several.iter().filter_map(Value::as_str).map(str::to_owned).collect()
                    }
                    one => one.as_str().map(str::to_owned).into_iter().collect(),
                };
                all.push((is_nat, table, name, hook, devices, chain["policy"] == "drop"));
            }
        }
        if let Some(rule) = object.get("rule") {
            let table = table_of(rule);
            let number = rule["handle"].as_u64().unwrap_or_default();
            let named = sets.get(&table).unwrap_or(&none);
            let chain = tables.entry(table).or_default().entry(word(rule, "chain")).or_default();
            chain.extend(rules(expressions(rule), number, named));
        }
    }
    let sets_mark = |rule: &Value| {
        // Of iptables' own tables iptables tells.
        let (_, table) = table_of(rule);
        let of_others = !table.starts_with("flannel-") && !TABLES_OF_IPTABLES.contains(&table.as_str());
        of_others
            && expressions(rule).iter().any(|expression| {
                expression["mangle"]["key"]["meta"]["key"] == "mark"
                    || ["MARK", "CONNMARK"].iter().any(|name| expression["xt"]["name"] == *name)
            })
    };
    let sets_marks = objects.iter().filter_map(|object| object.get("rule")).any(sets_mark);
    let mut found = Bases { sets_marks, ..Bases::default() };
    for (is_nat, table, name, hook, devices, drops) in all {
        let families: &[Family] = match table.0.as_str() {
            "ip" => &[Family::V4],
            "ip6" => &[Family::V6],
            "inet" | "bridge" | "netdev" => &Family::BOTH,
            _ => continue,
        };
        let base = Base {
            place: format!("chain {name} of table {} {}, hook {hook}", table.0, table.1),
            chains: tables.get(&table).cloned().unwrap_or_default(),
            hook: if table.0 == "bridge" { format!("bridge {hook}") } else { hook },
            devices,
            name,
            drops,
        };
        let of_kind = match (is_nat, base.hook.as_str()) {
            (false, _) => &mut found.filters,
            (true, "postrouting") => &mut found.translations,
            (true, _) => &mut found.destinations,
        };
        for family in families {
            of_kind.entry(*family).or_default().push(base.clone());
        }
    }
    found
}

/// A table, by family and name.
type TableId = (String, String);

/// The table that an object is in.
fn table_of(object: &Value) -> TableId {
    (word(object, "family"), word(object, "table"))
}

fn word(object: &Value, name: &str) -> String {
    object[name].as_str().unwrap_or_default().to_owned()
}

/// What a rule consists of.
fn expressions(rule: &Value) -> &[Value] {
    rule["expr"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The named sets and maps, by their table.
fn sets(objects: &[Value]) -> BTreeMap<TableId, Sets> {
    let mut found = BTreeMap::<TableId, Sets>::new();
    for set in objects.iter().filter_map(|object| object.get("set").or_else(|| object.get("map"))) {
        let elements = set["elem"].as_array().cloned().unwrap_or_default();
        let of_table = found.entry(table_of(set)).or_default();
        of_table.insert(word(set, "name"), elements.into_iter().map(plain).collect());
    }
    found
}

/// An element of a set, or a pair of a map: one that ends, or is counted, has its value within.
fn plain(element: Value) -> Value {
    match element {
        Value::Array(pair) => pair.into_iter().map(plain).collect(),
        element => match element.get("elem") {
            Some(within) => within["val"].clone(),
            None => element,
        },
    }
}

/// The rule with this handle that these expressions are: more than one where it looks the verdict up.
fn rules(expressions: &[Value], number: u64, sets: &Sets) -> Vec<Rule> {
    let mut conditions = Vec::new();
    let mut steps = Vec::new();
    for expression in expressions {
        let Some((kind, value)) = expression.as_object().and_then(|object| object.iter().next()) else {
            conditions.push(something());
            continue;
        };
        match kind.as_str() {
            "match" => conditions.push(condition(value, sets)),
            "accept" => steps.push((None, Step::Accept)),
            "drop" | "reject" => steps.push((None, Step::Drop)),
            "masquerade" | "snat" | "dnat" | "redirect" => steps.push((None, Step::Translate)),
            "return" => steps.push((None, Step::Return)),
            "jump" => steps.push((None, Step::Jump(target(value)))),
            "goto" => steps.push((None, Step::GoTo(target(value)))),
            "queue" => steps.push((None, Step::Unclear)),
            "vmap" => steps.extend(looked_up(value, sets)),
            "limit" => conditions.push(Condition { asks: Asks::Chance, negated: false }),
            "xt" if value["name"] == "comment" => {}
            "xt" if value["type"] == "target" => steps.push((None, Step::Unclear)),
            neutral if NEUTRAL.contains(&neutral) => {}
            // What looks up, and all that is not known.
            _ => conditions.push(something()),
        }
    }
    let rule = |(more, step): (Option<Condition>, Step)| Rule {
        conditions: conditions.iter().cloned().chain(more).collect(),
        step,
        text: String::new(),
        number,
    };
    steps.into_iter().map(rule).collect()
}

/// The verdicts of a map, each with the condition that its key stands for.
fn looked_up(map: &Value, sets: &Sets) -> Vec<(Option<Condition>, Step)> {
    // What it leads to is not known: it may be anything.
    let unclear = || vec![(Some(something()), Step::Drop), (None, Step::Unclear)];
    let data = &map["data"];
    let named = || data.as_str().and_then(|text| sets.get(text.strip_prefix('@')?));
    let Some(entries) = data["set"].as_array().or_else(named) else { return unclear() };
    let each = |entry: &Value| {
        let (key, verdict) = (entry.get(0)?, entry.get(1)?);
        let step = match verdict.as_object()?.iter().next()? {
            (kind, _) if kind == "accept" => Step::Accept,
            (kind, _) if kind == "drop" => Step::Drop,
            (kind, _) if kind == "return" => Step::Return,
            (kind, value) if kind == "jump" => Step::Jump(target(value)),
            (kind, value) if kind == "goto" => Step::GoTo(target(value)),
            _ => Step::Nothing,
        };
        Some(vec![(Some(compared(&map["key"], &[key], false)), step)])
    };
    entries.iter().flat_map(|entry| each(&plain(entry.clone())).unwrap_or_else(unclear)).collect()
}

fn target(value: &Value) -> String {
    value["target"].as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::tests::{both_ways, fates},
        *,
    };

    fn compare(left: Value, op: &str, right: Value) -> Value {
        json!({ "match": { "op": op, "left": left, "right": right } })
    }

    fn address(field: &str, op: &str, network: &str, length: u8) -> Value {
        let right = json!({ "prefix": { "addr": network, "len": length } });
        compare(json!({ "payload": { "protocol": "ip", "field": field } }), op, right)
    }

    fn meta(key: &str, right: Value) -> Value {
        compare(json!({ "meta": { "key": key } }), "==", right)
    }

    fn state(right: Value) -> Value {
        compare(json!({ "ct": { "key": "state" } }), "in", right)
    }

    /// A table with a base chain that jumps to another, which has these rules.
    fn forward(policy: &str, rules: &[Value]) -> Base {
        let chain = |name: &str| json!({ "family": "inet", "table": "own", "name": name });
        let mut base = chain("base");
        (base["hook"], base["policy"], base["type"]) = (json!("forward"), json!(policy), json!("filter"));
        let of = |chain: &str, expr: &Value| json!({ "rule": { "family": "inet", "table": "own", "chain": chain, "expr": expr } });
        let mut objects = vec![
            json!({ "metainfo": {} }),
            json!({ "chain": base }),
            json!({ "chain": chain("more") }),
            of("base", &json!([{ "jump": { "target": "more" } }])),
        ];
        objects.extend(rules.iter().map(|rule| of("more", rule)));
        bases(&json!({ "nftables": objects })).filters[&Family::V4][0].clone()
    }

    #[test]
    fn forwarded_packets_of_pods_are_dropped_by_a_rule_or_a_policy() {
        let [drop, accept] = [json!({ "drop": null }), json!({ "accept": null })];
        let reject = json!({ "reject": { "type": "icmpx", "expr": "admin-prohibited" } });
        let network = || address("saddr", "==", "10.244.0.0", 16);
        for (policy, rules, expected) in [
            ("accept", vec![json!([address("saddr", "==", "10.0.0.0", 8), drop])], ["dropped"; 2]),
            ("accept", vec![json!([address("saddr", "==", "172.16.0.0", 12), drop])], ["pass"; 2]),
            ("accept", vec![json!([address("daddr", "!=", "10.0.0.0", 8), drop])], ["pass"; 2]),
            ("accept", vec![json!([state(json!("invalid")), drop])], ["pass"; 2]),
            // What takes some out of many is seen.
            ("accept", vec![json!([json!({ "limit": { "rate": 1, "inv": true } }), drop])], ["perhaps"; 2]),
            (
                "accept",
                vec![json!([
                    compare(json!({ "numgen": { "mode": "random", "mod": 10 } }), "<", json!(5)),
                    drop
                ])],
                ["perhaps"; 2],
            ),
            (
                "accept",
                vec![json!([json!({ "limit": { "rate": 5 } }), accept]), json!([drop])],
                ["perhaps"; 2],
            ),
            (
                "accept",
                vec![json!([address("saddr", "==", "172.16.0.0", 12), { "limit": { "rate": 1 } }, drop])],
                ["pass"; 2],
            ),
            ("drop", vec![json!([state(json!(["established", "related"])), accept])], ["dropped"; 2]),
            ("drop", vec![json!([network(), accept])], ["pass"; 2]),
            ("drop", vec![json!([meta("iifname", json!("cni0")), accept])], ["pass", "dropped"]),
            (
                "drop",
                vec![
                    json!([meta("iifname", json!({ "set": ["cni0", "flannel.1"] })), { "counter": {} }, accept]),
                ],
                ["pass"; 2],
            ),
            ("drop", vec![json!([accept])], ["pass"; 2]),
            ("drop", vec![json!([meta("mark", json!(7)), accept])], ["perhaps"; 2]),
            ("drop", vec![json!([meta("iifname", json!("@pods")), accept])], ["perhaps"; 2]),
            // As firewalld ends its chain, whose policy is accept.
            (
                "accept",
                vec![
                    json!([{ "vmap": { "key": { "ct": { "key": "state" } }, "data": { "set": [
                        ["established", { "accept": null }], ["invalid", { "drop": null }]] } } }]),
                    json!([compare(json!({ "ct": { "key": "status" } }), "in", json!("dnat")), accept]),
                    json!([meta("iifname", json!("lo")), accept]),
                    json!([reject]),
                ],
                ["dropped"; 2],
            ),
        ] {
            assert_eq!(fates(&forward(policy, &rules)), expected, "{policy} {rules:?}");
        }
    }

    #[test]
    fn what_iptables_has_made_is_left_to_iptables() {
        let chain = |table: &str, name: &str, hook: &str| {
            json!({ "chain": { "family": "ip", "table": table, "name": name,
            "hook": hook, "type": "filter", "policy": "drop" } })
        };
        let listed = json!({ "nftables": [
            chain("filter", "FORWARD", "forward"), chain("filter", "forward", "forward"),
            chain("own", "in", "input"), chain("own", "FORWARD", "forward"),
        ] });
        let filters = &bases(&listed).filters[&Family::V4];
        let of_forwarded = filters.iter().filter(|base| base.sees(&both_ways()[0], false).is_some());
        let found: Vec<String> = of_forwarded.map(|base| base.place.clone()).collect();
        assert_eq!(filters.len(), 3, "what is for this node is kept for whoever asks for it");
        assert_eq!(
            found,
            ["chain forward of table ip filter, hook forward", "chain FORWARD of table ip own, hook forward"]
        );
        assert!(!bases(&listed).filters.contains_key(&Family::V6));
        assert_eq!(bases(&json!("garbage")), Bases::default());
    }

    #[test]
    fn what_gives_packets_between_pods_another_source_is_told_from_what_does_for_others() {
        let masquerade = json!({ "masquerade": null });
        let oif = |op: &str, name: &str| compare(json!({ "meta": { "key": "oifname" } }), op, json!(name));
        for (rules, expected) in [
            (vec![json!([masquerade])], [true; 2]),
            (
                vec![json!([address("saddr", "==", "10.244.1.0", 24), oif("!=", "cni0"), masquerade])],
                [true, false],
            ),
            (vec![json!([oif("==", "flannel.1"), { "snat": { "addr": "192.0.2.1" } }])], [true, false]),
            (vec![json!([address("daddr", "!=", "10.0.0.0", 8), masquerade])], [false; 2]),
            (vec![json!([address("saddr", "==", "172.17.0.0", 16), masquerade])], [false; 2]),
            // Which packets have the mark cannot be judged here.
            (vec![json!([meta("mark", json!(0x4000)), masquerade])], [false; 2]),
            // As flannel's own chain: what is between pods leaves it first.
            (
                vec![
                    json!([
                        address("saddr", "==", "10.244.0.0", 16),
                        address("daddr", "==", "10.244.0.0", 16),
                        { "return": null }
                    ]),
                    json!([address("saddr", "==", "10.244.0.0", 16), masquerade]),
                ],
                [false; 2],
            ),
        ] {
            let base = json!({ "family": "ip", "table": "own", "name": "post", "hook": "postrouting",
                "type": "nat", "policy": "accept" });
            let mut objects = vec![json!({ "chain": base })];
            objects.extend(rules.iter().map(
                |expr| json!({ "rule": { "family": "ip", "table": "own", "chain": "post", "expr": expr } }),
            ));
            let listed = json!({ "nftables": objects });
            let found = bases(&listed);
            assert!(found.filters.is_empty());
            let found = &found.translations[&Family::V4][0];
            assert_eq!(both_ways().map(|passage| found.translates(&passage)), expected, "{rules:?}");
        }
    }
}
