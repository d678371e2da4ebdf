//! The lab itself: that it carries what a kernel-only cluster carries, counts what is lost, and leaves
//! nothing behind. Tests of the agent mean something only because these pass.

use std::{
    fs,
    net::Ipv4Addr,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flannel_lab::{
    CONVERGENCE, KubeProxy, Lab, Node, Pod, Stock,
    command::Daemon,
    eventually, in_kubernetes_lab, in_lab,
    kubernetes::{Backend, Service, TrafficPolicy},
    lab_available, stock,
    traffic::{
        Dialogue, Paced,
        dialogue::{is_refused, listen},
        every_kind_both_ways,
        ping::ping,
        reachability,
    },
};

/// Two stock nodes that know each other, with a pod each.
fn two_nodes(lab: &Lab) -> Result<[(Node, Stock, Pod); 2]> {
    let (a, b) = lab.pair()?;
    let (mut stock_a, mut stock_b) = (a.stock()?, b.stock()?);
    stock::join(&mut [&mut stock_a, &mut stock_b])?;
    let (pod_a, pod_b) = (a.pod("a")?, b.pod("b")?);
    Ok([(a, stock_a, pod_a), (b, stock_b, pod_b)])
}

#[test]
fn stock_nodes_carry_every_kind_of_traffic() -> Result<()> {
    in_lab(|lab| {
        let [(a, _, pod_a), (b, _, pod_b)] = two_nodes(lab)?;
        every_kind_both_ways(&pod_a.endpoint(), &pod_b.endpoint())?;
        let (host_a, host_b) = (a.overlay_endpoint()?, b.overlay_endpoint()?);
        ensure!(a.underlay_endpoint().source_towards(&pod_b.endpoint())? == host_a.address());
        every_kind_both_ways(&host_a, &pod_b.endpoint())?;
        every_kind_both_ways(&pod_a.endpoint(), &host_b)
    })
}

#[test]
fn stock_nodes_carry_every_kind_of_traffic_with_flannels_rules() -> Result<()> {
    in_lab(|lab| {
        let [(a, _, pod_a), (b, _, pod_b)] = two_nodes(lab)?;
        a.load_flannel_rules()?;
        b.load_flannel_rules()?;
        every_kind_both_ways(&pod_a.endpoint(), &pod_b.endpoint())
    })
}

/// The API server knows who may do what, and keeps what it was told; kube-proxy makes rules of it.
#[test]
fn kubernetes_serves_the_cluster() -> Result<()> {
    const NODES: &str = "/api/v1/nodes";
    const SERVICE: &str = "/api/v1/namespaces/default/services/web";
    in_kubernetes_lab(|lab| {
        let etcd = lab.etcd()?;
        let mut api = lab.api_server(&etcd)?;
        let nodes = [lab.node()?, lab.node()?];
        let mut stocks = nodes.iter().map(Node::stock).collect::<Result<Vec<_>>>()?;
        stock::join(&mut stocks.iter_mut().collect::<Vec<_>>())?;
        for node in &nodes {
            api.add_node(node, &[node.subnet_env()?.subnet.to_string()])?;
        }

        let status = |token: &str| api.request_as(token, "GET", NODES, None).map(|answer| answer.status);
        ensure!(status("nobody's")? == 401, "an unknown VTEP was let in");
        api.add_service_account("kube-system", "reader")?;
        let token = api.token("kube-system", "reader", 600)?;
        ensure!(status(&token)? == 403, "an account without a role may read nodes");
        api.bind_cluster_role("system:node-proxier", "kube-system", "reader")?;
        eventually(CONVERGENCE, "the role has come into force", || {
            ensure!(status(&token)? == 200);
            Ok(())
        })?;

        let kubeconfig = api.kube_proxy_account()?;
        let mut proxy = KubeProxy::start(&nodes[0], kubeconfig, &[])?;
        let (client, server) = (nodes[0].pod("client")?.endpoint(), nodes[1].pod("server")?.endpoint());
        let mut service = Service {
            name: "web".to_owned(),
            address: Ipv4Addr::new(10, 96, 1, 1).into(),
            port: 80,
            target: 8080,
            node_port: None,
            policy: TrafficPolicy::Cluster,
            affinity: false,
            backends: vec![Backend { address: server.address(), node: nodes[1].name() }],
        };
        api.add_service(&service)?;
        proxy.await_service(&service)?;
        let listener = listen(&server, service.target)?;
        Dialogue::through(&client, 0, service.socket_address(), &[&listener])?.exchanges(3)?;

        api.stop()?;
        Dialogue::through(&client, 0, service.socket_address(), &[&listener])?.exchanges(3)?;
        api.start()?;
        ensure!(api.get(SERVICE)?["spec"]["clusterIP"] == service.address.to_string(), "the Service is gone");
        service.backends.clear();
        api.update_backends(&service)?;
        proxy.await_service(&service)?;
        let refused = Dialogue::through(&client, 0, service.socket_address(), &[&listener]);
        let refused = refused.err().context("a Service without backends was reached")?;
        ensure!(is_refused(&refused), "{refused:#}");
        api.remove_service(&service)?;
        ensure!(api.request("GET", SERVICE, None)?.status == 404);
        proxy.stop()
    })
}

#[test]
fn stock_nodes_find_each_other_through_etcd() -> Result<()> {
    in_lab(|lab| {
        let etcd = lab.etcd()?;
        let nodes = [lab.node()?, lab.node()?, lab.node()?];
        let mut stocks = nodes.iter().map(Node::stock).collect::<Result<Vec<_>>>()?;
        for stock in &stocks {
            stock.publish(&etcd)?;
        }
        for stock in &mut stocks {
            stock.sync(&etcd)?;
            ensure!(stock.peers().count() == 2);
        }
        let pods = nodes.iter().map(|node| node.pod("a")).collect::<Result<Vec<_>>>()?;
        let mut endpoints: Vec<_> = pods.iter().map(Pod::endpoint).collect();
        for node in &nodes {
            endpoints.push(node.overlay_endpoint()?);
        }
        // A pod and its own node's overlay address are one hop apart; the matrix covers that too.
        reachability(&endpoints).check_complete()?;

        let (first, others) = stocks.split_first_mut().context("no nodes")?;
        first.change_mac()?;
        first.publish(&etcd)?;
        ensure!(ping(&endpoints[1], &endpoints[0], 56).is_err(), "others still use the old MAC");
        for other in &mut *others {
            other.sync(&etcd)?;
        }
        reachability(&endpoints).check_complete()?;

        first.change_public_ip([192, 168, 77, 101].into())?;
        first.publish(&etcd)?;
        for other in &mut *others {
            other.sync(&etcd)?;
        }
        reachability(&endpoints).check_complete()?;

        first.withdraw(&etcd)?;
        for other in &mut *others {
            other.sync(&etcd)?;
            ensure!(other.peers().count() == 1);
        }
        ensure!(ping(&endpoints[1], &endpoints[0], 56).is_err(), "reached a node without a lease");
        reachability(&endpoints[1..3]).check_complete()
    })
}

#[test]
fn nothing_is_lost_in_steady_state() -> Result<()> {
    in_lab(|lab| {
        let [(_, _, pod_a), (_, _, pod_b)] = two_nodes(lab)?;
        let paced = Paced::usual(&pod_a.endpoint(), &pod_b.endpoint())?;
        sleep(Duration::from_secs(3));
        let report = paced.stop()?;
        report.check_lossless()?;
        ensure!(report.forward.sent > 1000 && report.backward.sent > 1000, "too little was sent: {report}");
        ensure!(report.forward.reordered == 0 && report.backward.reordered == 0, "{report}");
        Ok(())
    })
}

#[test]
fn every_packet_dropped_on_the_way_is_counted() -> Result<()> {
    in_lab(|lab| {
        let [(a, _, pod_a), (_, _, pod_b)] = two_nodes(lab)?;
        let paced = Paced::usual(&pod_a.endpoint(), &pod_b.endpoint())?;
        sleep(Duration::from_millis(300));
        // One of ten in one direction, one of seven in the other, counted by the one who drops them.
        let rules = format!(
            "table ip drops {{ \ncounter there {{ }}\ncounter back {{ }}\n\
             chain forward {{ type filter hook forward priority 0;\n\
             ip daddr {} udp dport != 0 numgen inc mod 10 == 0 counter name there drop\n\
             ip daddr {} udp dport != 0 numgen inc mod 7 == 0 counter name back drop\n}}\n}}\n",
            pod_b.address(),
            pod_a.address()
        );
        let mut nft = a.netns().command("nft");
        flannel_lab::command::run_with(nft.args(["-f", "-"]), &rules, Duration::from_secs(10))?;
        sleep(Duration::from_secs(2));
        let report = paced.stop()?;
        let dropped = |name: &str| -> Result<u64> {
            let listing = a.netns().run("nft", &["list", "counter", "ip", "drops", name])?;
            let words: Vec<&str> = listing.split_whitespace().collect();
            let place = words.iter().position(|word| *word == "packets").context("no count")?;
            Ok(words[place + 1].parse()?)
        };
        let (there, back) = (dropped("there")?, dropped("back")?);
        ensure!(there > 50 && back > there, "dropped {there} and {back}");
        ensure!(
            report.forward.lost() == there && report.backward.lost() == back,
            "{there}, {back}: {report}"
        );
        ensure!(report.forward.longest_loss == 1, "{report}");
        ensure!(report.check_lossless().is_err(), "loss went unnoticed");
        Ok(())
    })
}

#[test]
fn a_silent_path_shows_as_a_gap() -> Result<()> {
    in_lab(|lab| {
        let [(a, _, pod_a), (_, _, pod_b)] = two_nodes(lab)?;
        let paced = Paced::usual(&pod_a.endpoint(), &pod_b.endpoint())?;
        sleep(Duration::from_millis(500));
        a.netns().ip("link set eth0 down")?;
        sleep(Duration::from_millis(400));
        a.netns().ip("link set eth0 up")?;
        sleep(Duration::from_millis(1500));
        let report = paced.stop()?;
        ensure!(report.forward.longest_gap >= Duration::from_millis(350), "{report}");
        ensure!(report.backward.longest_loss > 100, "{report}");
        Ok(())
    })
}

#[test]
fn a_pod_comes_and_goes() -> Result<()> {
    in_lab(|lab| {
        let [(a, _, pod_a), (_, _, pod_b)] = two_nodes(lab)?;
        let again = a.pod("again")?;
        let address = again.address();
        ping(&again.endpoint(), &pod_b.endpoint(), 56)?;
        again.remove()?;
        let held = a.dir().join("cni/cbr0").join(address.to_string());
        ensure!(!held.exists(), "host-local still holds {address}");
        ping(&pod_a.endpoint(), &pod_b.endpoint(), 56)?;
        Ok(())
    })
}

#[test]
fn a_panic_leaves_nothing_behind() -> Result<()> {
    if !lab_available()? {
        return Ok(());
    }
    let lab = Lab::new()?;
    let (id, dir) = (lab.id().to_owned(), lab.dir().to_owned());
    let unwound = catch_unwind(AssertUnwindSafe(move || {
        let node = lab.node().unwrap();
        let _etcd = lab.etcd().unwrap();
        assert!(node.bpffs().starts_with(lab.dir()) && dir_in_mounts(&node.bpffs()));
        panic!("on purpose");
    }));
    ensure!(unwound.is_err());
    ensure!(!dir.exists() && !dir_in_mounts(&dir), "{} is left", dir.display());
    ensure!(namespaces_of(&id)?.is_empty(), "{:?}", namespaces_of(&id)?);
    Ok(())
}

#[test]
fn the_next_lab_removes_one_whose_owner_was_killed() -> Result<()> {
    if !lab_available()? {
        return Ok(());
    }
    let lab = Lab::new()?;
    let node = lab.node()?;
    let (id, dir) = (lab.id().to_owned(), lab.dir().to_owned());
    let log = std::env::temp_dir().join(format!("{id}-sleeper.log"));
    let mut sleeper = Daemon::spawn(node.netns().command("sleep").arg("60"), &log)?;
    fs::remove_file(log)?;
    // No process has this id: the largest there can be is 2^22.
    fs::write(dir.join("owner"), "99999999 1")?;
    std::mem::forget(lab);
    drop(Lab::new()?);
    eventually(Duration::from_secs(10), "the abandoned lab is gone", || {
        ensure!(!dir.exists() && namespaces_of(&id)?.is_empty());
        Ok(())
    })?;
    let status = sleeper.wait(Duration::from_secs(10))?.context("the process was not killed")?;
    ensure!(!status.success(), "{status}");
    Ok(())
}

fn dir_in_mounts(dir: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.contains(&dir.display().to_string())
}

fn namespaces_of(id: &str) -> Result<Vec<String>> {
    let entries = fs::read_dir("/run/netns")?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| name.starts_with(&format!("{id}-"))).collect())
}
