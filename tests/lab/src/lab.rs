//! Clusters in network namespaces of their own.
//!
//! ```text
//!            underlay: bridge 192.168.77.254/24, etcd
//!          ┌───────────────────┼───────────────────┐
//!   node1 .1/24 eth0    node2 .2/24 eth0    node3 .3/24 eth0        Node: Agent, Stock or neither
//!      cni0 ── pods        cni0 ── pods        cni0 ── pods         Pod: by the CNI plugins
//! ```
//!
//! A [`Lab`] has an id of its own, so any number run beside each other; the machine's own namespace,
//! interfaces and settings are never touched. All of it goes when the `Lab` is dropped, and what a
//! killed process left behind goes when the next lab is made.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result, bail};
use ipnetwork::Ipv4Network;

use super::{
    Etcd, Netns, Node,
    command::last_lines,
    names::{Names, locked},
    output::say,
    owner,
    requirements::{kubernetes_available, lab_available},
    teardown,
};

/// Set, it makes labs stay when dropped, and prints how to enter and remove them.
pub const KEEP: &str = "FLANNEL_LAB_KEEP";

/// Address of the underlay's bridge: default route of every node, and where etcd listens.
pub const UNDERLAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 254);

/// Address of the `number`th node on the underlay, and the length of its prefix.
pub fn node_address(number: u8) -> Ipv4Network {
    Ipv4Network::new_checked(Ipv4Addr::new(192, 168, 77, number), 24).unwrap_or(LOCAL)
}

/// The same in IPv6: a router for nodes that have it.
pub const UNDERLAY_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0xfe);

/// IPv6 address of the `number`th node on the underlay, whose prefix has 64 bits.
pub fn node_address_v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number as u16)
}

const LOCAL: Ipv4Network = Ipv4Network::new_checked(Ipv4Addr::LOCALHOST, 32).unwrap();

/// A cluster and everything it runs on. Removed when dropped, also by a panic.
#[derive(Debug)]
pub struct Lab {
    names: Arc<Names>,
    dir: PathBuf,
    nodes: AtomicU8,
    underlay: Mutex<Option<Netns>>,
    /// Nothing is left to do when dropped.
    settled: bool,
}

/// Runs a test in a lab of its own: prints the logs if it fails, and fails if anything is left behind.
/// Skipped where [`lab_available`] says so.
pub fn in_lab(test: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    if lab_available()? { run_in_lab(test) } else { Ok(()) }
}

/// The same for a test that runs Kubernetes in its lab.
pub fn in_kubernetes_lab(test: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    if kubernetes_available()? { run_in_lab(test) } else { Ok(()) }
}

fn run_in_lab(test: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    let lab = Lab::new()?;
    let outcome = test(&lab);
    if let Err(error) = &outcome {
        // First, for the logs are long: whoever keeps only a part of the output keeps this.
        say(format_args!("failed: {error:#}"));
        print_logs(&lab.dir);
        return outcome;
    }
    lab.close()
}

impl Lab {
    /// An empty lab with an id no other has.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        sweep();
        Self::create(format!("flab-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// The lab of this name, of which there is one at a time on a machine.
    pub fn named(name: &str) -> Result<Self> {
        sweep();
        Self::create(format!("flab-{name}"))
    }

    /// Id of the lab that [`Lab::named`] makes, for [`teardown::remove`].
    pub fn id_of(name: &str) -> String {
        format!("flab-{name}")
    }

    fn create(id: String) -> Result<Self> {
        let dir = teardown::directory(&id);
        owner::claim(&id, &dir)?;
        let names = Arc::new(Names::new(id));
        Ok(Self { names, dir, nodes: AtomicU8::new(0), underlay: Mutex::default(), settled: false })
    }

    /// What every name of this lab begins with.
    pub fn id(&self) -> &str {
        self.names.id()
    }

    pub(crate) fn names(&self) -> &Arc<Names> {
        &self.names
    }

    /// Where its files are: logs, subnet files, bpffs mounts.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes a namespace `<id>-<name>`.
    pub fn netns(&self, name: &str) -> Result<Netns> {
        self.names.netns(name)
    }

    /// The namespace that joins the nodes, with a bridge `br0`; made on first use.
    pub fn underlay(&self) -> Result<Netns> {
        let mut underlay = locked(&self.underlay);
        if let Some(netns) = &*underlay {
            return Ok(netns.clone());
        }
        let netns = self.netns("underlay")?;
        // Left to itself, a bridge takes the lowest MAC of its ports: with a node that joins it could change under
        // the nodes that are there, whose neighbour entry is good for half a minute yet.
        netns.ip_batch(&format!(
            "link add br0 address 0e:00:00:00:77:fe type bridge forward_delay 0 stp_state 0 mcast_snooping 0\n\
             addr add {UNDERLAY_ADDRESS}/24 dev br0\n\
             addr add {UNDERLAY_ADDRESS_V6}/64 dev br0 nodad\n\
             link set br0 up\n"
        ))?;
        Ok(underlay.insert(netns).clone())
    }

    /// Another node on the underlay's bridge, its overlay not yet built.
    pub fn node(&self) -> Result<Node> {
        let underlay = self.underlay()?;
        let node = self.machine()?;
        let port = format!("node{}", node.number());
        underlay.ip_batch(&format!(
            "link add {port} type veth peer name eth0 netns {}\n\
             link set {port} master br0\n\
             link set {port} up\n",
            node.netns().name()
        ))?;
        node.connect(Some(UNDERLAY_ADDRESS))?;
        Ok(node)
    }

    /// Another node on the underlay's bridge, with IPv6 there, too.
    pub fn dual_node(&self) -> Result<Node> {
        let node = self.node()?;
        node.connect_v6(Some(UNDERLAY_ADDRESS_V6))?;
        Ok(node)
    }

    /// Two nodes joined by one veth and nothing else, for measuring.
    pub fn pair(&self) -> Result<(Node, Node)> {
        let (a, b) = (self.machine()?, self.machine()?);
        a.netns().ip(&format!("link add eth0 type veth peer name eth0 netns {}", b.netns().name()))?;
        a.connect(None)?;
        b.connect(None)?;
        Ok((a, b))
    }

    /// The same with IPv6, too.
    pub fn dual_pair(&self) -> Result<(Node, Node)> {
        let (a, b) = self.pair()?;
        a.connect_v6(None)?;
        b.connect_v6(None)?;
        Ok((a, b))
    }

    fn machine(&self) -> Result<Node> {
        let number = self.nodes.fetch_add(1, Ordering::Relaxed) + 1;
        if number >= 250 {
            bail!("a lab has at most 249 nodes");
        }
        Node::create(self, number)
    }

    /// etcd in the underlay, reachable by every node, holding flannel's usual configuration.
    pub fn etcd(&self) -> Result<Etcd> {
        Etcd::start_in(self, &self.underlay()?, UNDERLAY_ADDRESS)
    }

    /// etcd on a node, for a lab made by [`Lab::pair`], which has no underlay.
    pub fn etcd_on(&self, node: &Node) -> Result<Etcd> {
        Etcd::start_in(self, node.netns(), node.address())
    }

    /// Removes everything now, and fails if anything of it is left on the machine.
    pub fn close(mut self) -> Result<()> {
        self.settled = true;
        teardown::remove(self.id())?;
        let left = self.names.residue()?;
        if left.is_empty() { Ok(()) } else { bail!("left behind: {}", left.join(", ")) }
    }

    /// Leaves everything up after this process ends, until [`teardown::remove`].
    pub fn keep(mut self) -> Result<()> {
        self.settled = true;
        owner::disown(&self.dir)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        if std::thread::panicking() {
            print_logs(&self.dir);
        }
        let done = if std::env::var_os(KEEP).is_some() {
            say(format_args!("kept: {}, namespaces {}-*", self.dir.display(), self.id()));
            owner::disown(&self.dir)
        } else {
            teardown::remove(self.id())
        };
        if let Err(error) = done {
            say(format_args!("{error:#}"));
        }
    }
}

/// Removes labs whose owner was killed. What cannot be removed now is left for the next time.
pub fn sweep() {
    for id in teardown::labs().unwrap_or_default() {
        if owner::is_dead(&teardown::directory(&id)) {
            let _ = teardown::remove(&id);
        }
    }
}

/// Removes every lab of this process at once, where it is about to end without dropping them.
pub fn abandon() {
    for id in teardown::labs().unwrap_or_default() {
        if owner::is_own(&teardown::directory(&id)) {
            let _ = teardown::remove(&id);
        }
    }
}

/// Prints the end of every log of the lab, where a test has failed.
fn print_logs(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path.extension().is_some_and(|extension| extension == "log")
            && let Ok(bytes) = fs::read(&path)
        {
            let text = String::from_utf8_lossy(&bytes);
            say(format_args!("--- end of {}\n{}", path.display(), last_lines(&text, 40)));
        }
    }
}

/// Makes a directory and those above it.
pub fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))
}
