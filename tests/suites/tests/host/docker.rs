//! docker on flannel's subnet, as hosts without Kubernetes use it: real daemons with the options that
//! `mk-docker-opts.sh` wrote, containers that see each other by their own addresses, and the world outside
//! by their nodes'.

use std::{
    fs,
    net::{IpAddr, SocketAddrV4},
};

use anyhow::{Context as _, Result, ensure};
use flannel_lab::{
    Agent, AgentOptions, CONVERGENCE, Container, Docker, Etcd, FastPath, Lab, Node, UNDERLAY_ADDRESS,
    eventually, in_lab, stock,
    traffic::{Endpoint, every_kind_both_ways, source_seen},
};

/// Port that containers listen on, and the node's that is forwarded to it.
const PORT: u16 = 80;
const PUBLISHED: u16 = 8080;

/// A machine with flannel, docker, and a container with a published port.
struct Host {
    container: Container,
    docker: Docker,
    _agent: Agent,
    node: Node,
}

impl Host {
    fn start(node: Node, etcd: &Etcd, options: AgentOptions) -> Result<Self> {
        // As after boot: docker turns forwarding on, and then drops what nobody accepts.
        node.netns().sysctl("net/ipv4/ip_forward", "0")?;
        let agent = node.agent(etcd, options)?;
        let docker = node.docker(&["-k", "DOCKER_NETWORK_OPTIONS"], "DOCKER_NETWORK_OPTIONS")?;
        let container = docker.container("web", &["--publish", &format!("{PUBLISHED}:{PORT}")])?;
        Ok(Self { container, docker, _agent: agent, node })
    }

    fn web(&self) -> Endpoint {
        self.container.endpoint()
    }

    /// Who `from` is to the container, reached by its own address.
    fn sees(&self, from: &Endpoint) -> Result<IpAddr> {
        source_seen(from, &self.web(), PORT, SocketAddrV4::new(self.container.address(), PORT))
    }

    /// Who `from` is to the container, reached by the published port.
    fn sees_published(&self, from: &Endpoint) -> Result<IpAddr> {
        source_seen(from, &self.web(), PORT, SocketAddrV4::new(self.node.address(), PUBLISHED))
    }
}

/// Two hosts whose containers reach each other.
fn two_hosts(lab: &Lab, fast_path: FastPath, flags: &[&str]) -> Result<[Host; 2]> {
    let etcd = lab.etcd()?;
    let options = AgentOptions { fast_path, flags: flags.iter().map(|flag| (*flag).to_owned()).collect() };
    let a = Host::start(lab.node()?, &etcd, options.clone())?;
    let b = Host::start(lab.node()?, &etcd, options)?;
    for (from, to) in [(&a, &b), (&b, &a)] {
        eventually(CONVERGENCE, "a container's own ping is answered", || {
            let target = to.container.address().to_string();
            from.docker.exec(&from.container, &["ping", "-c", "1", "-W", "1", &target])
        })?;
        // docker has put its own rules before the agent's, which takes a while to be put right. Packets of the fast
        // path meet neither, and would not tell.
        eventually(CONVERGENCE, "flannel's rules come first", || {
            let rules = from.node.netns().run("iptables", &["-t", "nat", "-S", "POSTROUTING"])?;
            let first = rules.lines().find(|rule| rule.starts_with("-A"));
            ensure!(first.is_some_and(|rule| rule.to_lowercase().contains("flannel")), "{rules}");
            Ok(())
        })?;
        eventually(CONVERGENCE, "a container is seen by its own address", || {
            let (own, seen) = (from.container.address(), to.sees(&from.web())?);
            ensure!(seen == own, "container to container: seen as {seen}, not {own}");
            Ok(())
        })?;
    }
    Ok([a, b])
}

/// Who is seen as whom, whichever of docker and flannel masquerades.
fn everyone_sees_the_right_source([a, b]: &[Host; 2], outside: &Endpoint) -> Result<()> {
    every_kind_both_ways(&a.web(), &b.web())?;
    for (here, there) in [(a, b), (b, a)] {
        let check = |what: &str, seen: Result<IpAddr>, expected: IpAddr| {
            let seen = seen.context(what.to_owned())?;
            ensure!(seen == expected, "{what}: seen as {seen}, not {expected}");
            Ok(())
        };
        let own = here.container.address();
        check("container to container", there.sees(&here.web()), own.into())?;
        let node = here.node.overlay_endpoint()?;
        check("node to a container elsewhere", there.sees(&node), node.address())?;

        let world = SocketAddrV4::new(UNDERLAY_ADDRESS, PUBLISHED);
        let seen = source_seen(&here.web(), outside, PUBLISHED, world);
        check("container to the outside", seen, here.node.address().into())?;

        let node = here.node.underlay_endpoint();
        check("node to a published port", there.sees_published(&node), node.address())?;
        check("container to a published port", there.sees_published(&here.web()), node.address())?;
        check("outside to a published port", there.sees_published(outside), UNDERLAY_ADDRESS.into())?;
    }
    Ok(())
}

fn sources(fast_path: FastPath, flags: &[&str], docker_masquerades: bool) -> Result<()> {
    in_lab(|lab| {
        let hosts = two_hosts(lab, fast_path, flags)?;
        for host in &hosts {
            let options = fs::read_to_string(host.node.docker_options())?;
            ensure!(options.contains(&format!("--ip-masq={docker_masquerades}")), "{options}");
            let rules = host.node.netns().run("iptables-save", &["-t", "nat"])?;
            ensure!(rules.contains("! -o docker0 -j MASQUERADE") == docker_masquerades, "{rules}");
            let rules = host.node.netns().run("iptables-save", &["-t", "filter"])?;
            ensure!(rules.contains(":FORWARD DROP"), "docker left forwarding open: {rules}");
        }
        let outside = Endpoint::new("outside".to_owned(), lab.underlay()?, UNDERLAY_ADDRESS);
        everyone_sees_the_right_source(&hosts, &outside)
    })
}

/// docker's own rule, `-s SUBNET ! -o docker0 -j MASQUERADE`, must not touch what goes to other containers.
#[test]
fn containers_keep_their_addresses_though_docker_masquerades() -> Result<()> {
    sources(FastPath::Overlay, &[], true)
}

#[test]
fn containers_keep_their_addresses_though_docker_masquerades_on_the_fast_path() -> Result<()> {
    sources(FastPath::All, &[], true)
}

#[test]
fn containers_keep_their_addresses_though_docker_masquerades_without_ebpf() -> Result<()> {
    sources(FastPath::Off, &[], true)
}

#[test]
fn containers_keep_their_addresses_though_docker_masquerades_beside_fast_flows() -> Result<()> {
    sources(FastPath::Flow, &[], true)
}

#[test]
fn flannel_masquerades_in_dockers_place_beside_fast_flows() -> Result<()> {
    sources(FastPath::Flow, &["--ip-masq"], false)
}

#[test]
fn flannel_masquerades_in_dockers_place() -> Result<()> {
    sources(FastPath::All, &["--ip-masq"], false)
}

/// What the tests above are about: on nodes of stock flannel without `--ip-masq`, docker hides containers
/// behind their node, and the lab shows it.
#[test]
fn stock_flannel_leaves_containers_hidden_behind_their_node() -> Result<()> {
    in_lab(|lab| {
        let nodes = [lab.node()?, lab.node()?];
        let mut stocks = [nodes[0].stock()?, nodes[1].stock()?];
        let [a, b] = &mut stocks;
        stock::join(&mut [a, b])?;
        let dockers = [nodes[0].docker(&["-c"], "DOCKER_OPTS")?, nodes[1].docker(&["-c"], "DOCKER_OPTS")?];
        let containers = [dockers[0].container("one", &[])?, dockers[1].container("two", &[])?];
        let [from, to] = [containers[0].endpoint(), containers[1].endpoint()];
        let seen = source_seen(&from, &to, PORT, to.socket_address(PORT))?;
        let node = nodes[0].overlay_endpoint()?.address();
        ensure!(seen == node, "seen as {seen}, not as its node, {node}");
        Ok(())
    })
}

/// `-m`, `-k`, and the refusal, on a host with flannel and docker running.
#[test]
fn options_are_made_on_a_running_host() -> Result<()> {
    in_lab(|lab| {
        let etcd = lab.etcd()?;
        let node = lab.node()?;
        let _agent = node.agent(&etcd, FastPath::Flow.into())?;
        let env = node.subnet_env()?;
        let gateway = env.subnet.nth(1).context("a subnet has a first host")?;

        // Without --ip-masq docker does what it does by default: it masquerades.
        let docker = node.docker(&["-c", "-m", "-k", "MINE"], "MINE")?;
        let written = fs::read_to_string(node.docker_options())?;
        let expected = format!("MINE=\" --bip={gateway}/24 --mtu={}\"\n", env.mtu);
        ensure!(written == expected, "wrote {written:?}, not {expected:?}");
        let rules = node.netns().run("iptables-save", &["-t", "nat"])?;
        ensure!(rules.contains(&format!("-s {} ! -o docker0 -j MASQUERADE", env.subnet)), "{rules}");
        let container = docker.container("one", &[])?;
        ensure!(env.subnet.contains(container.address()), "{} is not of {}", container.address(), env.subnet);
        let link = container.endpoint().netns().ip("link show eth0")?;
        ensure!(link.contains(&format!("mtu {}", env.mtu)), "{link}");

        // Nothing that flannel and docker themselves have set up stands in the way of the next time.
        let again = node.mk_docker_opts(&["-c"])?;
        ensure!(again.status.success(), "{again:?}");

        // Somebody else's route to our own subnet does.
        node.netns().ip(&format!("route add {} via {UNDERLAY_ADDRESS} metric 50", env.subnet))?;
        let refused = node.mk_docker_opts(&["-c"])?;
        let said = String::from_utf8_lossy(&refused.stderr);
        ensure!(
            refused.status.code() == Some(1)
                && said.contains("Your routing table already contains the subnet"),
            "{refused:?}"
        );
        docker.stop()?;
        let started = node.docker(&["-c"], "DOCKER_OPTS");
        ensure!(started.is_err(), "docker was started in spite of the refusal");
        Ok(())
    })
}
