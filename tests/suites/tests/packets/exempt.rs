//! Pods keep their address towards what is exempt from masquerading, whatever masquerade rules the node
//! has, and nowhere else.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flannel_common::mark::SNAT_EXEMPT_MARK;
use flannel_lab::{
    AgentOptions, CONVERGENCE, Cluster, FastPath, Lab, Member, Netns, eventually, in_lab, traffic::Endpoint,
};
use nix::sys::socket::{setsockopt, sockopt::Mark};

/// Outside of the cluster; the first is in [`NAMED`].
const PARTNER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// What the operator names on the command line.
const NAMED: &str = "203.0.113.0/24";
/// The same for [`WORLD`], in the file.
const IN_FILE: &str = "198.51.100.0/24  # the world, for a while\n";

/// How long a change of the file may take until it is in force.
const PROMPTLY: Duration = Duration::from_secs(10);

/// More than the underlay carries in one packet.
const LARGE: usize = 4_000;

/// What the receiver at `to` sees as the source of a datagram of `size` bytes that `from` sends it, in a
/// flow of its own, with `mark` on the socket.
fn seen(from: &Netns, to: &Endpoint, size: usize, mark: u32) -> Result<IpAddr> {
    let receiver = to.netns().inside(|| Ok(UdpSocket::bind((to.address(), 0))?))?;
    receiver.set_read_timeout(Some(Duration::from_secs(2)))?;
    let sender = from.inside(|| Ok(UdpSocket::bind((to.any_address(), 0))?))?;
    setsockopt(&sender, Mark, &mark).context("SO_MARK")?;
    sender.send_to(&vec![7; size], receiver.local_addr()?)?;
    let mut buffer = vec![0; size + 1];
    let (length, source) =
        receiver.recv_from(&mut buffer).with_context(|| format!("nothing arrived at {}", to.name()))?;
    ensure!(length == size, "{length} of {size} bytes arrived");
    Ok(source.ip())
}

/// Two nodes, on the first of which the agent has exemptions and docker's masquerade rule is loaded; the
/// underlay plays the world.
struct Scene {
    cluster: Cluster,
    partner: Endpoint,
    world: Endpoint,
    file: std::path::PathBuf,
}

impl Scene {
    fn set(lab: &Lab, fast_path: FastPath, flags: &[&str]) -> Result<Self> {
        let etcd = lab.etcd()?;
        let node = lab.node()?;
        let file = lab.dir().join("exempt");
        let mut flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        flags.push(format!("--snat-exempt-file={}", file.display()));
        let agent = node.agent(&etcd, AgentOptions { fast_path, flags })?;
        let pods = vec![node.pod("pod1")?];
        let first = Member { pods, agent, node };
        let second = Member::start(lab.node()?, &etcd, fast_path, 1)?;
        let cluster = Cluster { members: vec![first, second], etcd };
        cluster.await_reachable(&[])?;

        let underlay = lab.underlay()?;
        underlay.ip_batch(&format!("addr add {PARTNER}/32 dev lo\naddr add {WORLD}/32 dev lo\n"))?;
        let outside = |name: &str, address| Endpoint::new(name.to_owned(), underlay.clone(), address);
        let (partner, world) = (outside("partner", PARTNER), outside("world", WORLD));
        let scene = Self { cluster, partner, world, file };
        let subnet = scene.cluster.members[0].node.subnet_env()?.subnet;
        let subnet = format!("{}/{}", subnet.network(), subnet.prefix());
        scene.iptables(&format!("-t nat -A POSTROUTING -s {subnet} ! -o cni0 -j MASQUERADE"))?;
        Ok(scene)
    }

    fn iptables(&self, words: &str) -> Result<()> {
        let words: Vec<&str> = ["--wait"].into_iter().chain(words.split(' ')).collect();
        self.cluster.members[0].node.netns().run("iptables", &words).map(drop)
    }

    /// Whether the rule that lets marked packets be stands first in POSTROUTING.
    fn lets_marked_packets_be(&self) -> Result<bool> {
        let netns = self.cluster.members[0].node.netns();
        let rules = netns.run("iptables", &["--wait", "-t", "nat", "-S", "POSTROUTING"])?;
        Ok(rules.lines().find(|line| line.starts_with("-A")).is_some_and(|rule| rule.contains("0x40/0x4040")))
    }

    /// Puts it there, unless the agent has.
    fn let_marked_packets_be(&self) -> Result<()> {
        if self.lets_marked_packets_be()? {
            return Ok(());
        }
        self.iptables("-t nat -I POSTROUTING 1 -m mark --mark 0x40/0x4040 -j RETURN")
    }

    fn seen(&self, to: &Endpoint, size: usize, mark: u32) -> Result<IpAddr> {
        seen(self.cluster.members[0].pods[0].netns(), to, size, mark)
    }

    fn keeps_address(&self, to: &Endpoint) -> Result<()> {
        let pod = self.cluster.members[0].pods[0].address();
        for size in [10, LARGE] {
            let source = self.seen(to, size, 0)?;
            ensure!(source == pod, "{} sees {source} instead of the pod's {pod} ({size} bytes)", to.name());
        }
        Ok(())
    }

    fn is_masqueraded(&self, to: &Endpoint) -> Result<()> {
        let member = &self.cluster.members[0];
        let own = [member.node.address(), member.node.overlay_endpoint()?.address_v4()];
        // A pod cannot exempt itself: what it marks with our bit loses the mark on the way out of it.
        for (size, mark) in [(10, 0), (10, SNAT_EXEMPT_MARK), (LARGE, 0)] {
            let source = self.seen(to, size, mark)?;
            ensure!(
                own.iter().any(|own| *own == source),
                "{} sees {source} instead of the node's ({size} bytes)",
                to.name()
            );
        }
        Ok(())
    }

    /// Waits until the pod's program is attached and its maps are filled.
    fn await_marks(&self) -> Result<()> {
        eventually(CONVERGENCE, "exempt packets are marked", || self.keeps_address(&self.partner))
    }
}

fn only_what_is_exempt(fast_path: FastPath) -> Result<()> {
    in_lab(|lab| {
        let scene = Scene::set(lab, fast_path, &["--snat-exempt-cidr", NAMED, "--snat-exempt-nodes"])?;
        let [a, b] = [&scene.cluster.members[0], &scene.cluster.members[1]];
        let (pod, node) = (b.pod()?, b.node.underlay_endpoint());
        // Without the rule that looks at the mark, all of it is masqueraded.
        if !scene.lets_marked_packets_be()? {
            for outside in [&node, &scene.partner, &scene.world] {
                scene.is_masqueraded(outside)?;
            }
            if fast_path != FastPath::All {
                scene.is_masqueraded(&pod)?;
            }
        }

        scene.let_marked_packets_be()?;
        scene.await_marks()?;
        for exempt in [&pod, &node, &scene.partner] {
            scene.keeps_address(exempt)?;
        }
        scene.is_masqueraded(&scene.world)?;
        // The node's own packets were never the pods'.
        let own = seen(a.node.netns(), &scene.partner, 10, 0)?;
        ensure!(own == a.node.address(), "the node's own packets come from {own}");

        // Whoever asks for masquerading by kube-proxy's mark gets it.
        let from = a.pods[0].address();
        for (to, rule) in [(&scene.partner, PARTNER), (&node, node.address_v4())] {
            let rule = format!("PREROUTING -s {from} -d {rule} -j MARK --or-mark 0x4000");
            scene.iptables(&format!("-t mangle -A {rule}"))?;
            scene.is_masqueraded(to)?;
            scene.iptables(&format!("-t mangle -D {rule}"))?;
            scene.keeps_address(to)?;
        }
        Ok(())
    })
}

#[test]
fn overlay_keeps_the_address_only_towards_what_is_exempt() -> Result<()> {
    only_what_is_exempt(FastPath::Overlay)
}

#[test]
fn flow_keeps_the_address_only_towards_what_is_exempt() -> Result<()> {
    only_what_is_exempt(FastPath::Flow)
}

#[test]
fn all_keeps_the_address_only_towards_what_is_exempt() -> Result<()> {
    only_what_is_exempt(FastPath::All)
}

/// What the operator names of IPv6 is exempt from flannel's own masquerading.
#[test]
fn the_address_is_kept_over_ipv6_too() -> Result<()> {
    const PARTNER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
    const WORLD: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);
    in_lab(|lab| {
        let flags = ["--ip-masq", "--snat-exempt-cidr=2001:db8:1::/48"].map(str::to_owned).to_vec();
        let options = AgentOptions { fast_path: FastPath::Flow, flags };
        let cluster = Cluster::start_v6(lab, 2, options, |etcd| etcd.configure_dual("vxlan"))?;
        let underlay = lab.underlay()?;
        underlay.ip_batch(&format!("addr add {PARTNER}/128 dev lo\naddr add {WORLD}/128 dev lo\n"))?;
        let [partner, world] =
            [PARTNER, WORLD].map(|address| Endpoint::new(address.to_string(), underlay.clone(), address));
        let [a, b] = &cluster.members[..] else { anyhow::bail!("two nodes") };
        let (pod, peer) = (a.pod_v6()?, b.pod_v6()?);
        eventually(CONVERGENCE, "the operator's network is exempt", || {
            let source = seen(pod.netns(), &partner, 10, 0)?;
            ensure!(source == pod.address(), "it sees {source}");
            Ok(())
        })?;
        for (to, keeps) in [(&partner, true), (&peer, true), (&world, false)] {
            for size in [10, LARGE] {
                let source = seen(pod.netns(), to, size, 0)?;
                let expected = if keeps { pod.address() } else { a.node.address_v6().into() };
                ensure!(source == expected, "{} sees {source}, not {expected} ({size} bytes)", to.name());
            }
        }
        Ok(())
    })
}

/// Without flags the cluster's network is exempt, and nothing else.
#[test]
fn nodes_and_networks_are_exempt_only_if_named() -> Result<()> {
    in_lab(|lab| {
        let scene = Scene::set(lab, FastPath::Flow, &[])?;
        scene.let_marked_packets_be()?;
        let peer = &scene.cluster.members[1];
        let pod = peer.pod()?;
        eventually(CONVERGENCE, "pods see each other's address", || scene.keeps_address(&pod))?;
        for outside in [&peer.node.underlay_endpoint(), &scene.partner, &scene.world] {
            scene.is_masqueraded(outside)?;
        }
        Ok(())
    })
}

#[test]
fn the_file_takes_effect_when_it_changes() -> Result<()> {
    in_lab(|lab| {
        let scene = Scene::set(lab, FastPath::Flow, &["--snat-exempt-cidr", NAMED])?;
        let log = || scene.cluster.members[0].agent.log();
        scene.let_marked_packets_be()?;
        scene.await_marks()?;
        // It is not there yet: said, and gone on without.
        let path = scene.file.display().to_string();
        ensure!(log().contains(&path) && log().contains("cannot be read"), "the log does not say so");
        scene.is_masqueraded(&scene.world)?;

        fs::write(&scene.file, IN_FILE)?;
        eventually(PROMPTLY, "the file is used", || scene.keeps_address(&scene.world))?;
        // A mistake changes nothing, and is named.
        fs::write(&scene.file, format!("{IN_FILE}\n198.51.100.0/42\n"))?;
        eventually(PROMPTLY, "the mistake is named", || {
            let log = log();
            let named = ["line 3", "198.51.100.0/42", "write a network"];
            ensure!(named.iter().all(|part| log.contains(part)), "not in the log");
            Ok(())
        })?;
        scene.keeps_address(&scene.world)?;
        scene.keeps_address(&scene.partner)?;

        let next = scene.file.with_extension("new");
        fs::write(&next, "# nothing\n")?;
        fs::rename(&next, &scene.file)?;
        eventually(PROMPTLY, "the world is masqueraded again", || scene.is_masqueraded(&scene.world))?;
        scene.keeps_address(&scene.partner)
    })
}

/// Without eBPF nothing is marked; the log says, once, what that is worth.
#[test]
fn without_ebpf_the_log_says_which_exemptions_are_lost() -> Result<()> {
    in_lab(|lab| {
        let scene = Scene::set(lab, FastPath::Off, &["--snat-exempt-cidr", NAMED, "--snat-exempt-nodes"])?;
        scene.let_marked_packets_be()?;
        scene.is_masqueraded(&scene.partner)?;
        let log = scene.cluster.members[0].agent.log();
        let lines: Vec<_> = log.lines().filter(|line| line.contains("need eBPF")).collect();
        ensure!(lines.len() == 1, "said {} times:\n{log}", lines.len());
        for flag in ["--snat-exempt-cidr", "--snat-exempt-file", "--snat-exempt-nodes"] {
            ensure!(lines[0].contains(flag), "{flag} is missing in {}", lines[0]);
        }
        Ok(())
    })
}

/// What cannot be meant is refused, with the remedy, before anything is touched.
#[test]
fn a_network_of_everything_is_refused() -> Result<()> {
    in_lab(|lab| {
        let node = lab.node()?;
        let binary = flannel_lab::agent_binary()?;
        for (value, part) in [("0.0.0.0/0", "every destination"), ("10.0.0.0/42", "write a network")] {
            let output = node
                .netns()
                .command(&binary.to_string_lossy())
                .args(["--etcd-endpoints=http://127.0.0.1:1", "--snat-exempt-cidr", value])
                .output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(!output.status.success(), "{value} was accepted");
            for part in [part, value, "--snat-exempt-cidr"] {
                ensure!(said.contains(part), "{part:?} is missing in {said}");
            }
        }
        Ok(())
    })
}
