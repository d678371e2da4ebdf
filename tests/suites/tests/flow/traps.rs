//! What a flow to a Service lives through while the programs translate it, case by case in few labs.

use std::{
    io::ErrorKind,
    net::UdpSocket,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use flannel_common::reason::{Direction, Reason};
use flannel_lab::{
    CONVERGENCE, Cluster, FastPath, eventually, in_lab,
    kubernetes::{self, Backend, TrafficPolicy},
    traffic::Endpoint,
};

use crate::{
    cluster, counted,
    gaps::invalid,
    services::{BACKEND_PORT, DESTINATION, Service},
    translated::await_fast,
    translated_fast,
};

const REFRESH: Duration = Duration::from_secs(30);
/// More than TCP's sequence numbers count to.
const LONG: u64 = (4 << 30) + (256 << 20);

/// A datagram too large for a packet, and its answer: their fragments are the kernel's, and what comes before and after is
/// as fast as ever.
fn fragments(cluster: &Cluster, service: &Service) -> Result<()> {
    let asker = service.questions()?;
    await_fast(cluster, || service.ask(&asker, 10))?;
    for number in 0..5 {
        service.serving.ask_long(&asker, number, 4_000)?;
        service.ask(&asker, 5)?;
    }
    await_fast(cluster, || service.ask(&asker, 10))
}

/// It lasts for longer than connection tracking remembers, which sees one packet in many.
fn longer_than_remembered(cluster: &Cluster, service: &Service) -> Result<()> {
    let netns = cluster.members[0].node.netns();
    let settings =
        ["net/netfilter/nf_conntrack_udp_timeout", "net/netfilter/nf_conntrack_udp_timeout_stream"];
    let before = settings.map(|name| netns.read_sysctl(name));
    settings.iter().try_for_each(|name| netns.sysctl(name, "3"))?;
    let asker = service.questions()?;
    await_fast(cluster, || service.ask(&asker, 10))?;
    let [at_client, _] = counted(cluster, || {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(8) {
            // Half of the new flows would go to the other backend.
            service.ask(&asker, 5)?;
            sleep(Duration::from_millis(100));
        }
        Ok(())
    })?;
    ensure!(translated_fast(&at_client).into_iter().all(|packets| packets > 50), "{at_client}");
    for (name, before) in settings.iter().zip(before) {
        netns.sysctl(name, &before?)?;
    }
    Ok(())
}

/// kube-proxy's mode is switched: the rules of nftables come, and those of iptables go.
fn another_mode(cluster: &Cluster, service: &Service) -> Result<()> {
    let (mut dialogue, asker) = (service.connection(0)?, service.questions()?);
    await_fast(cluster, || dialogue.exchanges(10))?;
    await_fast(cluster, || service.ask(&asker, 10))?;
    let node = &cluster.members[0].node;
    let backend = |pod: &Endpoint| Backend { address: pod.address(), node: String::new() };
    node.load_nftables_services(&[kubernetes::Service {
        name: "switched".to_owned(),
        address: (*DESTINATION.ip()).into(),
        port: DESTINATION.port(),
        target: BACKEND_PORT,
        node_port: None,
        policy: TrafficPolicy::Cluster,
        affinity: false,
        backends: service.serving.backends.iter().map(backend).collect(),
    }])?;
    dialogue.exchanges(20)?;
    service.ask(&asker, 20)?;
    node.unload_service()?;
    dialogue.exchanges(20)?;
    service.ask(&asker, 20)?;
    let mut later = service.connection(0)?;
    await_fast(cluster, || later.exchanges(10)).context("what began by the new rules")?;
    dialogue.exchanges(20)?;
    service.ask(&asker, 20)
}

/// Nobody listens any more: the client is told so by an error of ICMP, about the address that it knows.
fn nobody_listens(asker: &UdpSocket) -> Result<()> {
    eventually(CONVERGENCE, "the client is told that nobody listens", || {
        // What the last one met is told to the next.
        let told = asker.send(b"anybody there?").err().or_else(|| asker.recv(&mut [0; 1]).err());
        match told {
            Some(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            other => bail!("{other:?}"),
        }
    })
}

#[test]
fn flows_to_a_service_live_through_what_happens_to_them() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 2, REFRESH)?;
        let service = Service::new(&cluster, false)?;
        type Case = (&'static str, fn(&Cluster, &Service) -> Result<()>);
        let cases: [Case; 3] = [
            ("fragments", fragments),
            ("longer than remembered", longer_than_remembered),
            ("another mode of kube-proxy", another_mode),
        ];
        for (name, case) in cases {
            case(&cluster, &service).with_context(|| format!("case: {name}"))?;
        }
        let asker = service.questions()?;
        await_fast(&cluster, || service.ask(&asker, 10))?;
        drop(service);
        nobody_listens(&asker).context("case: nobody listens")
    })
}

/// More than 4 GB past connection tracking, and then all of it by the kernel path: where a rule
/// drops what is INVALID, nothing stalls.
#[test]
fn a_connection_goes_back_to_the_kernels_path_after_more_than_4_gb() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = cluster(lab, 2, REFRESH)?;
        let service = Service::new(&cluster, false)?;
        let mut translated = service.connection(0)?;
        await_fast(&cluster, || translated.exchanges(10))?;
        let [at_client, _] = counted(&cluster, || translated.pour(LONG))?;
        let past = at_client.get(Direction::Egress, Reason::Translated).bytes;
        ensure!(past > 4 << 30, "{past} bytes skipped the stack: {at_client}");
        for member in &mut cluster.members {
            member.agent.terminate()?;
            member.agent.set_flag("fast-path", FastPath::Off.name());
            member.agent.start_again()?;
        }
        // Nobody has programs now.
        translated.exchanges(50)?;
        translated.pour(64 << 20)?;
        translated.exchanges(50)?;
        let dropped = invalid(&cluster)?;
        ensure!(dropped == 0, "{dropped} packets were dropped as INVALID");
        translated.close_at_the_server()
    })
}
