//! An hour of a busy cluster in a minute: pods and nodes come and go, agents are killed and replaced, connection
//! tracking forgets. No flow stalls, and each byte arrives.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flannel_common::reason::Reason;
use flannel_lab::{
    AgentOptions, CONVERGENCE, Cluster, FastPath, Member, Xdp, eventually, in_lab,
    traffic::{
        Dialogue, Endpoint, Paced, every_kind,
        tcp::{self, Stream},
        udp,
    },
};

use crate::{arrived, left};

/// Flows that last through all of it.
struct Steady {
    streams: Vec<Stream>,
    paced: Vec<Paced>,
    dialogues: Vec<Dialogue>,
}

impl Steady {
    /// Between the first pods of each pair of `members`.
    fn start(members: &[Member]) -> Result<Self> {
        let mut steady = Self { streams: Vec::new(), paced: Vec::new(), dialogues: Vec::new() };
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            let (a, b) = (members[from].pod()?, members[to].pod()?);
            // Two of them carry all they can.
            if from < 2 {
                steady.streams.push(Stream::start(&a, &b)?);
            }
            steady.paced.push(Paced::start(&a, &b, 50, 200)?);
            steady.dialogues.push(Dialogue::open(&b, &a)?);
        }
        Ok(steady)
    }

    /// How far each has come.
    fn progress(&self) -> Vec<u64> {
        let paced = self.paced.iter().flat_map(|paced| <[u64; 2]>::from(paced.received()));
        self.streams.iter().map(Stream::received).chain(paced).collect()
    }

    /// Fails unless each goes on.
    fn check(&mut self, after: &str) -> Result<()> {
        let before = self.progress();
        eventually(CONVERGENCE, "every flow goes on", || {
            let now = self.progress();
            ensure!(before.iter().zip(&now).all(|(before, now)| now > before), "{before:?} then {now:?}");
            Ok(())
        })
        .with_context(|| after.to_owned())?;
        self.dialogues
            .iter_mut()
            .try_for_each(|dialogue| dialogue.exchanges(3))
            .with_context(|| after.to_owned())
    }

    /// Ends all of them; each byte has arrived.
    fn stop(self) -> Result<()> {
        for stream in self.streams {
            let (bytes, _) = stream.stop()?;
            ensure!(bytes > 1 << 20, "a stream carried {bytes} bytes only");
        }
        for paced in self.paced {
            let report = paced.stop()?;
            for direction in [&report.forward, &report.backward] {
                // What is under way when a table changes may be lost, hardly more.
                ensure!(direction.lost() * 50 <= direction.sent && direction.duplicated == 0, "{report}");
            }
        }
        self.dialogues.into_iter().try_for_each(Dialogue::close_at_the_server)
    }
}

/// A little of everything short.
fn short_flows(from: &Endpoint, to: &Endpoint) -> Result<()> {
    tcp::bulk(from, to, 4 << 20)?;
    udp::echo(from, to, 700, 10)?;
    for _ in 0..5 {
        let mut dialogue = Dialogue::open(from, to)?;
        dialogue.exchanges(5)?;
        dialogue.close_at_the_server()?;
    }
    Ok(())
}

#[test]
fn no_flow_stalls_whatever_comes_and_goes() -> Result<()> {
    in_lab(|lab| {
        let options = AgentOptions::new(FastPath::Flow, &["--ip-masq", "--flow-refresh=3"]);
        let mut cluster = Cluster::start(lab, 3, 1, options)?;
        cluster.await_fast_path(0, 1, FastPath::Flow)?;
        let mut steady = Steady::start(&cluster.members)?;
        steady.check("the start")?;
        for round in 0..6 {
            let (here, there) = (round % 3, (round + 1) % 3);

            let pod = cluster.members[here].node.pod(&format!("guest{round}"))?;
            let (guest, resident) = (pod.endpoint(), cluster.members[there].pod()?);
            short_flows(&guest, &resident).with_context(|| format!("a guest in round {round}"))?;
            short_flows(&resident, &guest).with_context(|| format!("to a guest in round {round}"))?;
            pod.remove()?;
            steady.check("a pod came and went")?;

            let agent = &mut cluster.members[here].agent;
            agent.kill()?;
            // Replaced by one that does otherwise, and by the next round that is here by one as before.
            agent.set_flag("fast-path", if round < 3 { ["all", "overlay", "off"][here] } else { "flow" });
            agent.set_flag("xdp", Xdp::EACH[(round + round / 3 + 1) % 3].name());
            short_flows(&cluster.members[here].pod()?, &cluster.members[there].pod()?)
                .context("without an agent")?;
            cluster.members[here].agent.start_again()?;
            steady.check("an agent was killed and replaced")?;

            for member in &cluster.members {
                member.node.netns().run("conntrack", &["-F"])?;
            }
            steady.check("connection tracking forgot")?;

            if round % 3 == 1 {
                let guest = cluster.join(lab, FastPath::Flow)?.pod()?;
                let resident = cluster.members[there].pod()?;
                eventually(CONVERGENCE, "the new node is reached", || udp::echo(&resident, &guest, 64, 1))?;
                short_flows(&resident, &guest).context("to a node that joined")?;
                steady.check("a node joined")?;
                let mut gone = cluster.members.pop().context("the node that joined")?;
                let subnet = gone.node.subnet_env()?.subnet;
                gone.agent.kill()?;
                let key = format!("/coreos.com/network/subnets/{}-{}", subnet.network(), subnet.prefix());
                cluster.etcd.delete(&key)?;
                drop(gone);
                steady.check("a node left")?;
            }
        }
        // Where all are as at first, the flows that lived through it are fast again.
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            cluster.await_fast_path(from, to, FastPath::Flow)?;
        }
        let before = cluster.members[0].counters()?;
        steady.check("the end")?;
        eventually(Duration::from_secs(15), "the old flows are fast", || {
            let now = cluster.members[0].counters()?.since(&before);
            ensure!(left(&now, Reason::EncapPod) > 100 && arrived(&now, Reason::DeliverPod) > 100, "{now}");
            Ok(())
        })?;
        steady.stop()?;
        every_kind(&cluster.members[0].pod()?, &cluster.members[2].pod()?)
    })
}
