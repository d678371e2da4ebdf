//! Names of Services, as pods ask for them: by the C library's resolver with kubelet's resolv.conf, from the cluster's
//! DNS Service, over UDP and TCP, whose servers are on other nodes.
//!
//! The server is dnsmasq, told what a cluster's DNS would have read in the API server: what is between is the same.

use std::{fs, net::Ipv4Addr};

use flannel_lab::{
    Root,
    command::{Daemon, run},
    in_kubernetes_lab,
    kubernetes::{Backend, Service, TrafficPolicy},
    make_dir,
    traffic::Serving,
};

use super::{
    installed::{Families, Installed},
    *,
};

const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const WEB: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 1);
const BACKEND_PORT: u16 = 8080;

/// Addresses of a headless Service: too many for an answer in one datagram, which is asked for again over TCP.
const CROWD: u8 = 60;

/// The cluster's names, as dnsmasq is told them.
fn names() -> String {
    let crowd =
        (1..=CROWD).map(|number| format!("host-record=crowd.default.svc.cluster.local,10.244.99.{number}\n"));
    format!("host-record=web.default.svc.cluster.local,{WEB}\n{}", crowd.collect::<String>())
}

/// A DNS server in a pod.
fn serve(lab: &Lab, pod: &Endpoint) -> Result<Daemon> {
    let name = pod.name().replace('/', "-");
    let file = lab.dir().join(format!("{name}.dnsmasq"));
    let address = pod.address();
    fs::write(
        &file,
        format!(
            "keep-in-foreground\nuser=root\ngroup=root\npid-file=\nlog-facility=-\nlog-queries\nno-resolv\nno-hosts\nbind-interfaces\n\
             listen-address={address}\nlocal=/cluster.local/\nlocal-ttl=30\n{}",
            names()
        ),
    )?;
    let mut command = pod.netns().command("dnsmasq");
    command.arg(format!("--conf-file={}", file.display()));
    let mut daemon = Daemon::spawn(&mut command, &lab.dir().join(format!("{name}-dnsmasq.log")))?;
    eventually(CONVERGENCE, "the DNS server listens", || {
        daemon.check_running()?;
        let sockets = pod.netns().run("ss", &["--no-header", "--listening", "--tcp", "--numeric"])?;
        ensure!(sockets.contains(&format!("{address}:53")), "{sockets}");
        Ok(())
    })?;
    Ok(daemon)
}

/// The files of every container.
fn container(lab: &Lab) -> Result<Root> {
    let root = Root::new(lab.dir().join("container"))?;
    let etc = root.directory().join("etc");
    make_dir(&etc)?;
    // As kubelet writes it, but that a question is asked once: what is lost on the way is to be seen.
    let resolv = format!(
        "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver {DNS}\n\
         options ndots:5 attempts:1 timeout:10\n"
    );
    fs::write(etc.join("resolv.conf"), resolv)?;
    fs::write(etc.join("nsswitch.conf"), "hosts: files dns\n")?;
    fs::write(etc.join("hosts"), "127.0.0.1 localhost\n")?;
    Ok(root)
}

/// The IPv4 addresses of `name`, as a program in this container at `from` finds them.
fn look_up(root: &Root, from: &Endpoint, name: &str, options: &str) -> Result<Vec<Ipv4Addr>> {
    let variables = [("RES_OPTIONS".to_owned(), options.to_owned())];
    let said = run(&mut root.command(from.netns(), &variables, &["getent", "ahostsv4", name])?)
        .with_context(|| format!("{name} at {}", from.name()))?;
    let stream = said.lines().filter(|line| line.contains("STREAM"));
    stream.map(|line| Ok(line.split_whitespace().next().unwrap_or_default().parse()?)).collect()
}

/// Names short and whole, over UDP, over TCP, and over UDP with TCP after it.
fn resolve(root: &Root, clients: &[Endpoint]) -> Result<()> {
    for client in clients {
        for options in ["", "use-vc"] {
            for name in ["web", "web.default", "web.default.svc.cluster.local."] {
                let found = look_up(root, client, name, options)?;
                ensure!(found == [WEB], "{name} at {}: {found:?}", client.name());
            }
            let crowd = look_up(root, client, "crowd", options)?;
            ensure!(crowd.len() == usize::from(CROWD), "{}: {crowd:?}", client.name());
        }
        let unknown = look_up(root, client, "nobody", "").err().context("a name that nobody has")?;
        ensure!(format!("{unknown:#}").contains("exit status: 2"), "{unknown:#}");
    }
    Ok(())
}

#[test]
fn pods_find_services_by_their_names() -> Result<()> {
    in_kubernetes_lab(|lab| {
        let site = Installed::start(lab, Families::V4, |_| ())?.with_nodes(lab, 3)?;
        let servers = [site.pod(1, 0)?, site.pod(2, 0)?];
        let mut daemons = servers.iter().map(|pod| serve(lab, pod)).collect::<Result<Vec<_>>>()?;
        let service = |name: &str, address: Ipv4Addr, port, target, pods: &[(usize, usize)]| {
            let backends = pods.iter().map(|&(member, pod)| {
                let node = site.kube.members[member].node.name();
                Ok(Backend { address: site.pod(member, pod)?.address(), node })
            });
            anyhow::Ok(Service {
                name: name.to_owned(),
                address: address.into(),
                port,
                target,
                node_port: None,
                policy: TrafficPolicy::Cluster,
                affinity: false,
                backends: backends.collect::<Result<_>>()?,
            })
        };
        let mut dns = service("kube-dns", DNS, 53, 53, &[(1, 0), (2, 0)])?;
        let web = service("web", WEB, 80, BACKEND_PORT, &[(2, 1)])?;
        for service in [&dns, &web] {
            site.kube.api.add_service(service)?;
            site.proxies.iter().try_for_each(|proxy| proxy.await_service(service))?;
        }

        // A server's own pod may meet itself. Programs on the host's network ask, too.
        let root = container(lab)?;
        let mut clients = site.kube.pods();
        clients.push(site.kube.members[0].node.underlay_endpoint());
        resolve(&root, &clients)?;
        for (server, daemon) in servers.iter().zip(&daemons) {
            // It sees who asks: nothing is masqueraded between pods.
            let asked = [site.pod(0, 0)?, site.pod(0, 1)?].map(|pod| {
                daemon.log().contains(&format!("web.default.svc.cluster.local from {}\n", pod.address()))
            });
            ensure!(
                asked.contains(&true),
                "{} was not asked from another node:\n{}",
                server.name(),
                daemon.log()
            );
        }

        let serving = Serving::new(&[site.pod(2, 1)?], BACKEND_PORT)?;
        for client in [site.pod(0, 0)?, site.pod(1, 1)?] {
            let found = look_up(&root, &client, "web", "")?.pop().context("no address")?;
            serving.connect(&client, 0, (found, 80))?.exchanges(10)?;
        }

        // The server on another node goes, as with a rollout: endpoints first.
        dns.backends.pop();
        site.kube.api.update_backends(&dns)?;
        site.proxies.iter().try_for_each(|proxy| proxy.await_service(&dns))?;
        daemons.pop().context("a server")?.kill()?;
        resolve(&root, &clients).context("with one server")
    })
}
