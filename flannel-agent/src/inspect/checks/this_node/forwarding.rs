//! Whether the kernel forwards pods' packets at all.

use std::collections::BTreeSet;

use crate::{
    control::snapshot::Snapshot,
    inspect::{
        Kernel,
        checks::{Finding, Surroundings},
    },
    values::Family,
};

/// Adds what was found.
pub(super) fn add(told: Option<&Snapshot>, kernel: &Kernel, around: &Surroundings, found: &mut Vec<Finding>) {
    for (family, forwarding) in &around.forwarding {
        let ways = ways(told, kernel, around, *family);
        // With IPv4 it is the interface by which a packet comes in that decides, with IPv6 the setting for all; an interface
        // can be made to forward without that.
        let known = around.forwarding_of.get(family);
        let of = |on: bool| -> Vec<&str> {
            let is_it = |name: &&str| known.and_then(|known| known.get(*name)) == Some(&on);
            ways.iter().map(String::as_str).filter(is_it).collect()
        };
        let (on, off) = (of(true), of(false));
        let name = match family {
            Family::V4 => "net.ipv4.ip_forward",
            Family::V6 => "net.ipv6.conf.all.forwarding",
        };
        found.push(match (forwarding, &off[..]) {
            (true, _) if *family == Family::V6 => Finding::ok("forwarding", format!("{name} = 1")),
            (true, []) => Finding::ok("forwarding", format!("{name} = 1")),
            (true, off) => {
                let settings: Vec<String> = off.iter().map(|name| setting(name)).collect();
                Finding::error(
                    "forwarding",
                    format!("{} = 0: no packet that comes in there is forwarded", settings.join(", ")),
                    format!("sysctl -w {}=1, and write it to /etc/sysctl.d", settings.join("=1 ")),
                )
            }
            (false, []) if !on.is_empty() => Finding::warning(
                "forwarding",
                format!(
                    "{name} = 0, though {} forward: an interface made from now on does not",
                    on.join(", ")
                ),
                format!("sysctl -w {name}=1, and write it to /etc/sysctl.d"),
            ),
            (false, _) => Finding::error(
                "forwarding",
                format!("{name} = 0: this node forwards no packet to or from its pods"),
                format!("sysctl -w {name}=1, and write it to /etc/sysctl.d"),
            ),
        });
    }
}

/// As `sysctl` takes it: a dot in a name is a slash.
fn setting(interface: &str) -> String {
    format!("net.ipv4.conf.{}.forwarding", interface.replace('.', "/"))
}

/// The interfaces by which packets of a family come in that are forwarded: from pods, from other nodes, from elsewhere.
fn ways(told: Option<&Snapshot>, kernel: &Kernel, around: &Surroundings, family: Family) -> BTreeSet<String> {
    let pods = around.gateways.iter().map(|index| kernel.name(*index));
    let devices =
        told.and_then(|told| told.backend.as_ref()).into_iter().flat_map(|backend| &backend.devices);
    let carries = devices.filter(|device| {
        device.networks.is_empty()
            || device.networks.iter().any(|network| Family::of_network(*network) == family)
    });
    let devices = carries.map(|device| device.name.clone());
    let tunnel = kernel.tunnels.get(&family).map(|tunnel| tunnel.device.name.clone());
    let external = told.and_then(|told| told.interface.as_ref()).map(|interface| interface.name.clone());
    pods.chain(devices).chain(tunnel).chain(external).collect()
}
