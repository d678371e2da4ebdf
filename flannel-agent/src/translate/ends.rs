//! Whether a pod's end of a connection lives: its own socket knows.

use std::{collections::BTreeMap, time::Duration};

use flannel_common::layout::Flow;
use tokio::time::{Instant, timeout};

use super::TranslateError;
use crate::{
    bpf::{PodEnd, PodSockets, TranslationTables, TrieFamily},
    netlink::Netlink,
};

/// For so long it counts which namespace is behind a veth: another may have been moved there.
const KEPT: Duration = Duration::from_secs(10);
/// So long the kernel may take to tell, which makes wait who asks while interfaces come and go by the hundred.
const PATIENCE: Duration = Duration::from_millis(100);
/// After it took longer it is not asked for so long.
const REST: Duration = Duration::from_secs(1);

/// Asks the pods of this node about their ends of connections.
pub(super) struct PodEnds {
    sockets: PodSockets,
    netlink: Netlink,
    /// By the host side of a veth: the number of the namespace behind it, and when the kernel said so.
    namespaces: BTreeMap<u32, (Instant, Option<i32>)>,
    rests_until: Instant,
}

impl PodEnds {
    pub(super) fn open(sockets: PodSockets) -> Result<Self, TranslateError> {
        let netlink = Netlink::open()?;
        Ok(Self { sockets, netlink, namespaces: BTreeMap::new(), rests_until: Instant::now() })
    }

    /// How the connection of `flow` is at its pod. Of a pod that cannot be asked its end is gone, as of one whose connections
    /// have their ends elsewhere: a pod that forwards for others, or that translates them by itself.
    pub(super) async fn of<F: TrieFamily>(
        &mut self,
        tables: &TranslationTables<F>,
        flow: &Flow<F>,
    ) -> Result<PodEnd, TranslateError> {
        let Some(place) = tables.pods.get(&flow.local)? else { return Ok(PodEnd::Gone) };
        match self.namespace(place.ifindex).await? {
            Some(namespace) => self.sockets.end(namespace, flow).map_err(TranslateError::Socket),
            None => Ok(PodEnd::Gone),
        }
    }

    /// The number of the namespace behind the veth whose host side has this index.
    async fn namespace(&mut self, ifindex: u32) -> Result<Option<i32>, TranslateError> {
        if let Some((since, known)) = self.namespaces.get(&ifindex)
            && since.elapsed() < KEPT
        {
            return Ok(*known);
        }
        if Instant::now() < self.rests_until {
            return Ok(None);
        }
        let Ok(link) = timeout(PATIENCE, self.netlink.link_at(ifindex)).await else {
            self.rests_until = Instant::now() + REST;
            return Ok(None);
        };
        let found = link?.and_then(|link| link.peer).map(|peer| peer.namespace);
        self.namespaces.retain(|_, (since, _)| since.elapsed() < KEPT);
        self.namespaces.insert(ifindex, (Instant::now(), found));
        Ok(found)
    }
}
