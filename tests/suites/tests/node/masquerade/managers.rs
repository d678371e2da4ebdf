//! What an earlier run, of whatever kind, has left.

use anyhow::{Result, ensure};
use flannel_lab::{AgentOptions, FastPath, Node, eventually, in_lab};

use super::{
    golden::{check_rules, filter, nat, saved},
    node::{DOCKER, Mode, REPAIR, cluster, configure, run},
    sources::masqueraded_throughout,
};

/// Everything of flannel's in either iptables, of either family.
fn iptables_left(node: &Node) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for program in ["iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"] {
        let text = run(node, &format!("{program}-save"), "")?;
        let flannels = |line: &&str| line.contains("FLANNEL") || line.contains("flanneld");
        left.extend(text.lines().filter(flannels).map(|line| format!("{program}: {line}")));
    }
    Ok(left)
}

#[test]
fn each_manager_removes_the_rules_of_the_other() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = cluster(lab, Mode::IptablesLegacy, 1, &["--ip-masq"])?;
        let (etcd, member) = (&cluster.etcd, &mut cluster.members[0]);
        for program in ["ip6tables-nft", "iptables-nft"] {
            run(&member.node, program, "-t nat -N FLANNEL-POSTRTG")?;
            run(&member.node, program, "-t nat -A POSTROUTING -j FLANNEL-POSTRTG")?;
            run(&member.node, program, "-N FLANNEL-FWD")?;
        }
        ensure!(iptables_left(&member.node)?.iter().any(|line| line.starts_with("iptables-legacy")));
        let (pod, outside) = (member.pod()?, lab.node()?.underlay_endpoint());
        masqueraded_throughout(&pod, &outside, member.node.address(), || {
            configure(etcd, Mode::Nftables)?;
            member.agent.terminate()?;
            member.agent.start_again()?;
            check_rules(&member.node, Mode::Nftables, &[])?;
            eventually(REPAIR, "the rules of iptables are removed", || {
                let left = iptables_left(&member.node)?;
                ensure!(left.is_empty(), "left: {left:#?}");
                Ok(())
            })
        })?;
        let docker = format!("-A POSTROUTING {DOCKER}");
        ensure!(saved(&member.node, Mode::IptablesLegacy, "nat")? == [docker], "docker's rule is to stay");

        configure(etcd, Mode::IptablesLegacy)?;
        member.agent.terminate()?;
        member.agent.start_again()?;
        check_rules(&member.node, Mode::IptablesLegacy, &[DOCKER])?;
        eventually(REPAIR, "the tables of nft are removed", || {
            let tables = run(&member.node, "nft", "list tables")?;
            ensure!(!tables.contains("flannel"), "{tables}");
            Ok(())
        })
    })
}

#[test]
fn without_ip_masq_only_exemption_and_forward_rules_are_left() -> Result<()> {
    in_lab(|lab| {
        let mode = Mode::IptablesNft;
        let mut cluster = cluster(lab, mode, 1, &["--ip-masq=true"])?;
        let member = &mut cluster.members[0];
        check_rules(&member.node, mode, &[DOCKER])?;
        member.agent.terminate()?;
        member.agent.set_flag("ip-masq", "false");
        member.agent.start_again()?;
        let golden = nat(&member.node, &[DOCKER])?;
        let rules = saved(&member.node, mode, "nat")?;
        ensure!(rules == golden[..3], "there is {rules:#?}");
        ensure!(saved(&member.node, mode, "filter")? == filter(&member.node)?);
        ensure!(!member.node.subnet_env()?.ip_masq, "FLANNEL_IPMASQ is to be false");

        // Forward rules go, too, and with eBPF off there is nobody to set the mark.
        member.agent.terminate()?;
        member.agent.set_flag("iptables-forward-rules", "false");
        member.agent.set_flag("fast-path", "off");
        member.agent.start_again()?;
        let rules = saved(&member.node, mode, "nat")?;
        ensure!(rules == golden[1..3], "there is {rules:#?}");
        ensure!(saved(&member.node, mode, "filter")?.is_empty());
        Ok(())
    })
}

/// The rules a stock flannel has loaded become ours; the chains are its own, and stay. There is no moment
/// without them.
#[test]
fn rules_of_a_stock_node_are_taken_over() -> Result<()> {
    in_lab(|lab| {
        let etcd = lab.etcd()?;
        let (node, outside) = (lab.node()?, lab.node()?.underlay_endpoint());
        node.stock()?.publish(&etcd)?;
        node.load_flannel_rules()?;
        let pod = node.pod("pod1")?.endpoint();
        masqueraded_throughout(&pod, &outside, node.address(), || {
            let flags = vec!["--ip-masq".to_owned()];
            let mut agent = node.agent(&etcd, AgentOptions { fast_path: FastPath::Flow, flags })?;
            check_rules(&node, Mode::IptablesNft, &[])?;
            // And so are our own, after an agent that was killed.
            agent.kill()?;
            agent.start_again()?;
            check_rules(&node, Mode::IptablesNft, &[])
        })
    })
}
