//! A cluster of stock flannel becomes one of ours and stock flannel again, node by node, under traffic.

use std::{net::Ipv4Addr, thread::sleep, time::Duration};

use anyhow::{Result, bail, ensure};
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use flannel_common::reason::{Direction, Reason};
use flannel_lab::{
    Agent, AgentOptions, CONVERGENCE, Etcd, FastPath, Lab, Node, Pod, Stock, SubnetEnv,
    counters::Counters,
    eventually, in_lab,
    traffic::{Endpoint, Paced, PacedReport, reachability},
};

/// What runs on a machine.
enum Daemon {
    Stock(Stock),
    Agent(Box<Agent>),
    /// Between the two.
    Nothing,
}

struct Machine {
    pod: Pod,
    daemon: Daemon,
    node: Node,
}

impl Machine {
    fn stock(lab: &Lab, etcd: &Etcd) -> Result<Self> {
        let node = lab.node()?;
        let stock = node.stock()?;
        stock.publish(etcd)?;
        SubnetEnv { ip_masq: true, ..node.subnet_env()? }.write(&node.subnet_file())?;
        node.load_flannel_rules()?;
        Ok(Self { pod: node.pod("pod1")?, daemon: Daemon::Stock(stock), node })
    }

    /// Stock flannel's watch: what it would have seen by now.
    fn sync(&mut self, etcd: &Etcd) -> Result<()> {
        match &mut self.daemon {
            Daemon::Stock(stock) => stock.sync(etcd),
            Daemon::Agent(_) | Daemon::Nothing => Ok(()),
        }
    }

    /// Stops stock flannel, which leaves everything as it is, and starts the agent.
    fn start_agent(&mut self, etcd: &Etcd, fast_path: FastPath) -> Result<()> {
        self.daemon = Daemon::Nothing;
        let options = AgentOptions { fast_path, flags: vec!["--ip-masq".to_owned()] };
        self.daemon = Daemon::Agent(Box::new(self.node.agent(etcd, options)?));
        Ok(())
    }

    /// Stops the agent, which leaves everything as it is, and starts stock flannel.
    fn start_stock(&mut self, etcd: &Etcd) -> Result<()> {
        if let Daemon::Agent(agent) = &mut self.daemon {
            let status = agent.terminate()?;
            ensure!(status.success(), "SIGTERM ended the agent with {status}");
        }
        self.daemon = Daemon::Nothing;
        self.daemon = Daemon::Stock(self.node.stock_again(etcd)?);
        Ok(())
    }

    /// What must outlive a swap: device and MAC, its address, the file for the CNI plugin, and flannel's rules,
    /// in their order.
    fn identity(&self) -> Result<String> {
        let link = self.node.netns().ip("-o link show dev flannel.1")?;
        let mac = link.split("link/ether ").nth(1).unwrap_or_default().split(' ').next().unwrap_or_default();
        let index = link.split(':').next().unwrap_or_default();
        let address = self.node.netns().ip("-4 -br addr show dev flannel.1")?;
        let mut rules = String::new();
        for table in ["nat", "filter"] {
            let all = self.node.netns().run("iptables-save", &["-t", table])?;
            // The exemptions are ours alone; stock flannel lets them be.
            let flannels =
                all.lines().filter(|rule| rule.contains("flanneld") && !rule.contains("flanneld exempt"));
            flannels.for_each(|rule| rules.extend([rule, "\n"]));
        }
        Ok(format!("{index} {mac} {} {:?}\n{rules}", address.trim(), self.node.subnet_env()?))
    }
}

struct Swaps {
    table: Table,
    machines: Vec<Machine>,
    etcd: Etcd,
}

/// A store for nodes that keep the subnets of stock flannel, which are none that the lab's nodes choose from.
fn etcd(lab: &Lab) -> Result<Etcd> {
    let etcd = lab.etcd()?;
    etcd.configure_all_subnets()?;
    Ok(etcd)
}

impl Swaps {
    fn start(lab: &Lab) -> Result<Self> {
        let etcd = etcd(lab)?;
        let mut machines = (0..3).map(|_| Machine::stock(lab, &etcd)).collect::<Result<Vec<_>>>()?;
        for machine in &mut machines {
            machine.sync(&etcd)?;
        }
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        table.set_header(["node", "swap", "flow", "sent", "lost", "longest gap ms"]);
        let swaps = Self { table, machines, etcd };
        swaps.await_reachable()?;
        Ok(swaps)
    }

    fn pods(&self) -> Vec<Endpoint> {
        self.machines.iter().map(|machine| machine.pod.endpoint()).collect()
    }

    fn await_reachable(&self) -> Result<()> {
        let pods = self.pods();
        eventually(CONVERGENCE, "every pod reaches every pod", || reachability(&pods).check_complete())
    }

    /// Swaps one machine's daemon under 1 kHz each way, between pods and between host and pod, and fails if
    /// a packet is lost or anything that must stay does not.
    fn swap(
        &mut self,
        at: usize,
        name: &str,
        swap: impl FnOnce(&mut Machine, &Etcd) -> Result<()>,
    ) -> Result<()> {
        let other = (at + 1) % self.machines.len();
        let (own, peer) = (&self.machines[at], &self.machines[other]);
        let pods = Paced::usual(&own.pod.endpoint(), &peer.pod.endpoint())?;
        let host = Paced::usual(&own.node.overlay_endpoint()?, &peer.pod.endpoint())?;
        sleep(Duration::from_millis(500));
        let (before, leases) = (own.identity()?, self.etcd.leases()?);
        let outcome = swap(&mut self.machines[at], &self.etcd);
        // Stock flannel renews; the others see an event.
        let synced = self.machines.iter_mut().try_for_each(|machine| machine.sync(&self.etcd));
        sleep(Duration::from_millis(1500));
        let (pods, host) = (pods.stop()?, host.stop()?);
        outcome.and(synced)?;
        self.row(at, name, "pod to pod", &pods);
        self.row(at, name, "host to pod", &host);
        pods.check_lossless()?;
        host.check_lossless()?;
        let after = self.machines[at].identity()?;
        ensure!(before == after, "before the swap {before}\nafter it       {after}");
        let now = self.etcd.leases()?;
        ensure!(leases == now, "leases before {leases:?}\nafter {now:?}");
        self.await_reachable()
    }

    fn row(&mut self, at: usize, name: &str, flow: &str, report: &PacedReport) {
        for (arrow, loss) in [("out", &report.forward), ("in", &report.backward)] {
            self.table.add_row([
                self.machines[at].node.name(),
                name.to_owned(),
                format!("{flow}, {arrow}"),
                loss.sent.to_string(),
                loss.lost().to_string(),
                loss.longest_gap.as_millis().to_string(),
            ]);
        }
    }
}

fn rolling(fast_path: FastPath) -> Result<()> {
    in_lab(|lab| {
        let mut swaps = Swaps::start(lab)?;
        for at in 0..swaps.machines.len() {
            swaps.swap(at, "stock to ours", |machine, etcd| machine.start_agent(etcd, fast_path))?;
        }
        for at in 0..swaps.machines.len() {
            swaps.swap(at, "ours to stock", Machine::start_stock)?;
        }
        println!("fast path {}:\n{}", fast_path.name(), swaps.table);
        Ok(())
    })
}

/// Programs outlive the agent, and stock flannel does not keep their maps: after a while they leave everything to
/// the kernel's path, which it keeps.
#[test]
fn after_a_rollback_stock_flannel_has_the_say() -> Result<()> {
    in_lab(|lab| {
        let etcd = etcd(lab)?;
        let mut machines = [Machine::stock(lab, &etcd)?, Machine::stock(lab, &etcd)?];
        let [rolled, peer] = &mut machines;
        rolled.sync(&etcd)?;
        peer.sync(&etcd)?;
        let flags = ["--ip-masq", "--fast-path-hold=5"].map(str::to_owned).to_vec();
        rolled.daemon = Daemon::Nothing;
        rolled.daemon = Daemon::Agent(Box::new(
            rolled.node.agent(&etcd, AgentOptions { fast_path: FastPath::All, flags })?,
        ));
        let pods = [rolled.pod.endpoint(), peer.pod.endpoint()];
        eventually(CONVERGENCE, "the pods reach each other", || reachability(&pods).check_complete())?;
        let bpffs = rolled.node.bpffs();
        let fast = Counters::read(&bpffs)?;
        ensure!(fast.get(Direction::Egress, Reason::EncapPod).packets > 0, "not on the fast path: {fast}");

        rolled.start_stock(&etcd)?;
        let Daemon::Stock(stock) = &mut peer.daemon else { bail!("the peer runs stock flannel") };
        stock.change_public_ip(Ipv4Addr::new(192, 168, 77, 99))?;
        stock.publish(&etcd)?;
        rolled.sync(&etcd)?;
        eventually(CONVERGENCE, "the pods reach each other again", || reachability(&pods).check_complete())?;
        // An error from the address that was may have told the programs of it before.
        eventually(CONVERGENCE, "the agent is trusted no more", || {
            reachability(&pods).check_complete()?;
            let lapsed = Counters::read(&bpffs)?;
            ensure!(lapsed.get(Direction::Egress, Reason::Lapsed).packets > 0, "{lapsed}");
            Ok(())
        })
    })
}

/// flannel up to 0.17 has its leases in etcd's v2 store: the v3 store has the network's configuration at first, and a
/// lease of each node that has gone on. Neither daemon sees the leases of the other's.
#[test]
fn nodes_whose_leases_are_in_another_store_stay_reached_until_they_come() -> Result<()> {
    in_lab(|lab| {
        let Swaps { machines, etcd, .. } = &mut Swaps::start(lab)?;
        for subnet in etcd.leases()?.into_keys() {
            etcd.delete_lease(subnet)?;
        }
        let pods: Vec<Endpoint> = machines.iter().map(|machine| machine.pod.endpoint()).collect();
        for at in 0..machines.len() {
            let traffic = [1, 2].map(|next| Paced::usual(&pods[at], &pods[(at + next) % pods.len()]));
            let before = machines[at].identity()?;
            machines[at].start_agent(etcd, FastPath::Flow)?;
            let after = machines[at].identity()?;
            ensure!(before == after, "before {before}\nafter  {after}");
            ensure!(etcd.leases()?.len() == at + 1, "{:?}", etcd.leases()?);
            eventually(CONVERGENCE, "every pod reaches every pod", || reachability(&pods).check_complete())?;
            for one in traffic {
                one?.stop()?.check_lossless()?;
            }
            let Daemon::Agent(agent) = &machines[at].daemon else { bail!("the agent runs") };
            let said = agent.log().contains("peers that have no lease in etcd");
            ensure!(said == (at < 2), "{}", agent.log());
        }
        // Now every lease is there, and one that goes is gone.
        let gone = machines[2].node.subnet_env()?.subnet;
        machines[2].daemon = Daemon::Nothing;
        etcd.delete_lease(gone)?;
        eventually(CONVERGENCE, "a peer that leaves is forgotten", || {
            let route = machines[0].node.netns().ip(&format!("route show {gone}"))?;
            ensure!(route.is_empty(), "{route}");
            Ok(())
        })
    })
}

#[test]
fn rolling_swap_with_all_loses_nothing() -> Result<()> {
    rolling(FastPath::All)
}

#[test]
fn rolling_swap_with_flow_loses_nothing() -> Result<()> {
    rolling(FastPath::Flow)
}

#[test]
fn rolling_swap_with_off_loses_nothing() -> Result<()> {
    rolling(FastPath::Off)
}
