//! Flows that a fault meets: some of each round, and some that outlive all rounds.

use std::time::Duration;

use anyhow::{Context as _, Result};
use flannel_lab::{
    Cluster,
    traffic::{Dialogue, Endpoint, Loss, Paced, tcp, udp},
};

/// Pairs of nodes whose pods talk.
const PAIRS: [(usize, usize); 3] = [(0, 1), (1, 2), (2, 0)];
/// Packets a second of each flow and direction.
const RATE: u32 = 100;
/// Payloads: small, middle, and what fills a packet of the pods' MTU (1430, and with IPv6 alike).
const SIZES: [usize; 3] = [64, 700, 1350];
/// How long a connection that stood still may take to go on.
const PATIENCE: Duration = Duration::from_secs(30);

/// What became of the packets of a round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    /// Longest time in which a flow received nothing.
    pub(crate) longest_gap: Duration,
    /// Which flows lost something, and what.
    pub(crate) losses: Vec<String>,
}

impl Outcome {
    fn add(&mut self, from: &str, to: &str, loss: &Loss) {
        if loss.lost() > 0 {
            self.losses.push(format!("{from} to {to}: {loss}"));
        }
        self.sent += loss.sent;
        self.lost += loss.lost();
        self.duplicated += loss.duplicated;
        self.longest_gap = self.longest_gap.max(loss.longest_gap);
    }
}

/// Numbered packets of one round, both ways, by both families.
pub(crate) struct Round(Vec<Paced>);

impl Round {
    /// Starts to send.
    pub(crate) fn start(cluster: &Cluster) -> Result<Self> {
        let mut flows = Vec::new();
        for ((from, to), size) in PAIRS.into_iter().zip(SIZES) {
            let (from, to) = (&cluster.members[from], &cluster.members[to]);
            flows.push(Paced::start(&from.pod()?, &to.pod()?, RATE, size)?);
            flows.push(Paced::start(&from.pod_v6()?, &to.pod_v6()?, RATE, size)?);
        }
        Ok(Self(flows))
    }

    /// Stops, and counts.
    pub(crate) fn stop(self) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        for flow in self.0 {
            let report = flow.stop()?;
            let (a, b) = &report.between;
            outcome.add(a, b, &report.forward);
            outcome.add(b, a, &report.backward);
        }
        Ok(outcome)
    }
}

/// Connections that outlive every fault.
pub(crate) struct Lasting(Vec<Dialogue>);

impl Lasting {
    /// Opens them.
    pub(crate) fn open(cluster: &Cluster) -> Result<Self> {
        let mut dialogues = Vec::new();
        for (from, to) in PAIRS {
            let (from, to) = (&cluster.members[from], &cluster.members[to]);
            dialogues.push(Dialogue::open(&from.pod()?, &to.pod()?)?);
            dialogues.push(Dialogue::open(&to.pod_v6()?, &from.pod_v6()?)?);
        }
        Ok(Self(dialogues))
    }

    /// Each byte said on each of them arrives, and is answered.
    pub(crate) fn go_on(&mut self) -> Result<()> {
        for (number, dialogue) in self.0.iter_mut().enumerate() {
            dialogue
                .exchange_within(PATIENCE)
                .with_context(|| format!("connection {number} stands still"))?;
            dialogue.exchanges(3).with_context(|| format!("connection {number}"))?;
        }
        Ok(())
    }

    /// Closes them.
    pub(crate) fn close(self) -> Result<()> {
        self.0.into_iter().try_for_each(Dialogue::close_at_the_server)
    }
}

/// A little of everything short: a burst, small packets, and connections that begin and end.
pub(crate) fn short(from: &Endpoint, to: &Endpoint) -> Result<()> {
    tcp::bulk(from, to, 2 << 20)?;
    udp::echo(from, to, 700, 20)?;
    for _ in 0..3 {
        let mut dialogue = Dialogue::open(from, to)?;
        dialogue.exchanges(3)?;
        dialogue.close_at_the_server()?;
    }
    Ok(())
}
