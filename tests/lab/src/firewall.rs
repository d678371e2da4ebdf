//! flannel's own iptables rules, which every packet of the kernel path crosses on a real node.

use std::{
    fmt::Display,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::Result;

use super::{Node, SubnetEnvV6};
use crate::command::run_with;

impl Node {
    /// Drops what connection tracking calls INVALID before anything else, as kube-proxy does.
    pub fn drop_invalid(&self) -> Result<()> {
        self.iptables("-I FORWARD -m conntrack --ctstate INVALID -j DROP")
    }

    /// Makes `vip`:`port` a Service over `backends` by the rules that kube-proxy writes, for TCP and UDP.
    /// With `masquerade` its backends see this node's address instead of the client's.
    pub fn load_service(
        &self,
        vip: Ipv4Addr,
        port: u16,
        backends: &[SocketAddr],
        masquerade: bool,
    ) -> Result<()> {
        let mut rules = vec![
            "*nat".to_owned(),
            ":KUBE-SERVICES - [0:0]".to_owned(),
            ":KUBE-MARK-MASQ - [0:0]".to_owned(),
            ":KUBE-POSTROUTING - [0:0]".to_owned(),
            "-I PREROUTING -j KUBE-SERVICES".to_owned(),
            "-I OUTPUT -j KUBE-SERVICES".to_owned(),
            "-I POSTROUTING -j KUBE-POSTROUTING".to_owned(),
            "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000".to_owned(),
            "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN".to_owned(),
            "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000".to_owned(),
            "-A KUBE-POSTROUTING -j MASQUERADE --random-fully".to_owned(),
        ];
        for protocol in ["tcp", "udp"] {
            let service = format!("KUBE-SVC-{protocol}");
            rules.push(format!(":{service} - [0:0]"));
            rules.push(format!("-A KUBE-SERVICES -d {vip}/32 -p {protocol} --dport {port} -j {service}"));
            if masquerade {
                rules.push(format!("-A {service} -j KUBE-MARK-MASQ"));
            }
            for (number, backend) in backends.iter().enumerate() {
                let end = format!("KUBE-SEP-{protocol}-{number}");
                let share = 1.0 / (backends.len() - number) as f64;
                rules.push(format!(":{end} - [0:0]"));
                rules.push(format!(
                    "-A {service} -m statistic --mode random --probability {share:.6} -j {end}"
                ));
                // A backend that reaches itself.
                rules.push(format!("-A {end} -s {}/32 -j KUBE-MARK-MASQ", backend.ip()));
                rules.push(format!("-A {end} -p {protocol} -j DNAT --to-destination {backend}"));
            }
        }
        rules.push("COMMIT\n".to_owned());
        self.restore("iptables-restore", &rules.join("\n"))?;
        self.drop_invalid()
    }

    /// Takes away what [`Node::load_service`] has made, as `kube-proxy --cleanup` does.
    pub fn unload_service(&self) -> Result<()> {
        for (hook, chain) in [
            ("PREROUTING", "KUBE-SERVICES"),
            ("OUTPUT", "KUBE-SERVICES"),
            ("POSTROUTING", "KUBE-POSTROUTING"),
        ] {
            self.iptables(&format!("-t nat -D {hook} -j {chain}"))?;
        }
        let saved = self.netns().run("iptables-save", &["-t", "nat"])?;
        let chains: Vec<&str> = saved
            .lines()
            .filter_map(|line| line.strip_prefix(':')?.split(' ').next())
            .filter(|chain| chain.starts_with("KUBE-"))
            .collect();
        chains.iter().try_for_each(|chain| self.iptables(&format!("-t nat -F {chain}")))?;
        chains.iter().try_for_each(|chain| self.iptables(&format!("-t nat -X {chain}")))
    }

    /// Takes all rules of iptables away and puts them back, in one step for each table, as whoever writes them wholesale
    /// does.
    pub fn rewrite_rules(&self) -> Result<()> {
        let rules = self.netns().run("iptables-save", &[])?;
        let mut restore = self.netns().command("iptables-restore");
        run_with(restore.arg("--wait"), &rules, Duration::from_secs(20)).map(drop)
    }

    fn restore(&self, program: &str, rules: &str) -> Result<()> {
        let mut restore = self.netns().command(program);
        run_with(restore.args(["--noflush", "--wait"]), rules, Duration::from_secs(20)).map(drop)
    }

    /// Runs `iptables` with `words`.
    pub fn iptables(&self, words: &str) -> Result<()> {
        let words: Vec<&str> = words.split_whitespace().collect();
        self.netns().run("iptables", &[&["--wait"], words.as_slice()].concat()).map(drop)
    }

    /// Has `nft` execute `commands`, all or none.
    pub fn nft(&self, commands: &str) -> Result<()> {
        let mut nft = self.netns().command("nft");
        run_with(nft.args(["-f", "-"]), commands, Duration::from_secs(20)).map(drop)
    }

    /// Loads what flannel loads with `--ip-masq`: its masquerade and forward rules, for this node's subnets.
    /// They turn on connection tracking in the node.
    pub fn load_flannel_rules(&self) -> Result<()> {
        let env = self.subnet_env()?;
        self.restore("iptables-restore", &flannel_rules(env.subnet, env.network, "224.0.0.0/4"))?;
        if let Some(env) = SubnetEnvV6::read(&self.subnet_file())? {
            self.restore("ip6tables-restore", &flannel_rules(env.subnet, env.network, "ff00::/8"))?;
        }
        Ok(())
    }
}

/// For a node with the subnet `pods`; groups are the addresses `multicast`.
fn flannel_rules(pods: impl Display, cluster: impl Display, multicast: &str) -> String {
    let masq = |rule: &str| format!("-A FLANNEL-POSTRTG {rule} -m comment --comment \"flanneld masq\" ");
    let rules = [
        "*nat".to_owned(),
        ":FLANNEL-POSTRTG - [0:0]".to_owned(),
        "-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG".to_owned(),
        masq("-m mark --mark 0x4000/0x4000") + "-j RETURN",
        masq(&format!("-s {pods} -d {cluster}")) + "-j RETURN",
        masq(&format!("-s {cluster} -d {pods}")) + "-j RETURN",
        masq(&format!("! -s {cluster} -d {pods}")) + "-j RETURN",
        masq(&format!("-s {cluster} ! -d {multicast}")) + "-j MASQUERADE --random-fully",
        masq(&format!("! -s {cluster} -d {cluster}")) + "-j MASQUERADE --random-fully",
        "COMMIT".to_owned(),
        "*filter".to_owned(),
        ":FLANNEL-FWD - [0:0]".to_owned(),
        "-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD".to_owned(),
        format!("-A FLANNEL-FWD -s {cluster} -m comment --comment \"flanneld forward\" -j ACCEPT"),
        format!("-A FLANNEL-FWD -d {cluster} -m comment --comment \"flanneld forward\" -j ACCEPT"),
        "COMMIT\n".to_owned(),
    ];
    rules.join("\n")
}
