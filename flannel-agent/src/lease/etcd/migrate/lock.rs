//! One migration at a time: two that copy at once would take each other for nodes.

use std::{fs, sync::Arc, time::Duration};

use etcd_client::{Client, Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tracing::warn;

use super::super::{EtcdError, LastMessage, RETRY, members::Members};

/// How long the lock outlives a process that was killed.
const TTL: i64 = 15;
/// How often it is kept alive.
const BEAT: Duration = Duration::from_secs(4);

/// Who has the lock. Text of a key: others compare it whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    host: String,
    pid: u32,
    /// The namespace in which that is a process: the boot, and the namespace's number.
    among: String,
    /// Tells one run from the next of the same number.
    nonce: u64,
}

impl Holder {
    fn this_process() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        Self {
            host: read("/proc/sys/kernel/hostname"),
            pid: std::process::id(),
            among: format!("{} {}", read("/proc/sys/kernel/random/boot_id"), namespace.display()),
            nonce: rand::random(),
        }
    }

    /// Whether it was a process of this machine, and is none any more.
    fn is_dead(&self, here: &Self) -> bool {
        self.among == here.among && !fs::exists(format!("/proc/{}", self.pid)).unwrap_or(true)
    }
}

/// The lock, which is ours until it is released, or until this process was silent for [`TTL`].
pub(super) struct Lock {
    members: Arc<Members>,
    key: String,
    /// What the key holds while the lock is ours.
    pub(super) value: Vec<u8>,
    holder: Holder,
    id: i64,
}

impl Lock {
    /// Waits for the lock, as long as it takes.
    pub(super) async fn take(members: Arc<Members>, key: String) -> Result<Self, EtcdError> {
        let holder = Holder::this_process();
        let value = serde_json::to_vec(&holder).unwrap_or_default();
        let mut lock = Self { members, key, value, holder, id: 0 };
        lock.wait().await?;
        Ok(lock)
    }

    async fn wait(&mut self) -> Result<(), EtcdError> {
        self.grant().await?;
        let mut said = LastMessage::default();
        // The one that ended without a word, if there is one.
        let mut dead: Option<Vec<u8>> = None;
        loop {
            let free = match dead.take() {
                None => Compare::version(self.key.as_str(), CompareOp::Equal, 0),
                Some(value) => Compare::value(self.key.as_str(), CompareOp::Equal, value),
            };
            let options = PutOptions::new().with_lease(self.id);
            let put = TxnOp::put(self.key.as_str(), self.value.clone(), Some(options));
            let read = TxnOp::get(self.key.as_str(), None);
            let txn = Txn::new().when([free]).and_then([put]).or_else([read]);
            let ask = |mut client: Client| {
                let txn = txn.clone();
                async move { client.txn(txn).await }
            };
            let answer = self.members.call("take the lock of the migration", ask).await?.0;
            if answer.succeeded() {
                return Ok(());
            }
            let Some(TxnOpResponse::Get(found)) = answer.op_responses().into_iter().next() else { continue };
            let Some(kv) = found.kvs().first() else { continue };
            if kv.value() == self.value {
                // Ours, by a request whose answer was lost.
                return Ok(());
            }
            match serde_json::from_slice::<Holder>(kv.value()) {
                Ok(other) if other.is_dead(&self.holder) => dead = Some(kv.value().to_vec()),
                Ok(other) => {
                    let text = format!("process {} on {}", other.pid, other.host);
                    if said.is_news(&text) {
                        warn!(
                            by = text,
                            key = self.key,
                            "another etcd-migrate is at work: waiting for its end"
                        );
                    }
                    sleep(RETRY).await;
                }
                Err(_) => {
                    if said.is_news("unreadable") {
                        warn!(key = self.key, "the lock is held by something else: delete the key to go on");
                    }
                    sleep(RETRY).await;
                }
            }
            if !self.beat().await? {
                self.grant().await?;
            }
        }
    }

    async fn grant(&mut self) -> Result<(), EtcdError> {
        let ask = |mut client: Client| async move { client.lease_grant(TTL, None).await };
        self.id = self.members.call("grant a lease", ask).await?.0.id();
        Ok(())
    }

    /// Keeps the lock while this process lives, and takes it again where it was lost. Ends with an error only.
    pub(super) async fn keep(&mut self) -> EtcdError {
        loop {
            sleep(BEAT).await;
            let kept = match self.beat().await {
                Ok(true) => Ok(()),
                // Silent for too long, or the store is another one.
                Ok(false) => self.wait().await,
                Err(error) => Err(error),
            };
            match kept {
                Ok(()) | Err(EtcdError::Unreachable { .. }) => {}
                Err(error) => return error,
            }
        }
    }

    /// Tells etcd that we live; whether the lock still stands.
    async fn beat(&self) -> Result<bool, EtcdError> {
        let id = self.id;
        let ask = |mut client: Client| async move {
            let (mut keeper, mut stream) = client.lease_keep_alive(id).await?;
            keeper.keep_alive().await?;
            stream.message().await
        };
        match self.members.call("keep the lock of the migration", ask).await {
            Ok((answer, _)) => Ok(answer.is_some_and(|answer| answer.ttl() > 0)),
            Err(EtcdError::Refused { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives it up, so that nobody waits for its end.
    pub(super) async fn release(self) {
        let id = self.id;
        let ask = |mut client: Client| async move { client.lease_revoke(id).await };
        if let Err(error) = self.members.call("give up the lock of the migration", ask).await {
            warn!(%error, seconds = TTL, "the lock of the migration stays until it ends by itself");
        }
    }
}
