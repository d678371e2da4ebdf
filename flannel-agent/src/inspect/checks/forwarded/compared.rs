//! Comparisons as `nft -j list ruleset` lists them.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use serde_json::Value;

use super::{Asks, Condition, condition::Ranges, iptables};

/// What is in the named sets and maps of a table: of a map a key and what it leads to.
pub(super) type Sets = BTreeMap<String, Vec<Value>>;

pub(super) const fn something() -> Condition {
    Condition { asks: Asks::Something, negated: false }
}

pub(super) fn condition(compared_as: &Value, sets: &Sets) -> Condition {
    let left = &compared_as["left"];
    if left.get("numgen").is_some() || left["meta"]["key"] == "random" {
        return Condition { asks: Asks::Chance, negated: false };
    }
    let negated = match compared_as["op"].as_str() {
        Some("==" | "in") => false,
        Some("!=") => true,
        _ => return something(),
    };
    let right = &compared_as["right"];
    let named = right.as_str().and_then(|text| sets.get(text.strip_prefix('@')?));
    let values: Vec<&Value> = match named.or_else(|| right["set"].as_array()).or_else(|| right.as_array()) {
        Some(set) => set.iter().collect(),
        None => vec![right],
    };
    compared(left, &values, negated)
}

/// That `left` is one of `values`.
pub(super) fn compared(left: &Value, values: &[&Value], negated: bool) -> Condition {
    if let Some(parts) = left["concat"].as_array() {
        return joined(parts, values, negated);
    }
    let texts = || -> Option<Vec<String>> {
        // Named sets begin with @: one that is not listed is not known.
        values
            .iter()
            .map(|value| value.as_str().filter(|text| !text.starts_with('@')).map(str::to_owned))
            .collect()
    };
    let networks = || -> Option<Vec<IpNetwork>> { values.iter().map(|value| network(value)).collect() };
    let ports = || -> Option<Ranges> { values.iter().map(|value| range(value)).collect() };
    let protocols = || -> Option<Vec<u8>> { values.iter().map(|value| protocol(value)).collect() };
    let key = |kind: &str| left.get(kind).and_then(|left| left["key"].as_str());
    let word = |name: &str| left.get("payload").and_then(|payload| payload[name].as_str());
    let asks = match (key("meta"), key("ct"), (word("protocol"), word("field"))) {
        (.., (Some("ip" | "ip6"), Some("saddr"))) => networks().map(Asks::Source),
        (.., (Some("ip" | "ip6"), Some("daddr"))) => networks().map(Asks::Destination),
        (.., (Some("ip"), Some("protocol")) | (Some("ip6"), Some("nexthdr"))) => {
            protocols().map(Asks::Protocol)
        }
        (.., (Some(of), Some("sport"))) => of_ports(of, ports(), Asks::SourcePort),
        (.., (Some(of), Some("dport"))) => of_ports(of, ports(), Asks::DestinationPort),
        (Some("l4proto"), ..) => protocols().map(Asks::Protocol),
        (Some("nfproto" | "protocol"), ..) | (.., (Some("ether"), Some("type"))) => of_families(values),
        (Some("mark"), ..) => match values {
            [value] => number(value).map(|value| Asks::Mark(value, u32::MAX)),
            _ => None,
        },
        (Some("iif" | "iifname"), ..) => texts().map(Asks::By),
        (Some("oif" | "oifname"), ..) => texts().map(Asks::Out),
        (_, Some("state"), _) => texts().map(|states| {
            let has = |state: &str| states.iter().any(|named| named == state);
            Asks::State { new: has("new"), known: has("established") }
        }),
        // No packet between pods is translated.
        (_, Some("status"), _) => texts()
            .filter(|all| all.iter().all(|status| ["dnat", "snat"].contains(&status.as_str())))
            .map(|_| Asks::State { new: false, known: false }),
        _ if left["fib"]["result"] == "type" && left["fib"]["flags"][0] == "daddr" => {
            match texts().as_deref() {
                Some([one]) if one == "local" => Some(Asks::ForNode),
                _ => None,
            }
        }
        _ => masked_mark(left, values),
    };
    asks.map_or_else(something, |asks| Condition { asks, negated })
}

/// That several fields together are one of `values`, each of which has a part for every field.
fn joined(fields: &[Value], values: &[&Value], negated: bool) -> Condition {
    let each = |value: &&Value| -> Vec<Condition> {
        match value["concat"].as_array().filter(|parts| parts.len() == fields.len()) {
            Some(parts) => {
                fields.iter().zip(parts).map(|(field, part)| compared(field, &[part], false)).collect()
            }
            None => vec![something()],
        }
    };
    let asks = Asks::AnyOf(values.iter().map(each).collect());
    if !negated {
        return Condition { asks, negated };
    }
    // What has no such ports is not compared at all.
    let protocols =
        fields.iter().filter_map(|field| iptables::protocol(field["payload"]["protocol"].as_str()?));
    let mut all: Vec<Condition> = protocols
        .map(|protocol| Condition { asks: Asks::Protocol(vec![protocol]), negated: false })
        .collect();
    all.push(Condition { asks, negated });
    Condition { asks: Asks::AnyOf(vec![all]), negated: false }
}

/// That it is of one of these protocols of the link.
fn of_families(values: &[&Value]) -> Option<Asks> {
    let has = |names: [&str; 2]| values.iter().any(|value| names.iter().any(|name| *value == name));
    match (has(["ipv4", "ip"]), has(["ipv6", "ip6"])) {
        (true, true) => None,
        (false, false)
            if values.iter().any(|value| value.as_str().is_some_and(|text| text.starts_with('@'))) =>
        {
            None
        }
        // ARP, say, which no packet is here.
        (false, false) => Some(Asks::AnyOf(Vec::new())),
        (v4, _) => Some(Asks::IsV4(v4)),
    }
}

fn of_ports(of: &str, ports: Option<Ranges>, asks: fn(Option<u8>, Ranges) -> Asks) -> Option<Asks> {
    let of = if of == "th" { None } else { Some(iptables::protocol(of)?) };
    ports.map(|ports| asks(of, ports))
}

/// A comparison of some bits of the mark.
fn masked_mark(left: &Value, values: &[&Value]) -> Option<Asks> {
    let [mark, mask] = left.get("&")?.as_array()?.as_slice() else { return None };
    let [value] = values else { return None };
    (mark["meta"]["key"] == "mark").then_some(())?;
    Some(Asks::Mark(number(value)?, number(mask)?))
}

fn number(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

fn range(value: &Value) -> Option<(u16, u16)> {
    let port = |value: &Value| u16::try_from(value.as_u64()?).ok();
    match value["range"].as_array().map(Vec::as_slice) {
        Some([from, to]) => Some((port(from)?, port(to)?)),
        _ => port(value).map(|port| (port, port)),
    }
}

fn protocol(value: &Value) -> Option<u8> {
    match value.as_str() {
        Some(name) => iptables::protocol(name),
        None => u8::try_from(value.as_u64()?).ok(),
    }
}

fn network(value: &Value) -> Option<IpNetwork> {
    match value.get("prefix") {
        Some(prefix) => {
            let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
            IpNetwork::new(prefix["addr"].as_str()?.parse().ok()?, length).ok()
        }
        None => value.as_str()?.parse().ok(),
    }
}
