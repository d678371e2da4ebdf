//! Keeping our lease: it is renewed before it ends, and taken back when somebody deletes it.

use std::{net::IpAddr, time::SystemTime};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::{
    EtcdStore, LastMessage, OwnLease, RETRY,
    claim::{Claim, Unreadable, Write},
    entry::{End, Entry},
    key_watch::KeyEvent,
    seen::Seen,
    server::Keys,
};
use crate::{
    lease::{LeaseAttrs, LeaseSubnet, alloc::Holder, mending::Mending},
    values::{Mac, shorten, utc},
};

/// Of what somebody has written in our lease, so many characters are shown.
const SHOWN: usize = 200;

/// What happened to our lease.
#[derive(Clone, Debug, PartialEq)]
pub enum OwnLeaseReport {
    /// It was written: renewed, or with new attributes.
    Renewed {
        /// When it ends now; `None` for a reservation.
        expiration: Option<SystemTime>,
    },
    /// Somebody deleted it, or it expired while etcd was out of reach, and we have it again.
    Retaken {
        /// When it ends now.
        expiration: Option<SystemTime>,
    },
    /// It is another node's now. The last report.
    Lost(LostLease),
}

/// Our subnet is another node's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", lost_text(.subnet, *.holder, *.original))]
pub struct LostLease {
    /// The subnet.
    pub subnet: LeaseSubnet,
    /// Address of the node that holds it; `None` when its lease cannot be decoded.
    pub holder: Option<IpAddr>,
    /// That node is alive at the address from which this one thought to have moved, with this MAC: this is its clone.
    pub original: Option<Mac>,
}

fn lost_text(subnet: &LeaseSubnet, holder: Option<IpAddr>, original: Option<Mac>) -> String {
    let holder = match holder {
        Some(ip) => format!("node {ip}"),
        None => "somebody whose lease cannot be decoded".to_owned(),
    };
    match original {
        Some(mac) => format!(
            "{holder} still writes the lease of {subnet}, which this node took for its own: both have a VXLAN device \
             with the MAC {mac} and a subnet file that names {subnet}, so one is a clone of the other. On the clone, \
             delete that device (ip link delete) and that file, restart the agent, which takes another subnet, then \
             restart its pods"
        ),
        None => format!(
            "our lease of {subnet} is gone and {holder} holds it now: pods of both nodes have the same addresses, and \
             the other nodes send to that one. Restart this agent to get another subnet, then restart this node's pods"
        ),
    }
}

/// Keeps our lease as long as it lives.
pub struct LeaseKeeper {
    attrs: watch::Sender<LeaseAttrs>,
    reports: mpsc::Receiver<OwnLeaseReport>,
    _task: AbortOnDropHandle<()>,
}

impl LeaseKeeper {
    /// Publishes new attributes of this node, its address among them; in the background, as often as it takes.
    pub fn publish(&self, attrs: LeaseAttrs) {
        self.attrs.send_if_modified(|now| {
            let changed = *now != attrs;
            *now = attrs;
            changed
        });
    }

    /// Waits for the next report. Cancel safe. Reports may be left unread: all but [`OwnLeaseReport::Lost`]
    /// are dropped when many wait.
    pub async fn report(&mut self) -> OwnLeaseReport {
        match self.reports.recv().await {
            Some(report) => report,
            // After the last report there is nothing to wait for.
            None => std::future::pending().await,
        }
    }
}

impl EtcdStore {
    /// Keeps `own` in a task that ends with the returned keeper. The lease stays in etcd then, until it expires:
    /// pods keep their addresses while the agent restarts.
    pub fn keep_lease(&self, own: OwnLease) -> LeaseKeeper {
        let (reporter, reports) = mpsc::channel(16);
        let (attrs, changes) = watch::channel(own.attrs.clone());
        let keys = self.follow("our lease", self.lease_key(&own.subnet), false);
        let mut keep = Keep {
            store: self.clone(),
            renewal: None,
            before: own.attrs.clone(),
            own,
            changes,
            reporter,
            deleted: false,
            published: true,
            mending: Mending::new(self.mended.clone()),
            mends: false,
            said: LastMessage::default(),
        };
        keep.schedule();
        LeaseKeeper { attrs, reports, _task: AbortOnDropHandle::new(tokio::spawn(keep.run(keys))) }
    }
}

struct Keep {
    store: EtcdStore,
    own: OwnLease,
    /// What we published last. While a new address is on its way into etcd, a lease of the old one is ours.
    before: LeaseAttrs,
    changes: watch::Receiver<LeaseAttrs>,
    reporter: mpsc::Sender<OwnLeaseReport>,
    /// When to write next; `None` for a reservation.
    renewal: Option<Instant>,
    /// The lease is gone from etcd and not yet taken back.
    deleted: bool,
    /// What is in etcd is what it should be.
    published: bool,
    /// When it is put right, where others change it.
    mending: Mending,
    /// It is to be put right.
    mends: bool,
    said: LastMessage,
}

impl Keep {
    async fn run(mut self, mut keys: Keys) {
        loop {
            let renewal = self.renewal;
            let due = async move {
                match renewal {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let calm = self.mending.calm_at();
            let calm = async move {
                match calm {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let outcome = tokio::select! {
                () = self.reporter.closed() => return,
                () = calm => {
                    self.mending.calm(Instant::now());
                    Ok(())
                }
                () = due => self.write().await,
                Ok(()) = self.changes.changed() => {
                    let attrs = self.changes.borrow_and_update().clone();
                    if (attrs.public_ip, attrs.public_ipv6)
                        != (self.own.attrs.public_ip, self.own.attrs.public_ipv6)
                    {
                        self.store.moved().await;
                    }
                    self.own.attrs = attrs;
                    self.published = false;
                    self.write().await
                }
                event = keys.next() => self.happened(event).await,
            };
            if let Err(lost) = outcome {
                // The agent's log has it from whoever reads the report.
                let _ = self.reporter.send(OwnLeaseReport::Lost(lost)).await;
                return;
            }
        }
    }

    /// Writes our lease, over what is there or anew.
    async fn write(&mut self) -> Result<(), LostLease> {
        let subnet = self.own.subnet;
        let write = Write {
            subnet: &subnet,
            attrs: &self.own.attrs,
            before: Some(&self.before),
            unreadable: Unreadable::Mend,
            unless_new_since: None,
        };
        match self.store.claim(write, self.own.seen.clone()).await {
            Ok(Claim::Ours { seen, expiration }) => {
                let retaken = std::mem::take(&mut self.deleted);
                let mended = std::mem::take(&mut self.mends);
                let moved = !self.before.same_node(&self.own.attrs);
                let before = std::mem::replace(&mut self.before, self.own.attrs.clone());
                self.own.seen = seen;
                self.own.expiration = expiration;
                self.published = true;
                self.said.is_over();
                self.schedule();
                let until = until(expiration);
                let report = if retaken {
                    warn!(%subnet, until, "our lease was deleted; nobody had taken the subnet, it is ours again");
                    OwnLeaseReport::Retaken { expiration }
                } else if mended {
                    info!(%subnet, until, "our lease is correct again");
                    OwnLeaseReport::Renewed { expiration }
                } else if moved {
                    let text = |attrs: &LeaseAttrs| attrs.node_address().map(|address| address.to_string());
                    let (before, now) = (text(&before), text(&self.own.attrs));
                    info!(%subnet, until, before, now, "lease published with this node's new address");
                    OwnLeaseReport::Renewed { expiration }
                } else {
                    info!(%subnet, until, "lease renewed");
                    OwnLeaseReport::Renewed { expiration }
                };
                let _ = self.reporter.try_send(report);
                Ok(())
            }
            Ok(Claim::Held(holder)) => Err(LostLease { subnet, holder, original: None }),
            Ok(Claim::Overtaken) => {
                self.retry();
                Ok(())
            }
            Err(error) => {
                if self.said.is_news(&error) {
                    let until = until(self.own.expiration);
                    warn!(%subnet, until, %error, "cannot write our lease; trying again. Forwarding goes on, but peers drop their routes to this node when the lease ends");
                }
                self.retry();
                Ok(())
            }
        }
    }

    fn retry(&mut self) {
        let urgent = self.deleted || !self.published;
        let pause = if urgent { RETRY } else { self.store.timing.renew_retry };
        self.renewal = Some(Instant::now() + pause);
    }

    fn is_ours(&self, attrs: &LeaseAttrs) -> bool {
        attrs.same_node(&self.own.attrs) || attrs.same_node(&self.before)
    }

    async fn happened(&mut self, event: KeyEvent) -> Result<(), LostLease> {
        match event {
            // Not to be judged by revisions: the store may be another than it was.
            KeyEvent::All(all) | KeyEvent::Anew(all) => match all.first() {
                Some(kv) if self.own.seen == Seen::of(kv) => Ok(()),
                Some(kv) if kv.revision <= self.own.seen.revision => self.went_back(kv).await,
                Some(kv) => self.seen(kv).await,
                None => self.gone().await,
            },
            // Our own write, or older than that: the watch is behind us.
            KeyEvent::Put(kv) if kv.revision <= self.own.seen.revision => Ok(()),
            KeyEvent::Put(kv) => self.seen(&kv).await,
            KeyEvent::Deleted { revision, .. } if revision <= self.own.seen.revision => Ok(()),
            KeyEvent::Deleted { .. } => self.gone().await,
        }
    }

    async fn gone(&mut self) -> Result<(), LostLease> {
        self.own.seen = Seen::default();
        self.deleted = true;
        self.write().await
    }

    /// Our key is as it was before we last wrote it: the store was restored from a backup. What it says of us may be what
    /// no longer holds, and is what the other nodes go by.
    async fn went_back(&mut self, kv: &Entry) -> Result<(), LostLease> {
        let found = LeaseAttrs::from_json(&kv.value).ok().filter(|found| *found != self.own.attrs);
        if let Some(found) = found
            && (self.is_ours(&found) || is_of_one_device(&found, &self.own.attrs))
        {
            let (subnet, theirs) = (self.own.subnet, found.to_json());
            warn!(%subnet, theirs, "etcd was restored from a backup, which has an old copy of our lease; writing it again");
            self.own.seen = Seen::of(kv);
            self.before = found;
            self.published = false;
            return self.write().await;
        }
        self.seen(kv).await
    }

    /// Somebody else wrote our key.
    async fn seen(&mut self, kv: &Entry) -> Result<(), LostLease> {
        let subnet = self.own.subnet;
        let attrs = match LeaseAttrs::from_json(&kv.value) {
            Ok(attrs) => attrs,
            Err(error) => {
                warn!(%subnet, %error, "somebody damaged our lease");
                let found = String::from_utf8_lossy(&kv.value).into_owned();
                return self.mend(kv, None, &found).await;
            }
        };
        let is_of_our_device = is_of_one_device(&attrs, &self.own.attrs);
        let holder = attrs.node_address();
        if is_of_our_device && holder.is_some() && holder == self.own.moved_from {
            return Err(LostLease { subnet, holder, original: Holder::of(&attrs).vtep_mac });
        }
        if attrs == self.own.attrs {
            self.own.seen = Seen::of(kv);
            self.deleted = false;
            self.mends = false;
            self.published = true;
            self.before = attrs;
            self.own.expiration = self.end_of(kv.end).await;
            self.schedule();
            info!(%subnet, until = until(self.own.expiration), "somebody else renewed our lease");
            return Ok(());
        }
        if !self.is_ours(&attrs) && !is_of_our_device {
            return Err(LostLease { subnet, holder, original: None });
        }
        if !self.published && attrs == self.before {
            // Ours is still to be written, over this too.
            self.own.seen = Seen::of(kv);
            self.deleted = false;
            return self.write().await;
        }
        let found = attrs.to_json();
        self.mend(kv, Some(attrs), &found).await
    }

    /// Writes our lease again, which somebody else has changed to `found`.
    async fn mend(&mut self, kv: &Entry, attrs: Option<LeaseAttrs>, found: &str) -> Result<(), LostLease> {
        let (subnet, ours) = (self.own.subnet, self.own.attrs.to_json());
        self.own.seen = Seen::of(kv);
        self.before = attrs.unwrap_or_else(|| self.own.attrs.clone());
        (self.deleted, self.published, self.mends) = (false, false, true);
        let now = Instant::now();
        let found = shorten(found, SHOWN);
        let pause = self.mending.changed(now, || {
            format!("somebody else writes our lease of {subnet} again and again: it says {found}, and should say {ours}")
        });
        warn!(
            %subnet, theirs = %found, %ours, pause = ?pause,
            "somebody else changed our lease; writing it again. Is another flanneld running on this node, or on a clone \
            of it?"
        );
        match pause.is_zero() {
            true => self.write().await,
            false => {
                self.renewal = Some(now + pause);
                Ok(())
            }
        }
    }

    async fn end_of(&self, end: End) -> Option<SystemTime> {
        self.store.server().end_of(end, &self.store.timing).await
    }

    /// Sets the next renewal: the margin before the end, and at least some seconds from now.
    fn schedule(&mut self) {
        self.store.expiration.send_replace(self.own.expiration);
        let margin = self.store.timing.renew_margin;
        self.renewal = self.own.expiration.map(|end| {
            let left = end.duration_since(SystemTime::now()).unwrap_or_default();
            Instant::now() + left.saturating_sub(margin).max(RETRY)
        });
    }
}

/// Whether both tell of one VXLAN device: of one node, whose address may have changed between them.
pub(super) fn is_of_one_device(found: &LeaseAttrs, ours: &LeaseAttrs) -> bool {
    let (found, ours) = (Holder::of(found).vtep_mac, Holder::of(ours).vtep_mac);
    ours.is_some() && found == ours
}

fn until(expiration: Option<SystemTime>) -> String {
    expiration.map_or_else(|| "no end: a reservation".to_owned(), utc)
}
