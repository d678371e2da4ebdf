//! Rules that somebody changes come back.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use flannel_lab::{Agent, AgentOptions, FastPath, Lab, command::run_with, eventually, in_lab};

use super::{
    golden::{check_rules, nat},
    node::{Mode, REPAIR, cluster, run},
};

/// Looks by the clock are ten minutes apart, so that what comes back does so because it was noticed.
const NOTICED: [&str; 2] = ["--ip-masq", "--iptables-resync=600"];

/// Does `damage` and waits until the agent says that it has repaired something.
fn await_repair(agent: &Agent, what: &str, damage: impl FnOnce() -> Result<()>) -> Result<()> {
    let repaired = || agent.log().matches("restored rules").count();
    let before = repaired();
    let start = Instant::now();
    damage().context(what.to_owned())?;
    eventually(REPAIR, what, || {
        ensure!(repaired() > before, "no repair");
        Ok(())
    })?;
    println!("{what}: repaired after {} ms", start.elapsed().as_millis());
    Ok(())
}

fn repairs(lab: &Lab, mode: Mode) -> Result<()> {
    let mut cluster = cluster(lab, mode, 1, &NOTICED)?;
    let member = &mut cluster.members[0];
    let node = &member.node;
    // Each damage is done in one step, so that a repair does not come between.
    let damage = |what: &str, table: &str, lines: &[String]| -> Result<()> {
        let mut restore = node.netns().command(&format!("{}-restore", mode.iptables()));
        let input = format!("*{table}\n{}\nCOMMIT\n", lines.join("\n"));
        await_repair(&member.agent, what, || run_with(restore.arg("--noflush"), &input, REPAIR).map(drop))?;
        check_rules(node, mode, &[]).context(what.to_owned())
    };
    let rules = nat(node, &[])?;
    let delete = |rule: &String| rule.replacen("-A", "-D", 1);
    damage("POSTROUTING was flushed", "nat", &["-F POSTROUTING".to_owned()])?;
    damage("a rule was deleted", "nat", &[delete(&rules[4])])?;
    damage("a rule was moved to the end", "nat", &[delete(&rules[4]), rules[4].clone()])?;
    damage("the forward rules were flushed", "filter", &["-F FLANNEL-FWD".to_owned()])?;
    let gone = ["-F FLANNEL-POSTRTG".to_owned(), delete(&rules[2]), "-X FLANNEL-POSTRTG".to_owned()];
    damage("the chain was deleted", "nat", &gone)?;
    member.agent.check_running()
}

#[test]
fn rules_of_iptables_nft_come_back_whole_and_in_order() -> Result<()> {
    in_lab(|lab| repairs(lab, Mode::IptablesNft))
}

#[test]
fn rules_of_iptables_legacy_come_back_whole_and_in_order() -> Result<()> {
    in_lab(|lab| repairs(lab, Mode::IptablesLegacy))
}

#[test]
fn rules_of_nftables_come_back_whole_and_in_order() -> Result<()> {
    in_lab(|lab| {
        let mode = Mode::Nftables;
        let cluster = cluster(lab, mode, 1, &NOTICED)?;
        let node = &cluster.members[0].node;
        let c = node.subnet_env()?.network;
        let damage = |what: &str, words: &str| -> Result<()> {
            await_repair(&cluster.members[0].agent, what, || run(node, "nft", words).map(drop))?;
            check_rules(node, mode, &[]).context(what.to_owned())
        };
        damage("the table was deleted", "delete table ip flannel-ipv4")?;
        damage("a chain was flushed", "flush chain ip flannel-ipv4 postrtg")?;
        let add = "add rule ip flannel-ipv4 forward ip";
        let swapped =
            format!("flush chain ip flannel-ipv4 forward ; {add} daddr {c} accept ; {add} saddr {c} accept");
        damage("rules were swapped", &swapped)?;
        damage("everything was flushed", "flush ruleset")
    })
}

#[test]
fn blackhole_route_is_added_and_comes_back() -> Result<()> {
    in_lab(|lab| {
        let etcd = lab.etcd()?;
        let node = lab.node()?;
        let flags = vec!["--ip-blackhole-route".to_owned(), "--iptables-resync=1".to_owned()];
        let _agent = node.agent(&etcd, AgentOptions { fast_path: FastPath::Off, flags })?;
        let subnet = node.subnet_env()?.subnet;
        let there = || {
            let routes = node.netns().ip("route show type blackhole")?;
            ensure!(routes.trim() == format!("blackhole {subnet}"), "there is {routes:?}");
            Ok(())
        };
        eventually(REPAIR, "the route is added", there)?;
        node.netns().ip(&format!("route del blackhole {subnet}"))?;
        eventually(REPAIR, "the route is added again", there)
    })
}
