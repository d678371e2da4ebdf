//! Resets that somebody forges: the ends of a connection ignore them, and so does what knows of it.

use std::{net::SocketAddr, thread::sleep, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_common::reason::Reason;
use flannel_lab::{
    AgentOptions, CONVERGENCE, Cluster, FastPath, Member, Pod, counted, eventually, in_lab,
    traffic::{Dialogue, Endpoint, dialogue::listen, forge_reset},
};

use crate::{
    cluster, fast, packets,
    services::{BACKEND_PORT, Service},
    switched::seen_by_netfilter,
    translated::await_fast,
    translated_fast,
};

const REFRESH: Duration = Duration::from_secs(30);
/// How long connection tracking keeps what was reset, in the nodes of these tests.
const AFTER_RESET: Duration = Duration::from_secs(2);
/// What it keeps for longer is established, and not reset.
pub(crate) const LONG: u64 = 3_600;

/// The nodes forget soon what was reset.
fn forget_soon(cluster: &Cluster) -> Result<()> {
    let seconds = AFTER_RESET.as_secs().to_string();
    cluster.members.iter().try_for_each(|member| {
        member.node.netns().sysctl("net/netfilter/nf_conntrack_tcp_timeout_close", &seconds)
    })
}

/// What nodes know of the connection from a port: its state, for how long it is kept, its id.
pub(crate) fn known(members: &[Member], family: &str, port: &str) -> Result<Vec<(String, u64, String)>> {
    let node = |netns: &flannel_lab::Netns| {
        let asked = ["-L", "-f", family, "-o", "id", "-p", "tcp", "--orig-port-src", port];
        let listing = netns.run("conntrack", &asked)?;
        let fields: Vec<&str> = listing.split_whitespace().collect();
        let [_, _, left, state, ..] = fields[..] else {
            anyhow::bail!("nothing is known of port {port}: {listing:?}")
        };
        let id = fields.iter().find(|field| field.starts_with("id=")).context("an id")?;
        Ok((state.to_owned(), left.parse()?, (*id).to_owned()))
    };
    members.iter().map(|member| node(member.node.netns())).collect()
}

/// A connection that is fast.
struct Connection<'a> {
    /// The nodes of its ends, that of the client first.
    members: &'a [Member],
    about: &'static str,
    dialogue: Dialogue,
    family: &'static str,
    port: String,
    /// The ids by which they know it.
    entries: Vec<String>,
}

impl<'a> Connection<'a> {
    fn new(members: &'a [Member], about: &'static str, mut dialogue: Dialogue) -> Result<Self> {
        eventually(CONVERGENCE, about, || {
            // Every node has accepted it both ways: only then does one ask about a reset.
            for node in counted(members, || dialogue.exchanges(10))? {
                let switched = packets(&node, Reason::SwitchPod) / 2;
                for (fast, translated) in fast(&node).into_iter().zip(translated_fast(&node)) {
                    ensure!(fast + translated + switched >= 8, "{node}");
                }
            }
            Ok(())
        })?;
        let client = dialogue.client.local_addr()?;
        let (family, port) = (if client.is_ipv4() { "ipv4" } else { "ipv6" }, client.port().to_string());
        let entries = known(members, family, &port)?.into_iter().map(|(_, _, id)| id).collect();
        Ok(Self { members, about, dialogue, family, port, entries })
    }

    fn client(&self) -> Result<SocketAddr> {
        Ok(self.dialogue.client.local_addr()?)
    }

    /// As the client names it.
    fn destination(&self) -> Result<SocketAddr> {
        Ok(self.dialogue.client.peer_addr()?)
    }

    fn server(&self) -> Result<SocketAddr> {
        Ok(self.dialogue.server.local_addr()?)
    }

    /// The nodes know it as they did.
    fn await_known(&self) -> Result<()> {
        eventually(CONVERGENCE, self.about, || {
            let found = known(self.members, self.family, &self.port)?;
            for ((state, left, id), entry) in found.iter().zip(&self.entries) {
                ensure!(state == "ESTABLISHED" && *left > LONG && id == entry, "{found:?}");
            }
            Ok(())
        })
    }
}

/// Resets from either end's pod, and from the pod beside it in its name.
fn forge(connection: &Connection<'_>, pods: [&Endpoint; 4]) -> Result<()> {
    let [client, beside_client, server, beside_server] = pods;
    let (from, to, behind) = (connection.client()?, connection.destination()?, connection.server()?);
    for (sender, source, destination) in [
        (client, from, to),
        (beside_client, from, to),
        (beside_client, from, behind),
        (server, behind, from),
        (beside_server, behind, from),
    ] {
        forge_reset(sender, source, destination)?;
    }
    Ok(())
}

/// The nodes know of it as if nothing had been. What is put back after the first resets is told of the second.
fn survives(connection: &Connection<'_>, pods: [&Endpoint; 4]) -> Result<()> {
    (0..2).try_for_each(|_| {
        forge(connection, pods)?;
        connection.await_known()
    })
}

/// However long it was silent.
fn goes_on(mut connection: Connection<'_>) -> Result<()> {
    connection.await_known()?;
    connection.dialogue.exchanges(10).context(connection.about)?;
    connection.dialogue.close_at_the_server()
}

#[test]
fn a_forged_reset_ends_no_silent_connection() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 2, REFRESH)?;
        forget_soon(&cluster)?;
        let service = Service::new(&cluster, false)?;
        let remote = &service.serving.backends[1];
        let plain = service.serving.connect(&service.client, 0, remote.socket_address(BACKEND_PORT))?;
        let connections = [
            Connection::new(&cluster.members, "plain", plain)?,
            Connection::new(&cluster.members, "to a Service", service.connection(0)?)?,
        ];
        let beside: Vec<Endpoint> =
            cluster.members.iter().filter_map(|member| Some(member.pods.get(1)?.endpoint())).collect();
        let [beside_client, beside_server] = &beside[..] else { anyhow::bail!("two pods each") };
        let pods = [&service.client, beside_client, remote, beside_server];
        for connection in &connections {
            survives(connection, pods)?;
        }
        // Longer than connection tracking keeps what it takes for reset. A new choice would be another.
        cluster.members[0].node.unload_service()?;
        sleep(AFTER_RESET + Duration::from_secs(1));
        connections.into_iter().try_for_each(|connection| goes_on(connection))
    })
}

#[test]
fn a_forged_reset_ends_no_silent_connection_over_ipv6() -> Result<()> {
    in_lab(|lab| {
        let options = AgentOptions::new(FastPath::Flow, &["--ip-masq", "--flow-refresh=30"]);
        let cluster = Cluster::dual_pair(lab, 2, options)?;
        forget_soon(&cluster)?;
        let pods = |member: usize| -> Result<Vec<Endpoint>> {
            cluster.members[member].pods.iter().map(Pod::endpoint_v6).collect()
        };
        let (here, there) = (pods(0)?, pods(1)?);
        let [client, beside_client, server, beside_server] = [&here[0], &here[1], &there[0], &there[1]];
        let listener = listen(server, 0)?;
        let to = server.socket_address(listener.local_addr()?.port());
        let dialogue = Dialogue::through(client, 0, to, &[&listener])?;
        let connection = Connection::new(&cluster.members, "over IPv6", dialogue)?;
        survives(&connection, [client, beside_client, server, beside_server])?;
        sleep(AFTER_RESET + Duration::from_secs(1));
        goes_on(connection)
    })
}

/// Between two pods of one node, from a pod beside them, from one of another node, and from either end's pod. Each has a
/// connection to itself: once the agent has been told of a reset, it looks out for the next.
#[test]
fn a_forged_reset_ends_no_silent_connection_between_pods_of_one_node() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 3, REFRESH)?;
        forget_soon(&cluster)?;
        let [here, there] = &cluster.members[..] else { anyhow::bail!("two nodes") };
        seen_by_netfilter(here, true)?;
        let pods: Vec<Endpoint> = here.pods.iter().map(Pod::endpoint).collect();
        let elsewhere = there.pod()?;
        let members = std::slice::from_ref(here);
        let mut connections = Vec::new();
        // The one with the lower index of its veth begins, and the other.
        for [client, server] in [[&pods[0], &pods[1]], [&pods[1], &pods[0]]] {
            for senders in [[&pods[2]; 4], [&elsewhere; 4], [client, &pods[2], server, &elsewhere]] {
                let dialogue = Dialogue::open(client, server)?;
                let connection = Connection::new(members, "between pods of one node", dialogue)?;
                survives(&connection, senders)?;
                connections.push(connection);
            }
        }
        sleep(AFTER_RESET + Duration::from_secs(1));
        connections.into_iter().try_for_each(goes_on)
    })
}

/// What the kernel has done to it the next packets undo, and nobody else has done anything.
#[test]
fn a_busy_connection_survives_a_forged_reset_and_the_death_of_the_agents() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = cluster(lab, 2, REFRESH)?;
        forget_soon(&cluster)?;
        let service = Service::new(&cluster, false)?;
        let mut dialogue = service.connection(0)?;
        await_fast(&cluster, || dialogue.exchanges(10))?;
        let (from, to) = (dialogue.client.local_addr()?, dialogue.client.peer_addr()?);
        for sender in [&service.client, &cluster.members[0].pods[1].endpoint()] {
            forge_reset(sender, from, to)?;
            dialogue.exchanges(10)?;
        }
        for member in &mut cluster.members {
            member.agent.kill()?;
        }
        cluster.members[0].node.unload_service()?;
        for _ in 0..4 * AFTER_RESET.as_secs() {
            dialogue.exchanges(10)?;
            sleep(Duration::from_millis(500));
        }
        for (state, left, _) in known(&cluster.members, "ipv4", &from.port().to_string())? {
            ensure!(state == "ESTABLISHED" && left > AFTER_RESET.as_secs(), "{state}, for {left} s");
        }
        dialogue.close_at_the_server()
    })
}

/// Of a pod that translates by itself, as one of a service mesh does, no socket knows the connection. It counts as over, and
/// goes on all the same if it does.
#[test]
fn a_connection_goes_on_whose_pod_knows_no_socket_of_it() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 1, REFRESH)?;
        let [client, server] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let listener = listen(&server, 9_090)?;
        let redirect = "-t nat -A PREROUTING -p tcp --dport 8080 -j REDIRECT --to-ports 9090";
        server.netns().run("iptables", &redirect.split(' ').collect::<Vec<_>>())?;
        let dialogue = Dialogue::through(&client, 0, server.socket_address(8_080), &[&listener])?;
        let mut connection = Connection::new(&cluster.members, "into a pod that translates", dialogue)?;
        let state = |state: &str| {
            eventually(CONVERGENCE, state, || {
                let found = known(&cluster.members, connection.family, &connection.port)?;
                ensure!(found[1].0 == state, "{found:?}");
                Ok(())
            })
        };
        forge_reset(&client, connection.client()?, connection.destination()?)?;
        state("CLOSE")?;
        connection.dialogue.exchanges(10)?;
        state("ESTABLISHED")?;
        connection.dialogue.exchanges(10)?;
        connection.dialogue.close_at_the_server()
    })
}
