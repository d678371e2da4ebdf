//! Ways that an administrator gives to a pod's packets alone: over a firewall, to another gateway, over another node. Every
//! packet takes them. Those that do are accepted like others, and none may skip the way because of that.

use std::{net::UdpSocket, thread::sleep, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_lab::{AgentOptions, Cluster, Etcd, FastPath, Lab, Netns, eventually, in_lab, traffic::Endpoint};

/// `--flow-refresh`, for both protocols.
const REFRESH: Duration = Duration::from_secs(1);
/// How long a datagram may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// The router between the nodes, which is the lab's underlay.
const ROUTER: [&str; 2] = ["192.168.77.254", "fd77::fe"];

/// Who forwards on the way.
#[derive(Clone, Copy)]
enum By {
    /// The second pod of the node with this number.
    Pod(usize),
    /// The underlay.
    Router,
    /// The third node, which drops it: it would masquerade what is neither from its pods nor for them.
    Node,
}

/// When the way is given.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    BeforeTheFlow,
    DuringTheFlow,
}

/// A way, by what is run on the node `at`: `$A` and `$B` are the pods, `$F` is the pod that forwards, `$R` the router,
/// `$N` the third node's address in the overlay, `$MAC` the MAC of `$A`, `$DEV` the VXLAN device, `$ip` is `ip` of the
/// family and
/// `$iptables` its iptables.
struct Detour {
    at: usize,
    by: By,
    when: When,
    make: &'static str,
    undo: &'static str,
}

/// Over a pod of the receiver's node and of the sender's, over the router past the tunnel, and over another node.
const OVER_VXLAN: [Detour; 4] = [
    Detour {
        at: 1,
        by: By::Pod(1),
        when: When::BeforeTheFlow,
        make: "$ip rule add iif $DEV to $B table 9; $ip route add default via $F dev cni0 table 9",
        undo: "$ip rule del iif $DEV to $B table 9; $ip route flush table 9",
    },
    Detour {
        at: 0,
        by: By::Pod(0),
        when: When::BeforeTheFlow,
        make: "$iptables -t mangle -A PREROUTING -d $B -m mac --mac-source $MAC -j MARK --set-mark 7
               $ip rule add fwmark 7 table 9; $ip route add default via $F dev cni0 table 9",
        undo: "$iptables -t mangle -F PREROUTING; $ip rule del fwmark 7 table 9; $ip route flush table 9",
    },
    Detour {
        at: 0,
        by: By::Router,
        when: When::DuringTheFlow,
        make: "$ip route add $B via $R dev eth0",
        undo: "$ip route del $B via $R dev eth0",
    },
    Detour {
        at: 0,
        by: By::Node,
        when: When::DuringTheFlow,
        make: "$ip rule add to $B table 9; $ip route add $B via $N dev $DEV onlink table 9",
        undo: "$ip rule del to $B table 9; $ip route flush table 9",
    },
];

/// Over the router, where the lease names the node itself as the next hop.
const WITHOUT_TUNNEL: [Detour; 3] = [
    Detour {
        at: 0,
        by: By::Router,
        when: When::BeforeTheFlow,
        make: "$ip route add $B via $R dev eth0",
        undo: "$ip route del $B via $R dev eth0",
    },
    Detour {
        at: 0,
        by: By::Router,
        when: When::DuringTheFlow,
        make: "$ip rule add from $A to $B table 9; $ip route add default via $R dev eth0 table 9",
        undo: "$ip rule del from $A to $B table 9; $ip route flush table 9",
    },
    Detour {
        at: 1,
        by: By::Pod(1),
        when: When::BeforeTheFlow,
        make: "$ip rule add iif eth0 to $B table 9; $ip route add default via $F dev cni0 table 9",
        undo: "$ip rule del iif eth0 to $B table 9; $ip route flush table 9",
    },
];

/// The first two nodes' pods, and whatever is on their ways, by one family.
struct Scene {
    is_ipv6: bool,
    cluster: Cluster,
    router: Netns,
}

impl Scene {
    fn new(lab: &Lab, fast_path: FastPath, configure: fn(&Etcd) -> Result<()>) -> Result<Self> {
        let refresh = format!("--flow-refresh={}", REFRESH.as_secs());
        let options = AgentOptions::new(fast_path, &["--ip-masq", &refresh]);
        let mut cluster = Cluster::start_v6(lab, 3, options, configure)?;
        for member in &mut cluster.members {
            member.pods.push(member.node.pod("firewall")?);
        }
        let scene = Self { is_ipv6: false, cluster, router: lab.underlay()? };
        for member in &scene.cluster.members {
            forwards(member.node.netns())?;
            forwards(member.pods[1].netns())?;
            member
                .node
                .netns()
                .run("sh", &["-ec", "echo 1 | tee /proc/sys/net/bridge/bridge-nf-call-ip*tables"])?;
        }
        forwards(&scene.router)?;
        scene.cluster.await_fast_path(0, 1, fast_path)?;
        scene.cluster.await_fast_path_v6(0, 1, fast_path)?;
        for member in &scene.cluster.members {
            let node = &member.node;
            scene.router.ip_batch(&format!(
                "route add {} via {}\nroute add {} via {}\n",
                node.subnet_env()?.subnet,
                node.address(),
                node.subnet_env_v6()?.subnet,
                node.address_v6()
            ))?;
        }
        Ok(scene)
    }

    /// The pod with this number of the node with that.
    fn pod(&self, node: usize, number: usize) -> Result<Endpoint> {
        let pod = &self.cluster.members[node].pods[number];
        if self.is_ipv6 { pod.endpoint_v6() } else { Ok(pod.endpoint()) }
    }

    fn run(&self, at: usize, by: By, script: &str) -> Result<()> {
        let address = |pod: Endpoint| pod.socket_address(0).ip();
        let (a, b) = (self.pod(0, 0)?, self.pod(1, 0)?);
        let mac = a.netns().run("cat", &["/sys/class/net/eth0/address"])?;
        let firewall = match by {
            By::Pod(node) => address(self.pod(node, 1)?).to_string(),
            By::Router | By::Node => String::new(),
        };
        let third = &self.cluster.members[2].node;
        let (words, third) = match self.is_ipv6 {
            false => ("ip=ip; iptables=iptables; DEV=flannel.1", third.subnet_env()?.subnet.ip().to_string()),
            true => (
                "ip='ip -6'; iptables=ip6tables; DEV=flannel-v6.1",
                third.subnet_env_v6()?.subnet.ip().to_string(),
            ),
        };
        let router = ROUTER[usize::from(self.is_ipv6)];
        let script = format!(
            "{words}; A={}; B={}; F={firewall}; R={router}; N={third}; MAC={}; {script}",
            address(a),
            address(b),
            mac.trim()
        );
        self.cluster.members[at].node.netns().run("sh", &["-ec", &script]).map(drop)
    }

    /// Lets who forwards on the way drop what is for the second pod, or no longer.
    fn block(&self, by: By, does: bool) -> Result<()> {
        let netns = match by {
            By::Pod(node) => self.cluster.members[node].pods[1].netns(),
            By::Router => &self.router,
            By::Node => self.cluster.members[2].node.netns(),
        };
        let to = self.pod(1, 0)?.socket_address(0).ip().to_string();
        let (program, verb) =
            (if self.is_ipv6 { "ip6tables" } else { "iptables" }, if does { "-I" } else { "-D" });
        netns.run(program, &["-w", verb, "FORWARD", "-d", &to, "-j", "DROP"]).map(drop)
    }

    /// Whether a running flow takes `detour` with each packet.
    fn is_taken(&self, detour: &Detour) -> Result<()> {
        let Detour { at, by, when, make, undo } = *detour;
        let during = Conversation::new(&self.pod(0, 0)?, &self.pod(1, 0)?)?;
        during.exchanges(20)?;
        if matches!(by, By::Node) {
            self.block(by, true)?;
        }
        self.run(at, by, make)?;
        let conversation = match when {
            When::DuringTheFlow => during,
            When::BeforeTheFlow => Conversation::new(&self.pod(0, 0)?, &self.pod(1, 0)?)?,
        };
        // What was accepted before is over, and what is accepted now has long been.
        sleep(REFRESH);
        match by {
            By::Pod(_) | By::Router => {
                conversation.exchanges(30)?;
                self.block(by, true)?;
            }
            By::Node => conversation.asks(30)?,
        }
        let passed = conversation.passes(5)?;
        self.block(by, false)?;
        self.run(at, by, undo)?;
        ensure!(passed == 0, "{passed} of 5 packets have found another way");
        eventually(PATIENCE * 5, "the pods reach each other", || conversation.exchanges(1))
    }
}

/// Lets packets come in and go out by one interface.
fn forwards(netns: &Netns) -> Result<()> {
    let script = "cd /proc/sys/net; echo 1 > ipv4/ip_forward; echo 1 > ipv6/conf/all/forwarding
                  for f in ipv4/conf/*/rp_filter ipv4/conf/*/send_redirects ipv4/conf/*/accept_redirects \
                           ipv6/conf/*/accept_redirects; do echo 0 > $f; done";
    netns.run("sh", &["-ec", script]).map(drop)
}

/// Datagrams to and fro, between ports of their own.
pub(crate) struct Conversation {
    /// At the pod that asks.
    pub(crate) from: UdpSocket,
    /// At the pod that answers.
    pub(crate) to: UdpSocket,
}

impl Conversation {
    pub(crate) fn new(from: &Endpoint, to: &Endpoint) -> Result<Self> {
        let bind = |at: &Endpoint| at.netns().inside(|| Ok(UdpSocket::bind(at.socket_address(0))?));
        let (from, to) = (bind(from)?, bind(to)?);
        from.connect(to.local_addr()?)?;
        to.connect(from.local_addr()?)?;
        for socket in [&from, &to] {
            socket.set_read_timeout(Some(PATIENCE))?;
        }
        Ok(Self { from, to })
    }

    pub(crate) fn exchanges(&self, times: u32) -> Result<()> {
        for number in 0..times {
            for (from, to) in [(&self.from, &self.to), (&self.to, &self.from)] {
                from.send(&number.to_be_bytes())?;
                to.recv(&mut [0; 8]).with_context(|| format!("datagram {number} did not arrive"))?;
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Sends, and hears nothing.
    fn asks(&self, times: u32) -> Result<()> {
        for number in 0..times {
            self.from.send(&number.to_be_bytes())?;
            sleep(Duration::from_millis(50));
        }
        self.to.set_nonblocking(true)?;
        while self.to.recv(&mut [0; 8]).is_ok() {}
        Ok(self.to.set_nonblocking(false)?)
    }

    /// How many of `count` datagrams arrive.
    pub(crate) fn passes(&self, count: usize) -> Result<usize> {
        self.to.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut passed = 0;
        for _ in 0..count {
            self.from.send(b"blocked")?;
            passed += usize::from(self.to.recv(&mut [0; 8]).is_ok());
        }
        self.to.set_read_timeout(Some(PATIENCE))?;
        Ok(passed)
    }
}

fn are_taken(fast_path: FastPath, detours: &[Detour], configure: fn(&Etcd) -> Result<()>) -> Result<()> {
    in_lab(|lab| {
        let mut scene = Scene::new(lab, fast_path, configure)?;
        for is_ipv6 in [false, true] {
            scene.is_ipv6 = is_ipv6;
            for (number, detour) in detours.iter().enumerate() {
                let about = || format!("IPv6 {is_ipv6}, detour {number}: {}", detour.make);
                scene.is_taken(detour).with_context(about)?;
            }
        }
        Ok(())
    })
}

fn vxlan(etcd: &Etcd) -> Result<()> {
    etcd.configure_dual("vxlan")
}

fn host_gw(etcd: &Etcd) -> Result<()> {
    etcd.configure_dual("host-gw")
}

/// As [`host_gw`], by the other backend that sends without a tunnel.
fn direct_routing(etcd: &Etcd) -> Result<()> {
    etcd.configure_dual_direct_routing()
}

#[test]
fn detours_of_the_overlay_are_taken_with_off() -> Result<()> {
    are_taken(FastPath::Off, &OVER_VXLAN, vxlan)
}

#[test]
fn detours_of_the_overlay_are_taken_with_flow() -> Result<()> {
    are_taken(FastPath::Flow, &OVER_VXLAN, vxlan)
}

#[test]
fn detours_without_a_tunnel_are_taken_with_off() -> Result<()> {
    are_taken(FastPath::Off, &WITHOUT_TUNNEL, host_gw)
}

#[test]
fn detours_without_a_tunnel_are_taken_with_flow() -> Result<()> {
    are_taken(FastPath::Flow, &WITHOUT_TUNNEL, host_gw)
}

#[test]
fn detours_beside_direct_routes_are_taken_with_flow() -> Result<()> {
    are_taken(FastPath::Flow, &WITHOUT_TUNNEL[..1], direct_routing)
}
