//! The rules there are to be, and those there are.

use anyhow::{Context as _, Result, ensure};
use flannel_lab::{Node, eventually};

use super::node::{Mode, REPAIR, run};

/// The rules of a table, as `iptables-save` writes them.
pub(crate) fn saved(node: &Node, mode: Mode, table: &str) -> Result<Vec<String>> {
    let text = run(node, &format!("{}-save", mode.iptables()), &format!("-t {table}"))?;
    Ok(text.lines().filter(|line| line.starts_with("-A ")).map(str::to_owned).collect())
}

/// What the table nat holds with `--ip-masq`; `others` stand after the exemptions.
pub(crate) fn nat(node: &Node, others: &[&str]) -> Result<Vec<String>> {
    let env = node.subnet_env()?;
    let (p, c) = (env.subnet, env.network);
    let exempt = "-m comment --comment \"flanneld exempt\" -j RETURN";
    let range = format!("{}-{}", p.network(), p.broadcast());
    let mut rules = vec![
        format!("POSTROUTING -s {p} -m mark --mark 0x40/0x4040 {exempt}"),
        format!(
            "POSTROUTING -s {p} -d {c} -m iprange ! --dst-range {range} -m mark ! --mark 0x4000/0x4000 {exempt}"
        ),
    ];
    rules.extend(others.iter().map(|rule| format!("POSTROUTING {rule}")));
    let masq = "-m comment --comment \"flanneld masq\" -j";
    rules.push(format!("POSTROUTING {masq} FLANNEL-POSTRTG"));
    for rule in [
        format!("-m mark --mark 0x4000/0x4000 {masq} RETURN"),
        format!("-s {p} -d {c} {masq} RETURN"),
        format!("-s {c} -d {p} {masq} RETURN"),
        format!("! -s {c} -d {p} {masq} RETURN"),
        format!("-s {c} ! -d 224.0.0.0/4 {masq} MASQUERADE --random-fully"),
        format!("! -s {c} -d {c} {masq} MASQUERADE --random-fully"),
    ] {
        rules.push(format!("FLANNEL-POSTRTG {rule}"));
    }
    Ok(rules.into_iter().map(|rule| format!("-A {rule}")).collect())
}

/// What the table filter holds.
pub(crate) fn filter(node: &Node) -> Result<Vec<String>> {
    let c = node.subnet_env()?.network;
    let forward = "-m comment --comment \"flanneld forward\" -j";
    Ok(vec![
        format!("-A FORWARD {forward} FLANNEL-FWD"),
        format!("-A FLANNEL-FWD -s {c} {forward} ACCEPT"),
        format!("-A FLANNEL-FWD -d {c} {forward} ACCEPT"),
    ])
}

/// What the table mangle holds.
pub(crate) fn mangle(node: &Node) -> Result<Vec<String>> {
    let c = node.subnet_env()?.network;
    let flow = "-m comment --comment \"flanneld flow\" -j";
    Ok(vec![
        format!("-A POSTROUTING {flow} FLANNEL-FLOW"),
        format!("-A FLANNEL-FLOW -s {c} -d {c} {flow} MARK --set-xmark 0x0/0x1000"),
        format!(
            "-A FLANNEL-FLOW -s {c} -d {c} -m conntrack --ctstate SNAT,DNAT --ctorigdst {c} {flow} RETURN"
        ),
        format!(
            "-A FLANNEL-FLOW -s {c} -d {c} -m conntrack --ctstate ESTABLISHED {flow} MARK --set-xmark 0x1000/0x1000"
        ),
    ])
}

/// What nft lists of our table, without what it says in words of its version.
pub(crate) fn nft_rules(node: &Node) -> Result<Vec<String>> {
    let text = run(node, "nft", "-s list table ip flannel-ipv4")?;
    let lines = text.lines().map(str::trim).filter(|line| line.starts_with("chain ") || is_rule(line));
    Ok(lines.map(|line| line.replace("0x000000", "0x").replace("0x0000", "0x")).collect())
}

pub(crate) fn is_rule(line: &str) -> bool {
    line.starts_with("ip ") || line.starts_with("meta ")
}

pub(crate) fn nft_golden(node: &Node) -> Result<Vec<String>> {
    let env = node.subnet_env()?;
    let (p, c) = (env.subnet, env.network);
    let text = format!(
        "chain exempt {{
        meta mark & 0x4040 == 0x40 ip saddr {p} snat to ip saddr
        meta mark & 0x4000 != 0x4000 ip saddr {p} ip daddr {c} ip daddr != {p} snat to ip saddr
        chain postrtg {{
        meta mark & 0x4000 == 0x4000 return
        ip saddr {p} ip daddr {c} return
        ip saddr {c} ip daddr {p} return
        ip saddr != {c} ip daddr {p} return
        ip saddr {c} ip daddr != 224.0.0.0/4 masquerade fully-random
        ip saddr != {c} ip daddr {c} masquerade fully-random
        chain forward {{
        ip saddr {c} accept
        ip daddr {c} accept
        chain established {{
        ip saddr {c} ip daddr {c} meta mark set meta mark & 0xffffefff
        ip saddr {c} ip daddr {c} ct status snat,dnat ct original ip daddr {c} return
        ip saddr {c} ip daddr {c} ct status 0x2000 return
        ip saddr {c} ip daddr {c} ct state established meta mark set meta mark | 0x1000"
    );
    Ok(text.lines().map(|line| line.trim().to_owned()).collect())
}

/// All rules are there, in order, and nothing else of flannel's. `others` are in nat's POSTROUTING.
pub(crate) fn check_rules(node: &Node, mode: Mode, others: &[&str]) -> Result<()> {
    if mode == Mode::Nftables {
        let (rules, golden) = (nft_rules(node)?, nft_golden(node)?);
        ensure!(rules == golden, "nft has\n{}\nwanted\n{}", rules.join("\n"), golden.join("\n"));
        run(node, "nft", "list table ip6 flannel-ipv6").context("the other family's table")?;
        return Ok(());
    }
    for (table, golden) in [("nat", nat(node, others)?), ("filter", filter(node)?), ("mangle", mangle(node)?)]
    {
        let rules = saved(node, mode, table)?;
        ensure!(rules == golden, "there is\n{}\nwanted\n{}", rules.join("\n"), golden.join("\n"));
    }
    Ok(())
}

pub(crate) fn await_rules(node: &Node, mode: Mode, others: &[&str], what: &str) -> Result<()> {
    eventually(REPAIR, what, || check_rules(node, mode, others))
}
