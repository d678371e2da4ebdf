//! Flows to a Service whose backend is a pod on the client's bridge: the programs translate them and hand them over, for as long
//! as netfilter would do the same.

use std::{net::SocketAddr, thread::sleep, time::Duration};

use anyhow::{Result, ensure};
use flannel_common::reason::Reason;
use flannel_lab::{
    AgentOptions, CONVERGENCE, Cluster, FastPath, Lab, Member, eventually, in_lab,
    traffic::{Endpoint, Serving},
};

use crate::{packets, services::BACKEND_PORT, switched::seen_by_netfilter};

const PORT: u16 = 80;
/// Bytes that are sent at once, in aggregates.
const BULK: u64 = 16 << 20;

/// A Service of one family on the first node, its client there, and its backends beside it.
struct Site<'a> {
    member: &'a Member,
    iptables: &'static str,
    address: SocketAddr,
    client: Endpoint,
    serving: Serving,
}

impl Site<'_> {
    /// Leads what is for the Service to the backend with this number.
    fn lead_to(&self, backend: usize) -> Result<()> {
        let netns = self.member.node.netns();
        let to = self.serving.backends[backend].socket_address(BACKEND_PORT);
        let Self { iptables, address, .. } = self;
        netns.run(iptables, &["-w", "-t", "nat", "-F", "PREROUTING"])?;
        for protocol in ["tcp", "udp"] {
            let rule = format!(
                "-w -t nat -A PREROUTING -d {} -p {protocol} --dport {PORT} -j DNAT --to {to}",
                address.ip()
            );
            netns.run(iptables, &rule.split(' ').collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// What is done with the entries of connection tracking of a port of the client.
    fn conntrack(&self, verb: &str, protocol: &str, port: &str) -> Result<String> {
        let family = if self.address.is_ipv6() { "ipv6" } else { "ipv4" };
        let which = [verb, "-f", family, "-p", protocol, "--orig-port-src", port];
        self.member.node.netns().run("conntrack", &which)
    }

    /// Waits until a question and its answer are translated by the programs.
    fn await_fast(&self, what: &str, mut exchange: impl FnMut(u64) -> Result<()>) -> Result<()> {
        eventually(CONVERGENCE, what, || {
            let counted = self.member.counted(|| (0..10).try_for_each(&mut exchange))?;
            ensure!(packets(&counted, Reason::Translated) >= 16, "{counted}");
            Ok(())
        })
    }

    fn ask(&self, asker: &std::net::UdpSocket, backend: usize, number: u64) -> Result<()> {
        let (answered, from) = self.serving.ask(asker, number)?;
        ensure!(answered == backend, "another backend answered");
        ensure!(from.ip() == self.client.address(), "the backend is asked by {from}");
        Ok(())
    }
}

/// One node with a client and two backends, in a cluster of both families.
fn cluster(lab: &Lab, refresh: Duration) -> Result<Cluster> {
    let refresh = format!("--flow-refresh={}", refresh.as_secs());
    let options = AgentOptions::new(FastPath::Flow, &["--ip-masq", &refresh]);
    let cluster = Cluster::dual_pair(lab, 3, options)?;
    seen_by_netfilter(&cluster.members[0], true)?;
    cluster.await_pods()?;
    Ok(cluster)
}

/// The Service of each family.
fn sites(member: &Member) -> Result<[Site<'_>; 2]> {
    let [client, backends @ ..] = &member.pods[..] else { anyhow::bail!("no pods") };
    let v4 = backends.iter().map(flannel_lab::Pod::endpoint).collect::<Vec<_>>();
    let v6 = backends.iter().map(flannel_lab::Pod::endpoint_v6).collect::<Result<Vec<_>>>()?;
    let site = |iptables, address: &str, client, backends: &[Endpoint]| -> Result<Site<'_>> {
        let address = SocketAddr::new(address.parse()?, PORT);
        let serving = Serving::new(backends, BACKEND_PORT)?;
        let site = Site { member, iptables, address, client, serving };
        site.lead_to(0)?;
        Ok(site)
    };
    Ok([
        site("iptables", "10.96.0.10", client.endpoint(), &v4)?,
        site("ip6tables", "fd00:10:96::10", client.endpoint_v6()?, &v6)?,
    ])
}

#[test]
fn flows_to_a_service_of_their_own_node_are_handed_to_the_backend() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, Duration::from_secs(30))?;
        let member = &cluster.members[0];
        for site in sites(member)? {
            let asker = Serving::asker(&site.client, site.address)?;
            site.await_fast("questions are fast", |number| site.ask(&asker, 0, number))?;
            let counted = member.counted(|| (0..200).try_for_each(|number| site.ask(&asker, 0, number)))?;
            ensure!(packets(&counted, Reason::Translated) >= 390, "{counted}");
            // Its fragments are the kernel's.
            site.serving.ask_long(&asker, 1, 4_000)?;
            // After one answer it only ever goes one way, as logs and metrics do.
            let teller = Serving::asker(&site.client, site.address)?;
            site.ask(&teller, 0, 1)?;
            eventually(CONVERGENCE, "what is told is fast", || {
                let counted = member.counted(|| {
                    (0..20).try_for_each(|number| {
                        sleep(Duration::from_millis(5));
                        site.serving.tell(&teller, number).map(drop)
                    })
                })?;
                ensure!(packets(&counted, Reason::Translated) >= 15, "{counted}");
                Ok(())
            })?;

            let mut dialogue = site.serving.connect(&site.client, 0, site.address)?;
            site.await_fast("a connection is fast", |_| dialogue.exchanges(1))?;
            let counted = member.counted(|| dialogue.pour(BULK))?;
            ensure!(packets(&counted, Reason::Translated) > BULK / 1398 * 9 / 10, "{counted}");
            dialogue.exchanges(20)?;
            dialogue.close_at_the_server()?;

            // Beside it the same pods talk to each other, on the port of the Service's backend, too.
            let straight = site.serving.backends[0].socket_address(BACKEND_PORT);
            let direct = Serving::asker(&site.client, straight)?;
            eventually(CONVERGENCE, "a flow between the pods is fast beside it", || {
                let exchange =
                    |number| site.ask(&direct, 0, number).and_then(|()| site.ask(&asker, 0, number));
                let counted = member.counted(|| (0..10).try_for_each(exchange))?;
                let both = [Reason::SwitchPod, Reason::Translated].map(|reason| packets(&counted, reason));
                ensure!(both.into_iter().all(|packets| packets >= 16), "{counted}");
                Ok(())
            })?;
        }
        Ok(())
    })
}

/// From one port, one connection behind the other, to one backend and the other, ended by either side: none is translated as the
/// one before it was.
#[test]
fn a_port_that_is_used_again_is_led_to_where_the_rules_say() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, Duration::from_secs(30))?;
        for site in sites(&cluster.members[0])? {
            // Until the agent has asked the client's socket, a new one would count as part of one that is reset.
            let is_over = |port: &str| {
                eventually(CONVERGENCE, "it is over for connection tracking, too", || {
                    let shown = site.conntrack("-L", "tcp", port)?;
                    ensure!(shown.contains(" CLOSE "), "{shown}");
                    Ok(())
                })
            };
            for round in 0..6 {
                let backend = round % 2;
                site.lead_to(backend)?;
                let mut dialogue = site.serving.connect(&site.client, 21_000, site.address)?;
                ensure!(site.serving.backend(&dialogue)? == backend, "round {round}: the other backend");
                site.await_fast("a connection is fast", |_| dialogue.exchanges(1))?;
                match round / 2 {
                    0 => dialogue.reset().and_then(|()| is_over("21000"))?,
                    _ => dialogue.close_at_the_server()?,
                }
            }
            let mut dialogue = site.serving.connect(&site.client, 21_001, site.address)?;
            site.await_fast("a connection is fast", |_| dialogue.exchanges(1))?;
            dialogue.reset_at_the_server().and_then(|()| is_over("21001"))?;
            // A direct one from that port, to the port that the backend has: nothing is inherited.
            let straight = site.serving.backends[1].socket_address(BACKEND_PORT);
            let mut direct = site.serving.connect(&site.client, 21_000, straight)?;
            let counted = site.member.counted(|| direct.exchanges(10))?;
            ensure!(packets(&counted, Reason::Translated) == 0, "{counted}");
            direct.close_at_the_server()?;
        }
        Ok(())
    })
}

/// What is decided about it later holds: a rule, a deleted entry of connection tracking, another backend.
#[test]
fn what_is_decided_later_holds_for_flows_to_a_service_of_their_own_node() -> Result<()> {
    const REFRESH: Duration = Duration::from_secs(2);
    in_lab(|lab| {
        let cluster = cluster(lab, REFRESH)?;
        let netns = cluster.members[0].node.netns();
        for site in sites(&cluster.members[0])? {
            let [client, backend] = [&site.client, &site.serving.backends[0]].map(Endpoint::address);
            for (from, to) in [(client, backend), (backend, client)] {
                let mut dialogue = site.serving.connect(&site.client, 0, site.address)?;
                site.await_fast("a connection is fast", |_| dialogue.exchanges(1))?;
                let rule = format!("-s {from} -d {to} -j DROP");
                let rule = |verb: &str| {
                    let rule = format!("-w {verb} FORWARD {rule}");
                    netns.run(site.iptables, &rule.split(' ').collect::<Vec<_>>())
                };
                rule("-I")?;
                eventually(REFRESH * 3, "the rule holds", || {
                    let passed = dialogue.exchange_within(Duration::from_millis(300));
                    ensure!(passed.is_err(), "still exchanged");
                    Ok(())
                })?;
                rule("-D")?;
            }

            let asker = Serving::asker(&site.client, site.address)?;
            site.await_fast("questions are fast", |number| site.ask(&asker, 0, number))?;
            site.lead_to(1)?;
            (0..10).try_for_each(|number| site.ask(&asker, 0, number))?;
            let port = asker.local_addr()?.port().to_string();
            site.conntrack("-D", "udp", &port)?;
            sleep(Duration::from_millis(200));
            site.await_fast("the other backend is asked", |number| site.ask(&asker, 1, number))?;
        }
        Ok(())
    })
}
