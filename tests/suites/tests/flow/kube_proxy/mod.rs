//! Services of every kind, by the rules of a real kube-proxy and by those of its nftables mode: all that is
//! translated works, and stays on the kernel's path where it is translated.

use std::{io::ErrorKind, net::SocketAddr, thread::sleep, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use flannel_common::reason::Reason;
use flannel_lab::{
    CONVERGENCE, FastPath,
    counters::Counters,
    eventually, in_kubernetes_lab, in_lab,
    kubernetes::TrafficPolicy,
    traffic::{Dialogue, Serving, dialogue::is_refused, tcp::Stream},
};

use crate::{counted, fast, packets, translated_fast};

mod site;

use site::{Rules, Site};

const REFRESH: Duration = Duration::from_secs(2);
const NODE_PORT: u16 = 30_080;
const BACKEND_PORT: u16 = 8080;

fn check_slow(counters: &Counters) -> Result<()> {
    ensure!(fast(counters) == [0, 0], "translated packets skipped the stack: {counters}");
    Ok(())
}

/// The client's node translates. The other backend's node does not, and its pods have skipped its stack by then.
fn cluster_ip(site: &Site) -> Result<()> {
    let pods = [(0, 1), (1, 0)];
    let service = site.service("cluster-ip", &pods)?;
    site.publish(&service)?;
    let (client, serving) = (site.pod(0, 0)?, site.serving(&pods)?);
    let [at_client, at_backend] =
        counted(&site.cluster, || serving.be_used(&client, service.socket_address()))?;
    check_slow(&at_client)?;
    ensure!(fast(&at_backend).into_iter().all(|packets| packets > 100), "{at_backend}");

    // Beside it, the same pods talk to each other directly: fast, on the port of the Service too.
    let mut direct = serving.connect(&client, 0, serving.backends[1].socket_address(BACKEND_PORT))?;
    direct.exchanges(10)?;
    let [at_client, _] = counted(&site.cluster, || direct.exchanges(100))?;
    // All but those that look, now and then, whether flow and tunnel still pass the kernel path.
    ensure!(fast(&at_client).into_iter().all(|packets| packets >= 95), "{at_client}");
    site.withdraw(&service)
}

/// What comes from outside to a node's port: with the node's address before any backend, or with its own before
/// the backends there.
fn node_ports(site: &Site) -> Result<()> {
    let pods = [(0, 1), (1, 0)];
    let client = site.outside.underlay_endpoint();
    let serving = site.serving(&pods)?;
    for (name, policy) in [("cluster", TrafficPolicy::Cluster), ("local", TrafficPolicy::Local)] {
        let mut service = site.service(name, &pods)?;
        service.node_port = Some(NODE_PORT);
        service.policy = policy;
        site.publish(&service)?;
        for (entry, member) in site.cluster.members.iter().enumerate() {
            let to = SocketAddr::from((member.node.address(), NODE_PORT));
            let check = |source: SocketAddr, backend: usize| -> Result<()> {
                let is_client = source.ip() == client.address();
                match policy {
                    TrafficPolicy::Cluster => ensure!(!is_client, "backend {backend} saw {source}"),
                    TrafficPolicy::Local => {
                        ensure!(is_client && backend == entry, "backend {backend} saw {source}");
                    }
                }
                Ok(())
            };
            let mut served = [0; 2];
            let counted = counted(&site.cluster, || {
                let mut long = Vec::new();
                for number in 0..20 {
                    let dialogue = serving.connect(&client, 0, to)?;
                    let backend = serving.backend(&dialogue)?;
                    check(dialogue.server.peer_addr()?, backend)?;
                    served[backend] += 1;
                    long.push(dialogue);
                    let (backend, source) = serving.ask(&Serving::asker(&client, to)?, number)?;
                    check(source, backend)?;
                }
                // From the same port with either policy.
                let (backend, source) = serving.ask(&Serving::asker_at(&client, 40_000, to)?, 20)?;
                check(source, backend)?;
                for _ in 0..3 {
                    long.iter_mut().try_for_each(|dialogue| dialogue.exchanges(10))?;
                    sleep(REFRESH * 2 / 5);
                }
                long.into_iter().try_for_each(Dialogue::close_at_the_server)
            })
            .with_context(|| format!("{policy:?} by {}", member.node.name()))?;
            check_slow(&counted[entry])?;
            ensure!((served[1 - entry] > 0) == (policy == TrafficPolicy::Cluster), "{served:?} connections");
        }
        site.withdraw(&service)?;
    }
    Ok(())
}

/// A pod that is its own Service's backend reaches itself, as somebody else.
fn hairpin(site: &Site) -> Result<()> {
    let service = site.service("hairpin", &[(0, 1)])?;
    site.publish(&service)?;
    let (itself, serving) = (site.pod(0, 1)?, site.serving(&[(0, 1)])?);
    let [at_pod, _] = counted(&site.cluster, || {
        let mut dialogue = serving.connect(&itself, 0, service.socket_address())?;
        let source = dialogue.server.peer_addr()?;
        ensure!(source.ip() != itself.address(), "it saw itself as {source}");
        dialogue.exchanges(50)?;
        let asker = Serving::asker(&itself, service.socket_address())?;
        (0..20).try_for_each(|number| serving.ask(&asker, number).map(drop))
    })?;
    check_slow(&at_pod)?;
    site.withdraw(&service)
}

/// A client meets the same backend again and again, another perhaps another.
fn affinity(site: &Site) -> Result<()> {
    let pods = [(0, 1), (1, 0)];
    let mut service = site.service("affinity", &pods)?;
    service.affinity = true;
    site.publish(&service)?;
    let serving = site.serving(&pods)?;
    for (member, client) in [(0, site.pod(0, 0)?), (1, site.pod(1, 1)?)] {
        let counted = counted(&site.cluster, || {
            let (mut served, mut asked) = ([0; 2], [0; 2]);
            for number in 0..12 {
                let mut dialogue = serving.connect(&client, 0, service.socket_address())?;
                served[serving.backend(&dialogue)?] += 1;
                dialogue.exchanges(5)?;
                asked[serving.ask(&Serving::asker(&client, service.socket_address())?, number)?.0] += 1;
            }
            ensure!(served.contains(&0) && asked.contains(&0), "{served:?} connections, {asked:?} questions");
            Ok(())
        })?;
        check_slow(&counted[member])?;
    }
    site.withdraw(&service)
}

/// A backend goes while it is used: its connections stay, new ones and datagrams go to the other.
fn backend_removed(site: &Site) -> Result<()> {
    let pods = [(0, 1), (1, 0)];
    let mut service = site.service("removed", &pods)?;
    site.publish(&service)?;
    let (client, serving) = (site.pod(0, 0)?, site.serving(&pods)?);
    let mut long = (0..100).map(|_| serving.connect(&client, 0, service.socket_address()));
    let mut long = long
        .find(|dialogue| dialogue.as_ref().map_or(true, |open| serving.backend(open).ok() == Some(1)))
        .context("nobody was sent to the remote backend")??;
    let asker = (0..100).find_map(|number| {
        let asker = Serving::asker(&client, service.socket_address()).ok()?;
        (serving.ask(&asker, number).ok()?.0 == 1).then_some(asker)
    });
    let asker = asker.context("no question was sent to the remote backend")?;
    let mut direct = serving.connect(&client, 0, serving.backends[1].socket_address(BACKEND_PORT))?;
    direct.exchanges(10)?;
    // Its last acknowledgement may take its time, and is fast.
    sleep(Duration::from_millis(300));

    let gone = service.backends.split_off(1);
    let [at_client, _] = counted(&site.cluster, || {
        long.exchanges(20)?;
        site.update(&service, &gone)?;
        for _ in 0..6 {
            long.exchanges(20)?;
            sleep(REFRESH / 4);
        }
        for _ in 0..12 {
            let dialogue = serving.connect(&client, 0, service.socket_address())?;
            ensure!(serving.backend(&dialogue)? == 0, "a connection went to a backend that is gone");
        }
        eventually(CONVERGENCE, "questions go to the other backend", || {
            ensure!(serving.ask(&asker, 7)?.0 == 0, "to a backend that is gone");
            Ok(())
        })
    })?;
    check_slow(&at_client)?;
    // No Service, no change: what is not translated is as fast as before.
    let [at_client, _] = counted(&site.cluster, || direct.exchanges(100))?;
    ensure!(fast(&at_client).into_iter().all(|packets| packets >= 90), "{at_client}");
    site.withdraw(&service)
}

/// Without a backend, clients are told at once that nobody is there; with one, they are served.
fn empty(site: &Site) -> Result<()> {
    let mut service = site.service("empty", &[])?;
    service.node_port = Some(NODE_PORT);
    site.publish(&service)?;
    let pods = [(1, 0)];
    let serving = site.serving(&pods)?;
    let outside = site.outside.underlay_endpoint();
    let node = SocketAddr::from((site.cluster.members[0].node.address(), NODE_PORT));
    let clients = [(site.pod(0, 0)?, service.socket_address()), (outside, node)];
    for (client, to) in &clients {
        match serving.connect(client, 0, *to) {
            Ok(_) => bail!("a Service without backends accepted a connection"),
            Err(error) => ensure!(is_refused(&error), "{error:#}"),
        }
        let asker = Serving::asker(client, *to)?;
        asker.send(b"anybody there?")?;
        let refused = asker.recv(&mut [0; 1]).err().context("a Service without backends answered")?;
        ensure!(refused.kind() == ErrorKind::ConnectionRefused, "{} at {to}: {refused}", client.name());
    }
    service.backends.push(site.backend(pods[0])?);
    site.update(&service, &[])?;
    for (client, to) in &clients {
        serving.connect(client, 0, *to)?.exchanges(5)?;
        let asker = Serving::asker(client, *to)?;
        (0..5).try_for_each(|number| serving.ask(&asker, number).map(drop))?;
    }
    site.withdraw(&service)
}

/// Connection tracking misses most of what is fast, and the rule against INVALID finds none of it.
fn nothing_is_invalid(site: &Site) -> Result<()> {
    site.publish(&site.service("idle", &[(1, 0)])?)?;
    let (a, b) = (site.pod(0, 0)?, site.pod(1, 1)?);
    let before = site.dropped_as_invalid()?;
    let counted = counted(&site.cluster, || {
        let streams = [Stream::start(&a, &b)?, Stream::start(&b, &a)?];
        let mut rare = Dialogue::open(&a, &b)?;
        for _ in 0..4 {
            rare.exchange()?;
            sleep(REFRESH / 2 + Duration::from_millis(300));
        }
        for stream in streams {
            let (bytes, _) = stream.stop()?;
            ensure!(bytes > 0, "nothing arrived");
        }
        rare.close_at_the_server()
    })?;
    for counters in &counted {
        ensure!(packets(counters, Reason::FlowStale) > 0, "{counters}");
        ensure!(fast(counters).into_iter().all(|packets| packets > 1_000), "{counters}");
    }
    let dropped = site.dropped_as_invalid()? - before;
    ensure!(dropped == 0, "{dropped} packets were dropped as INVALID");
    Ok(())
}

/// All rules are written anew, again and again, while flows are translated by the programs: none breaks, and none goes to
/// another backend but those that kube-proxy ends.
fn rules_written_again(site: &mut Site) -> Result<()> {
    let pods = [(0, 1), (1, 0)];
    let service = site.service("again", &pods)?;
    site.publish(&service)?;
    let (client, serving) = (site.pod(0, 0)?, site.serving(&pods)?);
    let mut long = (0..8)
        .map(|_| {
            let dialogue = serving.connect(&client, 0, service.socket_address())?;
            Ok((serving.backend(&dialogue)?, dialogue))
        })
        .collect::<Result<Vec<_>>>()?;
    let askers = (0..8)
        .map(|number| {
            let asker = Serving::asker(&client, service.socket_address())?;
            asker.set_read_timeout(Some(REFRESH))?;
            Ok((serving.ask(&asker, number)?.0, asker))
        })
        .collect::<Result<Vec<_>>>()?;
    // When it starts, kube-proxy has connection tracking forget the flows to Services over UDP.
    let chooses_anew = matches!(site.rules, Rules::KubeProxy { .. });
    let mut speak = || -> Result<()> {
        for (_, dialogue) in &mut long {
            dialogue.exchanges(5)?;
        }
        for (number, (backend, asker)) in askers.iter().enumerate() {
            let ask = || serving.ask(asker, number as u64);
            // An answer on its way while its flow is forgotten is lost by whatever path it comes.
            let (now, _) = if chooses_anew { ask().or_else(|_| ask()) } else { ask() }?;
            ensure!(now == *backend || chooses_anew, "asked backend {now} after {backend}");
        }
        sleep(Duration::from_millis(50));
        Ok(())
    };
    let before = site.cluster.members[0].counters()?;
    for _ in 0..10 {
        speak()?;
    }
    for _ in 0..3 {
        site.write_again(std::slice::from_ref(&service))?;
        for _ in 0..10 {
            speak()?;
        }
    }
    let at_client = site.cluster.members[0].counters()?.since(&before);
    ensure!(translated_fast(&at_client).into_iter().all(|packets| packets > 50), "{at_client}");
    // What begins now is served, too.
    for _ in 0..5 {
        serving.connect(&client, 0, service.socket_address())?.exchanges(5)?;
    }
    site.withdraw(&service)
}

type Case = (&'static str, fn(&Site) -> Result<()>);

const CASES: [Case; 6] = [
    ("a clusterIP", cluster_ip),
    ("ports of nodes", node_ports),
    ("a hairpin", hairpin),
    ("session affinity", affinity),
    ("a backend is removed", backend_removed),
    ("no backends", empty),
];

/// One cluster for all of them: most of the time goes into its start.
fn each(site: &Site, cases: &[Case]) -> Result<()> {
    cases.iter().try_for_each(|(name, case)| {
        let start = std::time::Instant::now();
        case(site).with_context(|| format!("case: {name}"))?;
        println!("{name}: {:.1} s", start.elapsed().as_secs_f32());
        Ok(())
    })
}

#[test]
fn services_of_kube_proxy_beside_flow() -> Result<()> {
    in_kubernetes_lab(|lab| {
        let mut site = Site::kube_proxy(lab, FastPath::Flow, &[])?;
        each(&site, &CASES)?;
        rules_written_again(&mut site).context("case: all rules are written again")?;
        nothing_is_invalid(&site).context("case: nothing is INVALID")
    })
}

/// Where kube-proxy masquerades everything, answers go to the client's node and no pod: there `all` does no harm.
#[test]
fn masqueraded_services_of_kube_proxy_beside_all() -> Result<()> {
    in_kubernetes_lab(|lab| {
        let site = Site::kube_proxy(lab, FastPath::All, &["--masquerade-all"])?;
        each(&site, &CASES)
    })
}

#[test]
fn services_of_nftables_beside_flow() -> Result<()> {
    in_lab(|lab| {
        let mut site = Site::nftables(lab)?;
        each(&site, &CASES)?;
        rules_written_again(&mut site).context("case: all rules are written again")?;
        nothing_is_invalid(&site).context("case: nothing is INVALID")
    })
}
