//! Any text as what iptables-save and nft have written: what a fuzzer of the rules runs.

use super::{
    iptables, nft,
    rules::{RuleOptions, RuleSet},
};

/// Every rule there is, of either family.
fn rules() -> Vec<(RuleOptions, RuleSet)> {
    let networks = [("10.244.0.0/16", "10.244.1.0/24"), ("fd00:10::/32", "fd00:10:0:1::/64")];
    let parsed = networks.into_iter().filter_map(|(network, subnet)| {
        Some(RuleOptions {
            network: network.parse().ok()?,
            subnet: subnet.parse().ok()?,
            ip_masq: true,
            forward: true,
            random_fully: true,
            exempt_mark: Some(0x0800_0000),
            flow_mark: Some(0x1000_0000),
        })
    });
    parsed.map(|options| (options, RuleSet::new(&options))).collect()
}

/// What iptables-save has written.
///
/// # Panics
/// What is said of it, or would be given to iptables-restore, has other lines than its rules.
pub(crate) fn iptables_save(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    rules().iter().for_each(|(options, rules)| iptables::fuzz(&text, options.network, rules));
}

/// What `nft -j list table` has written.
///
/// # Panics
/// A table that lacks all rules is found to be right.
pub(crate) fn nft_list(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    rules().iter().for_each(|(_, rules)| nft::fuzz(&text, rules));
}
