//! Deleting entries of connection tracking is how a changed policy takes hold of running flows: the next packet begins an entry
//! of its own, and meets the rules for new ones. With the fast path as without.

use std::{net::UdpSocket, thread::sleep, time::Duration};

use anyhow::{Result, ensure};
use flannel_common::reason::Reason;
use flannel_lab::{
    AgentOptions, CONVERGENCE, Cluster, FastPath, Lab, Member, eventually, in_lab,
    traffic::{Dialogue, Endpoint},
};

use crate::{cluster, counted, detours::Conversation, fast, packets, switched::seen_by_netfilter};

/// Two nodes with two pods each, by both families. What netfilter has accepted counts for half a minute: whatever happens
/// before happens because of the deletion.
fn long_accepted(lab: &Lab) -> Result<Cluster> {
    let options = AgentOptions::new(FastPath::Flow, &["--ip-masq", "--flow-refresh=30"]);
    let cluster = Cluster::dual_pair(lab, 2, options)?;
    for member in &cluster.members {
        for timeout in ["udp_timeout", "udp_timeout_stream"] {
            member.node.netns().sysctl(&format!("net/netfilter/nf_conntrack_{timeout}"), "600")?;
        }
        seen_by_netfilter(member, true)?;
    }
    Ok(cluster)
}

/// Two pods by both families.
fn families([from, to]: [(&Member, usize); 2]) -> Result<[[Endpoint; 2]; 2]> {
    let pod = |(member, number): (&Member, usize)| -> Result<[Endpoint; 2]> {
        let pod = &member.pods[number];
        Ok([pod.endpoint(), pod.endpoint_v6()?])
    };
    let ([from_v4, from_v6], [to_v4, to_v6]) = (pod(from)?, pod(to)?);
    Ok([[from_v4, to_v4], [from_v6, to_v6]])
}

/// A conversation by UDP that is fast.
fn fast_conversation(cluster: &Cluster, [from, to]: &[Endpoint; 2]) -> Result<Conversation> {
    let conversation = Conversation::new(from, to)?;
    eventually(CONVERGENCE, "the conversation is fast", || {
        let [at_client, _] = counted(cluster, || conversation.exchanges(5))?;
        let switched = packets(&at_client, Reason::SwitchPod);
        ensure!(fast(&at_client)[0] >= 4 || switched >= 8, "{at_client}");
        Ok(())
    })?;
    Ok(conversation)
}

/// A rule of one node about what comes from a pod.
struct Rule<'a> {
    member: &'a Member,
    iptables: &'static str,
    rule: String,
}

impl<'a> Rule<'a> {
    /// Nothing new comes from the pod.
    fn refuse(member: &'a Member, from: &Endpoint) -> Result<Self> {
        let address = from.address();
        let iptables = if address.is_ipv4() { "iptables" } else { "ip6tables" };
        let rule = format!("FORWARD -s {address} -m conntrack --ctstate NEW -j DROP");
        let rule = Self { member, iptables, rule };
        rule.run("-I")?;
        Ok(rule)
    }

    fn run(&self, verb: &str) -> Result<()> {
        let line = match self.rule.strip_prefix("-t nat ") {
            Some(rule) => format!("-w -t nat {verb} {rule}"),
            None => format!("-w {verb} {}", self.rule),
        };
        self.member.node.netns().run(self.iptables, &line.split(' ').collect::<Vec<_>>()).map(drop)
    }

    fn undo(self) -> Result<()> {
        self.run("-D")
    }
}

/// Deletes what a node knows of connections that a pod has begun.
fn delete(member: &Member, protocol: &str, from: &Endpoint) -> Result<()> {
    let address = from.address().to_string();
    let family = if from.address().is_ipv4() { "ipv4" } else { "ipv6" };
    let asked = ["-D", "-f", family, "-p", protocol, "--orig-src", &address];
    member.node.netns().run("conntrack", &asked).map(drop)
}

/// A refusal of what is new cuts the conversation where its entry is deleted, and not before.
fn is_cut(cluster: &Cluster, at: usize, pods: &[Endpoint; 2]) -> Result<()> {
    let conversation = fast_conversation(cluster, pods)?;
    let member = &cluster.members[at];
    let rule = Rule::refuse(member, &pods[0])?;
    conversation.exchanges(5)?;
    delete(member, "udp", &pods[0])?;
    for _ in 0..3 {
        let passed = conversation.passes(3)?;
        ensure!(passed == 0, "{passed} of 3 datagrams passed");
    }
    rule.undo()?;
    eventually(CONVERGENCE, "it goes on", || conversation.exchanges(1))
}

#[test]
fn a_deleted_entry_cuts_what_is_refused_between_pods_of_one_node() -> Result<()> {
    in_lab(|lab| {
        let cluster = long_accepted(lab)?;
        let member = &cluster.members[0];
        // The one with the lower index of its veth asks, and the other.
        for ends in [[(member, 0), (member, 1)], [(member, 1), (member, 0)]] {
            families(ends)?.iter().try_for_each(|pods| is_cut(&cluster, 0, pods))?;
        }
        Ok(())
    })
}

#[test]
fn a_deleted_entry_cuts_what_is_refused_between_nodes() -> Result<()> {
    in_lab(|lab| {
        let cluster = long_accepted(lab)?;
        let [client, server] = &cluster.members[..] else { anyhow::bail!("two nodes") };
        for pods in families([(client, 0), (server, 0)])? {
            (0..2).try_for_each(|at| is_cut(&cluster, at, &pods))?;
        }
        Ok(())
    })
}

/// All of them at once.
#[test]
fn an_emptied_table_cuts_all_that_is_refused() -> Result<()> {
    in_lab(|lab| {
        let cluster = long_accepted(lab)?;
        let [client, server] = &cluster.members[..] else { anyhow::bail!("two nodes") };
        let [pods, _] = families([(client, 0), (server, 0)])?;
        let conversations =
            (0..20).map(|_| fast_conversation(&cluster, &pods)).collect::<Result<Vec<_>>>()?;
        let rule = Rule::refuse(client, &pods[0])?;
        conversations.iter().try_for_each(|conversation| conversation.exchanges(1))?;
        client.node.netns().run("conntrack", &["-F"])?;
        for conversation in &conversations {
            ensure!(conversation.passes(1)? == 0, "a datagram passed");
        }
        rule.undo()
    })
}

/// As [`is_cut`], of a connection that was silent before: nobody else's packet comes first.
#[test]
fn a_deleted_entry_cuts_a_refused_connection() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 1, Duration::from_secs(30))?;
        let [client, server] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        for member in &cluster.members {
            let mut dialogue = Dialogue::open(&client, &server)?;
            eventually(CONVERGENCE, "the connection is fast", || {
                let [at_client, _] = counted(&cluster, || dialogue.exchanges(10))?;
                ensure!(fast(&at_client)[0] >= 8, "{at_client}");
                Ok(())
            })?;
            let rule = Rule::refuse(member, &client)?;
            dialogue.exchanges(5)?;
            sleep(Duration::from_secs(1));
            delete(member, "tcp", &client)?;
            let exchanged = dialogue.exchange_within(Duration::from_secs(1));
            ensure!(exchanged.is_err(), "the connection goes on");
            rule.undo()?;
        }
        Ok(())
    })
}

/// What is translated from now on is so where its entry is deleted, and not before.
#[test]
fn a_deleted_entry_lets_a_flow_be_led_elsewhere() -> Result<()> {
    in_lab(|lab| {
        let cluster = long_accepted(lab)?;
        let [here, there] = &cluster.members[..] else { anyhow::bail!("two nodes") };
        for ends in [[(here, 0), (here, 1)], [(here, 0), (there, 0)]] {
            let [pods, _] = families(ends)?;
            let conversation = fast_conversation(&cluster, &pods)?;
            let elsewhere = there.pods[1].endpoint();
            let other: UdpSocket =
                elsewhere.netns().inside(|| Ok(UdpSocket::bind(elsewhere.socket_address(0))?))?;
            other.set_read_timeout(Some(CONVERGENCE))?;
            let to = conversation.to.local_addr()?;
            let rule = Rule {
                member: here,
                iptables: "iptables",
                rule: format!(
                    "-t nat PREROUTING -p udp -d {} --dport {} -j DNAT --to-destination {}",
                    to.ip(),
                    to.port(),
                    other.local_addr()?
                ),
            };
            rule.run("-I")?;
            conversation.exchanges(5)?;
            delete(here, "udp", &pods[0])?;
            ensure!(conversation.passes(3)? == 0, "it goes where it went");
            let mut datagram = [0; 16];
            let length = other.recv(&mut datagram)?;
            ensure!(&datagram[..length] == b"blocked", "{:?}", &datagram[..length]);
            rule.undo()?;
        }
        Ok(())
    })
}
