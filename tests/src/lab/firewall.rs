//! flannel's own iptables rules, which every packet of the kernel path crosses on a real node.

use std::time::Duration;

use anyhow::Result;
use flannel_common::map::FLOW_MARK;

use super::Node;
use crate::command::run_with;

impl Node {
    /// Loads the rule that marks the packets of established flows that nobody translates, behind all filters:
    /// the agent's programs learn flows from it.
    pub fn load_flow_rule(&self) -> Result<()> {
        let cluster = self.subnet_env()?.network;
        let rule = format!(
            "-t mangle -A POSTROUTING -s {cluster} -d {cluster} -m conntrack --ctstate ESTABLISHED \
             -m conntrack ! --ctstate SNAT,DNAT -j MARK --set-xmark {FLOW_MARK:#x}/{FLOW_MARK:#x}"
        );
        self.iptables(&rule)
    }

    /// Runs `iptables` with `words`.
    pub fn iptables(&self, words: &str) -> Result<()> {
        let words: Vec<&str> = words.split_whitespace().collect();
        self.netns().run("iptables", &[&["--wait"], words.as_slice()].concat()).map(drop)
    }

    /// Loads what flannel loads with `--ip-masq`: its masquerade and forward rules, for this node's subnet.
    /// They turn on connection tracking in the node.
    pub fn load_flannel_rules(&self) -> Result<()> {
        let env = self.subnet_env()?;
        let (pods, cluster) = (env.subnet, env.network);
        let masq = |rule: &str| format!("-A FLANNEL-POSTRTG {rule} -m comment --comment \"flanneld masq\" ");
        let rules = [
            "*nat".to_owned(),
            ":FLANNEL-POSTRTG - [0:0]".to_owned(),
            "-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG".to_owned(),
            masq("-m mark --mark 0x4000/0x4000") + "-j RETURN",
            masq(&format!("-s {pods} -d {cluster}")) + "-j RETURN",
            masq(&format!("-s {cluster} -d {pods}")) + "-j RETURN",
            masq(&format!("! -s {cluster} -d {pods}")) + "-j RETURN",
            masq(&format!("-s {cluster} ! -d 224.0.0.0/4")) + "-j MASQUERADE --random-fully",
            masq(&format!("! -s {cluster} -d {cluster}")) + "-j MASQUERADE --random-fully",
            "COMMIT".to_owned(),
            "*filter".to_owned(),
            ":FLANNEL-FWD - [0:0]".to_owned(),
            "-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD".to_owned(),
            format!("-A FLANNEL-FWD -s {cluster} -m comment --comment \"flanneld forward\" -j ACCEPT"),
            format!("-A FLANNEL-FWD -d {cluster} -m comment --comment \"flanneld forward\" -j ACCEPT"),
            "COMMIT\n".to_owned(),
        ];
        let mut restore = self.netns().command("iptables-restore");
        run_with(restore.args(["--noflush", "--wait"]), &rules.join("\n"), Duration::from_secs(20))?;
        Ok(())
    }
}
