//! What passes between this node and each peer while somebody looks: by the programs that tell of packets.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use flannel_common::layout::trace::{TRACE_TOTALS, TraceFilter};
use ipnetwork::IpNetwork;
use tokio::time::sleep;

use crate::{
    cmd::{
        top::rates::{Names, Rate, Row, Totals, rates},
        trace_session::TraceSession,
    },
    control::Client,
    inspect::peers::{Passed, PeerRow, PeerTraffic},
};

/// What passed, by peer.
pub(super) struct Counted {
    seconds: f64,
    /// Subnets of the peers, and what they are called in `rows`.
    subnets: Vec<(IpNetwork, String)>,
    rows: BTreeMap<String, Row>,
}

/// Counts for so many seconds.
///
/// # Errors
/// When the agent does not answer, or has no programs.
pub(super) async fn counted(client: Client, seconds: u64) -> anyhow::Result<Counted> {
    let mut session = TraceSession::begin(client.clone()).await?;
    session.want(TraceFilter { mode: TRACE_TOTALS, hooks: u32::MAX, ..TraceFilter::default() })?;
    let peers = client.peers().await?.peers;
    let subnets: Vec<_> = peers.iter().map(|peer| (peer.subnet, peer.subnet.to_string())).collect();
    let own = session.snapshot.lease.as_ref().map(|lease| lease.subnets.clone()).unwrap_or_default();
    let names = Names { own, peers: subnets.clone() };
    let totals = |session: &TraceSession| Totals { sums: session.maps.sums(), ..Totals::default() };
    let (start, before) = (Instant::now(), totals(&session));
    for _ in 0..seconds {
        sleep(Duration::from_secs(1)).await;
        session.go_on().await?;
    }
    let (after, seconds) = (totals(&session), start.elapsed().as_secs_f64());
    session.maps.stop()?;
    let found = rates(&before, &after, seconds, &names);
    let rows = found.peers.into_iter().map(|row| (row.name.clone(), row)).collect();
    Ok(Counted { seconds, subnets, rows })
}

impl Counted {
    /// Writes it down. What the kernel counts of a peer by itself goes further back, and stays.
    pub(super) fn write_to(&self, rows: &mut [PeerRow]) {
        let passed = |rate: Rate| Passed {
            packets: Some((rate.packets * self.seconds).round() as u64),
            bytes: (rate.bits / 8.0 * self.seconds).round() as u64,
        };
        for row in rows.iter_mut().filter(|row| row.traffic.is_none()) {
            if let Some((_, name)) = self.subnets.iter().find(|(subnet, _)| *subnet == row.subnet) {
                let found = self.rows.get(name);
                let way = |rate: fn(&Row) -> Rate| passed(found.map(rate).unwrap_or_default());
                row.traffic = Some(PeerTraffic {
                    seconds: Some(self.seconds),
                    sent: way(|row| row.out),
                    received: way(|row| row.into),
                });
            }
        }
    }
}
