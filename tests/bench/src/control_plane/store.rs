//! etcd as a client of its own sees it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use etcd_client::{Client, Txn, TxnOp, WatchOptions, WatchStream};
use flannel_lab::{Netns, PREFIX};
use tokio::{runtime::Runtime, time::timeout};

use super::peers::Change;

/// Writes in one transaction; etcd takes 128.
const AT_ONCE: usize = 100;
/// How long etcd may take to tell of a change.
const PATIENCE: Duration = Duration::from_secs(10);

/// A network with room for 65,536 subnets. The agent's own is among the first; see [`Change::subnet`].
pub(crate) const CONFIG: &str = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.1.0.0","SubnetMax":"10.9.0.0","Backend":{"Type":"vxlan"}}"#;

/// Connections to etcd: one that writes, one that is told, as an agent is.
pub(super) struct Store {
    runtime: Runtime,
    client: Client,
    told: WatchStream,
}

impl Store {
    /// Connects to `endpoint` from within `netns`.
    pub(super) fn connect(netns: &Netns, endpoint: &str) -> Result<Self> {
        netns.inside(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (client, told) = runtime.block_on(async {
                let mut client = Client::connect([endpoint], None).await.context("connect to etcd")?;
                // Sockets are made now: later nobody is in this namespace.
                client.status().await.context("etcd")?;
                let options = WatchOptions::new().with_prefix();
                let told = client.watch(format!("{PREFIX}/subnets/"), Some(options)).await?;
                Ok::<_, anyhow::Error>((client, told))
            })?;
            Ok(Self { runtime, client, told })
        })
    }

    /// Writes the network configuration.
    pub(super) fn configure(&mut self) -> Result<()> {
        self.runtime.block_on(self.client.put(format!("{PREFIX}/config"), CONFIG, None))?;
        Ok(())
    }

    /// Makes `changes`, many at once, and waits until all have been told.
    pub(super) fn write(&mut self, changes: impl Iterator<Item = Change>) -> Result<()> {
        let changes: Vec<Change> = changes.collect();
        for some in changes.chunks(AT_ONCE) {
            let operations: Vec<TxnOp> = some.iter().map(|change| operation(*change)).collect();
            self.runtime.block_on(self.client.txn(Txn::new().and_then(operations)))?;
            self.await_told(some.len())?;
        }
        Ok(())
    }

    /// Makes one change; when its watcher was told of it.
    pub(super) fn make(&mut self, change: Change) -> Result<Instant> {
        let Self { runtime, client, .. } = self;
        runtime.block_on(client.txn(Txn::new().and_then([operation(change)])))?;
        // Whichever comes first: that etcd has done it, or that it tells of it.
        let done = Instant::now();
        Ok(self.await_told(1)?.min(done))
    }

    fn await_told(&mut self, mut count: usize) -> Result<Instant> {
        let Self { runtime, told, .. } = self;
        runtime.block_on(async {
            while count > 0 {
                let message = timeout(PATIENCE, told.message()).await.context("etcd tells nothing")??;
                let message = message.context("etcd ended the watch")?;
                ensure!(!message.canceled(), "etcd ended the watch: {}", message.cancel_reason());
                count = count.saturating_sub(message.events().len());
            }
            Ok(Instant::now())
        })
    }
}

fn operation(change: Change) -> TxnOp {
    match change.value() {
        Some(value) => TxnOp::put(change.key(), value, None),
        None => TxnOp::delete(change.key(), None),
    }
}
