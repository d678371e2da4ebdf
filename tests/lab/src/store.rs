//! etcd, as flannel uses it.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use flannel_agent::values::Mac;
use ipnetwork::{Ipv4Network, Ipv6Network};
use serde_json::Value;

use super::{Lab, Netns, teardown};
use crate::{
    command::{Daemon, run_with},
    wait::eventually,
};

/// Prefix of flannel's keys, by default.
pub const PREFIX: &str = "/coreos.com/network";

/// Configuration of the lab's cluster. Tests take subnets for others beside those that nodes choose by chance.
const CONFIG: &str = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.16.0","SubnetMax":"10.244.63.0","Backend":{"Type":"vxlan"}}"#;

/// IPv6 network of the lab's clusters that have one.
pub const NETWORK_V6: &str = "fd00:10:244::/48";

/// etcd's name, where its peers would reach it, and both as a cluster of one.
const NAME: &str = "lab";
const PEER_URL: &str = "http://127.0.0.1:2380";
const CLUSTER: &str = "lab=http://127.0.0.1:2380";

/// Life of a lease, seconds, as flannel grants it.
const LEASE_SECONDS: u32 = 86_400;

/// One etcd server with its data, which survives [`Etcd::stop`].
#[derive(Debug)]
pub struct Etcd {
    netns: Netns,
    endpoint: String,
    data: PathBuf,
    log: PathBuf,
    daemon: Option<Daemon>,
    /// It serves the v2 store, too.
    v2: bool,
}

impl Etcd {
    pub(super) fn start_in(lab: &Lab, netns: &Netns, address: Ipv4Addr) -> Result<Self> {
        let mut etcd = Self {
            netns: netns.clone(),
            endpoint: format!("http://{address}:2379"),
            data: teardown::etcd_directory(lab.id()),
            log: lab.dir().join("etcd.log"),
            daemon: None,
            v2: false,
        };
        etcd.start()?;
        etcd.configure()?;
        Ok(etcd)
    }

    /// Writes the network configuration.
    pub fn configure(&self) -> Result<()> {
        self.put(&format!("{PREFIX}/config"), CONFIG)
    }

    /// Moves the network configuration to the v2 store, which it serves from now on, before any agent starts.
    pub fn configure_v2(&mut self) -> Result<()> {
        self.stop()?;
        self.v2 = true;
        self.start()?;
        self.delete(&format!("{PREFIX}/config"))?;
        self.ctl_v2(&["mk", &format!("{PREFIX}/config"), CONFIG]).map(drop)
    }

    /// Runs `etcdctl` against its v2 store; its standard output.
    pub fn ctl_v2(&self, args: &[&str]) -> Result<String> {
        let mut command = self.netns.command("etcdctl");
        command.env("ETCDCTL_API", "2").args(["--endpoints", &self.endpoint]).args(args);
        run_with(&mut command, "", Duration::from_secs(15))
    }

    /// Writes a lease into its v2 store, for as long as flannel's live.
    pub(super) fn put_lease_v2(&self, subnet: Ipv4Network, attrs: &str) -> Result<()> {
        self.ctl_v2(&["set", "--ttl", &LEASE_SECONDS.to_string(), &lease_key(subnet), attrs]).map(drop)
    }

    /// All leases in its v2 store: subnet and JSON.
    pub fn leases_v2(&self) -> Result<BTreeMap<Ipv4Network, Value>> {
        let mut leases = BTreeMap::new();
        for key in self.ctl_v2(&["ls", &format!("{PREFIX}/subnets")])?.lines() {
            let subnet = key.rsplit('/').next().unwrap_or_default().replacen('-', "/", 1);
            let value = self.ctl_v2(&["get", key])?;
            let value = serde_json::from_str(&value).with_context(|| format!("{key}: {value}"))?;
            leases.insert(subnet.parse().with_context(|| format!("key {key}"))?, value);
        }
        Ok(leases)
    }

    /// URL its clients use.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Starts it with the data it had, and waits until it answers.
    pub fn start(&mut self) -> Result<()> {
        let mut command = self.netns.command("etcd");
        command.args(["--name", NAME, "--data-dir"]).arg(&self.data);
        command.args(["--listen-client-urls", &self.endpoint, "--advertise-client-urls", &self.endpoint]);
        // One member: it elects itself, and need not wait a second to do so.
        command.args([
            "--heartbeat-interval",
            "50",
            "--election-timeout",
            "250",
            "--logger",
            "zap",
            "--log-level",
            "warn",
        ]);
        if self.v2 {
            command.arg("--enable-v2=true");
        }
        command.args(["--listen-peer-urls", PEER_URL, "--initial-advertise-peer-urls", PEER_URL]);
        command.args(["--initial-cluster", CLUSTER]);
        let daemon = self.daemon.insert(Daemon::spawn(&mut command, &self.log)?);
        let netns = self.netns.clone();
        let endpoint = self.endpoint.clone();
        eventually(Duration::from_secs(20), "etcd answers", || {
            daemon.check_running()?;
            run_with(&mut client(&netns, &endpoint, &["endpoint", "health"]), "", Duration::from_secs(5))
        })?;
        Ok(())
    }

    /// Kills it. Its data stays.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill()?;
        }
        Ok(())
    }

    /// Its process.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.daemon.as_ref().context("etcd is not running")?.id())
    }

    /// Removes its data: what it starts with next is empty.
    pub fn wipe(&self) -> Result<()> {
        ensure!(self.daemon.is_none(), "etcd is running");
        std::fs::remove_dir_all(&self.data).with_context(|| format!("remove {}", self.data.display()))
    }

    /// Writes what it holds now to a file, for [`Etcd::restore`].
    pub fn back_up(&self) -> Result<()> {
        let file = self.backup().display().to_string();
        run_with(
            &mut client(&self.netns, &self.endpoint, &["snapshot", "save", &file]),
            "",
            Duration::from_secs(15),
        )
        .map(drop)
    }

    /// Makes it hold what it held at the last [`Etcd::back_up`], in the way its manual says, while it is stopped.
    pub fn restore(&self) -> Result<()> {
        self.wipe()?;
        let mut command = self.netns.command("etcdctl");
        command.env("ETCDCTL_API", "3").args(["snapshot", "restore"]).arg(self.backup());
        command.arg("--data-dir").arg(&self.data).args(["--name", NAME]);
        command.args(["--initial-cluster", CLUSTER, "--initial-advertise-peer-urls", PEER_URL]);
        run_with(&mut command, "", Duration::from_secs(15)).map(drop)
    }

    fn backup(&self) -> PathBuf {
        self.data.with_extension("backup")
    }

    /// Makes it a cluster of both families, over `backend` ("vxlan", "host-gw"), before any agent starts.
    pub fn configure_dual(&self, backend: &str) -> Result<()> {
        self.configure_dual_by(&format!(r#"{{"Type":"{backend}"}}"#))
    }

    /// Lets nodes have any subnet of the network: those of stock flannel, too, which a node is to keep.
    pub fn configure_all_subnets(&self) -> Result<()> {
        self.put(&format!("{PREFIX}/config"), r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#)
    }

    /// The same with `vxlan`, and routes past the tunnel to nodes on the same link.
    pub fn configure_dual_direct_routing(&self) -> Result<()> {
        self.configure_dual_by(r#"{"Type":"vxlan","DirectRouting":true}"#)
    }

    fn configure_dual_by(&self, backend: &str) -> Result<()> {
        self.put(
            &format!("{PREFIX}/config"),
            &format!(
                r#"{{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"{NETWORK_V6}","Backend":{backend}}}"#
            ),
        )
    }

    /// Makes it a cluster of IPv6 alone.
    pub fn configure_v6_only(&self, backend: &str) -> Result<()> {
        self.put(
            &format!("{PREFIX}/config"),
            &format!(
                r#"{{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"{NETWORK_V6}","Backend":{{"Type":"{backend}"}}}}"#
            ),
        )
    }

    /// Runs `etcdctl` against it; its standard output.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        run_with(&mut client(&self.netns, &self.endpoint, args), "", Duration::from_secs(15))
    }

    /// Writes `value` to `key`, without a lease.
    pub fn put(&self, key: &str, value: &str) -> Result<()> {
        self.ctl(&["put", key, value]).map(drop)
    }

    /// Deletes `key`.
    pub fn delete(&self, key: &str) -> Result<()> {
        self.ctl(&["del", key]).map(drop)
    }

    /// Writes the lease of `subnet` as flannel does: under a new etcd lease of one day.
    pub fn put_lease(&self, subnet: Ipv4Network, attrs: &str) -> Result<()> {
        self.put_lease_at(&lease_key(subnet), attrs)
    }

    /// The same of a lease whose key is `key`.
    pub(super) fn put_lease_at(&self, key: &str, attrs: &str) -> Result<()> {
        let granted = self.ctl(&["lease", "grant", &LEASE_SECONDS.to_string()])?;
        let id = granted.split(' ').nth(1).with_context(|| format!("lease grant answered {granted:?}"))?;
        self.ctl(&["put", key, attrs, "--lease", id]).map(drop)
    }

    /// Deletes the lease of `subnet`.
    pub fn delete_lease(&self, subnet: Ipv4Network) -> Result<()> {
        self.delete(&lease_key(subnet))
    }

    /// All leases with IPv4: subnet and JSON.
    pub fn leases(&self) -> Result<BTreeMap<Ipv4Network, Value>> {
        let mut leases = BTreeMap::new();
        for (key, value) in self.lease_keys()? {
            let v4 = key.split('&').next().unwrap_or_default().replacen('-', "/", 1);
            if v4 != "0.0.0.0/0" {
                leases.insert(v4.parse().with_context(|| format!("key {key}"))?, value);
            }
        }
        Ok(leases)
    }

    /// All leases with IPv6: subnet and JSON.
    pub fn leases_v6(&self) -> Result<BTreeMap<Ipv6Network, Value>> {
        let mut leases = BTreeMap::new();
        for (key, value) in self.lease_keys()? {
            if let Some((_, v6)) = key.split_once('&') {
                leases.insert(v6.replacen('-', "/", 1).parse().with_context(|| format!("key {key}"))?, value);
            }
        }
        Ok(leases)
    }

    /// All leases: what the key has behind the prefix, and JSON.
    pub fn lease_keys(&self) -> Result<BTreeMap<String, Value>> {
        let prefix = format!("{PREFIX}/subnets/");
        let answer = self.ctl(&["get", "--prefix", &prefix])?;
        let lines: Vec<&str> = answer.lines().collect();
        let mut leases = BTreeMap::new();
        for pair in lines.chunks(2) {
            let [key, value] = pair else { bail!("odd number of lines: {answer}") };
            let subnet = key.strip_prefix(&prefix).unwrap_or(key).to_owned();
            leases.insert(subnet, serde_json::from_str(value).with_context(|| format!("{key}: {value}"))?);
        }
        Ok(leases)
    }

    /// Discards all history up to now: a watch from an older revision is refused from here on.
    pub fn compact(&self) -> Result<()> {
        let status = self.ctl(&["endpoint", "status", "-w", "json"])?;
        let status: Value = serde_json::from_str(&status).context("endpoint status")?;
        let revision = &status[0]["Status"]["header"]["revision"];
        self.ctl(&["compact", &revision.to_string(), "--physical"]).map(drop)
    }

    /// Leaves it running when this process ends.
    pub(crate) fn release(mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.release();
        }
    }
}

/// JSON of a lease of type vxlan, its fields in the order flannel writes them.
pub(super) fn vxlan_lease(public_ip: Ipv4Addr, vni: u32, mac: Mac) -> String {
    format!(
        r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":{vni},"VtepMAC":"{mac}"}}}}"#
    )
}

fn lease_key(subnet: Ipv4Network) -> String {
    format!("{PREFIX}/subnets/{}-{}", subnet.network(), subnet.prefix())
}

fn client(netns: &Netns, endpoint: &str, args: &[&str]) -> Command {
    let mut command = netns.command("etcdctl");
    command.env("ETCDCTL_API", "3").args(["--endpoints", endpoint]).args(args);
    command
}
