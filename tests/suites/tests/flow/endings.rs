//! Connections that end: by halves, at once, and to begin anew.

use std::{
    io::{Read as _, Write as _},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use flannel_common::reason::Reason;
use flannel_lab::{
    Cluster, in_lab,
    traffic::{Dialogue, dialogue::listen},
};

use crate::{cluster, counted, fast, packets};

const REFRESH: Duration = Duration::from_secs(30);

/// With what connection tracking calls INVALID dropped on both nodes.
fn strict(cluster: &Cluster) -> Result<()> {
    cluster.members.iter().try_for_each(|member| member.node.drop_invalid())
}

#[test]
fn half_closed_connections_carry_on() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 1, REFRESH)?;
        strict(&cluster)?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        for (from, to) in [(&a, &b), (&b, &a), (&a, &b)] {
            let mut dialogue = Dialogue::open(from, to)?;
            dialogue.exchanges(20)?;
            dialogue.half_close(8 << 20)?;
        }
        Ok(())
    })
}

/// Connection tracking has last seen a number from which the one of the reset looks like one long past.
#[test]
fn a_reset_after_two_gigabytes_arrives() -> Result<()> {
    const BYTES: usize = (1 << 31) + (256 << 20);
    in_lab(|lab| {
        let cluster = cluster(lab, 1, REFRESH)?;
        strict(&cluster)?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let dialogue = Dialogue::open(&a, &b)?;
        let chunk = vec![0x5a; 4 << 20];
        std::thread::scope(|scope| -> Result<()> {
            let reader = scope.spawn(|| -> Result<()> {
                let mut buffer = vec![0; chunk.len()];
                (0..BYTES / chunk.len()).try_for_each(|_| Ok((&dialogue.server).read_exact(&mut buffer)?))
            });
            (0..BYTES / chunk.len()).try_for_each(|_| (&dialogue.client).write_all(&chunk))?;
            reader.join().unwrap_or_else(|_| bail!("the reader panicked"))
        })?;
        dialogue.reset()
    })
}

/// The same four numbers again, right after the connection ended in one way or the other.
#[test]
fn the_same_ports_serve_one_connection_after_the_other() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 1, REFRESH)?;
        strict(&cluster)?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let listener = listen(&b, 0)?;
        let to = b.socket_address(listener.local_addr()?.port());
        let counted = counted(&cluster, || {
            for time in 0..6 {
                let mut dialogue = Dialogue::through(&a, 21_000, to, &[&listener])
                    .with_context(|| format!("connection {time}"))?;
                dialogue.exchanges(50).with_context(|| format!("connection {time}"))?;
                if time % 2 == 0 { dialogue.close_at_the_server()? } else { dialogue.reset()? }
            }
            Ok(())
        })?;
        for counters in &counted {
            ensure!(fast(counters).into_iter().all(|packets| packets >= 6 * 45), "{counters}");
            // What one has learned, the next must learn anew.
            ensure!(packets(counters, Reason::FlowForgotten) >= 6, "{counters}");
            ensure!(packets(counters, Reason::FlowLearned) >= 12, "{counters}");
        }
        Ok(())
    })
}
