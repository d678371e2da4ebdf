//! What the agent asks of a store of leases, whichever it is.

use std::{
    convert::Infallible,
    error::Error,
    future::{Future, pending},
    net::{Ipv4Addr, Ipv6Addr},
    time::SystemTime,
};

use tokio::sync::watch;

use super::{BadConfig, Lease, LeaseAttrs, LeaseSource, LeaseSubnet, Mended, alloc::Identity};
use crate::config::NetworkConfig;

/// A store of leases: etcd, and others like it. Each waits for its server as long as it takes, logs each distinct
/// reason to wait once, and shows the last in [`trouble`](Self::trouble).
///
/// ```text
/// network_config() ─▶ this_node() ─▶ acquire() ─▶ watch(own) ─▶ keep(own) ─▶ ready()
/// ```
pub trait LeaseStore {
    /// Our lease, as this store holds it.
    type Own: OwnedLease;
    /// The leases of all others.
    type Watch: LeaseSource;
    /// What keeps ours.
    type Keeper: KeptLease;
    /// Why the store cannot be used.
    type Error: Error + Send + Sync + 'static;

    /// What answers, for messages: "etcd".
    const SERVER: &'static str;

    /// The network configuration, validated.
    fn network_config(&self) -> impl Future<Output = Result<NetworkConfig, Self::Error>>;

    /// What the store knows of this node before it has a lease.
    fn this_node(&self) -> impl Future<Output = Result<ThisNode, Self::Error>> {
        async { Ok(ThisNode::default()) }
    }

    /// Takes a subnet for this node, which is `identity`: the one it holds, else its previous one where the store
    /// leaves us a choice, else another.
    fn acquire(
        &self,
        config: &NetworkConfig,
        attrs: &LeaseAttrs,
        identity: Identity,
    ) -> impl Future<Output = Result<Self::Own, Self::Error>>;

    /// Watches the leases of all nodes but this, which holds `own`, until the returned source is dropped. What is
    /// `inherited` was in force when this process started; a store that did not know it may not be the one that did.
    fn watch(&self, own: &Self::Own, inherited: Vec<Lease>) -> Self::Watch;

    /// Keeps `own` until the returned keeper is dropped. The lease itself stays.
    fn keep(&self, own: Self::Own) -> Self::Keeper;

    /// Why the last request failed; `None` while the store answers.
    fn trouble(&self) -> watch::Receiver<Option<String>>;

    /// Asks the store whether it answers, and waits for that; nothing where asking tells no more than [`trouble`](Self::trouble).
    fn look(&self) -> impl Future<Output = Result<(), String>> {
        async { Ok(()) }
    }

    /// How far the leases of other nodes are known; nothing where that is not told, as of a file.
    fn heard(&self) -> watch::Receiver<Heard> {
        watch::channel(Heard::default()).1
    }

    /// The leases of others that are there and cannot be used.
    fn unusable(&self) -> watch::Receiver<Vec<Unusable>> {
        watch::channel(Vec::new()).1
    }

    /// When our lease ends, while it is kept; `None` where leases have no end.
    fn expiration(&self) -> watch::Receiver<Option<SystemTime>> {
        watch::channel(None).1
    }

    /// What others have made of our lease, while it is kept; nothing where they cannot.
    fn mended(&self) -> watch::Receiver<Mended> {
        watch::channel(Mended::default()).1
    }

    /// What is wrong with the network configuration, while its changes are reported.
    fn bad_config(&self) -> watch::Receiver<Option<BadConfig>> {
        watch::channel(None).1
    }

    /// Says each change of the network configuration, once, compared with the one `in_force`, which is applied at
    /// start only. Goes on until dropped.
    fn report_config_changes(&self, in_force: NetworkConfig) -> impl Future<Output = Infallible>;

    /// Pods can be started on this node. Does not wait for an answer.
    fn ready(&self) {}

    /// Tells those who look at the store, not at this node's log, of something they should look into. Does not
    /// wait for an answer.
    fn tell(&self, _notice: Notice) {}

    /// Waits, a few seconds at most, until those have heard of all that was told.
    fn told(&self) -> impl Future<Output = ()> {
        async {}
    }
}

/// A lease that is in the store and cannot be used, so that its node is not reached, or by what was known of it before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// Where it is, such as its key.
    pub place: String,
    /// The subnet that it names there.
    pub subnet: LeaseSubnet,
    /// Why it cannot be used.
    pub reason: String,
}

/// How far the leases of other nodes are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Up to which state of the store, in its own words: a revision of etcd, a resourceVersion of Kubernetes.
    pub revision: Option<String>,
    /// When the store last said something of them, or that there is nothing new.
    pub at: Option<SystemTime>,
}

impl Heard {
    /// Just now, up to `revision`.
    pub fn now(revision: impl ToString) -> Self {
        Self { revision: Some(revision.to_string()), at: Some(SystemTime::now()) }
    }
}

/// A lease of ours.
pub trait OwnedLease {
    /// What is leased to us.
    fn subnet(&self) -> LeaseSubnet;
}

/// Keeps our lease as long as it lives.
pub trait KeptLease {
    /// Publishes new attributes of this node; in the background, as often as it takes.
    fn update(&self, attrs: LeaseAttrs);

    /// Waits for the end of our lease as it is. Cancel safe.
    fn ended(&mut self) -> impl Future<Output = LeaseEnd>;
}

/// Why our lease is not what it was.
#[derive(Debug)]
pub enum LeaseEnd {
    /// It is another node's: nothing can be done here.
    Lost(Box<dyn Error + Send + Sync>),
    /// The store gave this node another subnet; the agent starts over with it.
    Replaced {
        /// What was leased to us.
        old: LeaseSubnet,
        /// What is now.
        new: LeaseSubnet,
    },
}

/// What a store knows of this node before it has a lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThisNode {
    /// As `--public-ip`, over which it wins.
    pub public_ip: Option<Ipv4Addr>,
    /// As `--public-ipv6`, over which it wins.
    pub public_ipv6: Option<Ipv6Addr>,
    /// What our lease said when we last wrote it.
    pub published: Option<LeaseAttrs>,
    /// Other nodes go by `published` whatever we do: a device that is there gets the MAC in it.
    pub settled: bool,
}

/// Something an operator should look into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// What kind of thing, in one word of a program's: `KernelPath`.
    pub reason: &'static str,
    /// What happened and what to do, in a sentence.
    pub text: String,
}

impl Notice {
    /// Reason of the notice that what another told of is over.
    pub const OVER: &'static str = "DataplaneInPlace";
}

/// A keeper of what needs no keeping.
#[derive(Debug, Default)]
pub struct Unkept;

impl KeptLease for Unkept {
    fn update(&self, _: LeaseAttrs) {}

    async fn ended(&mut self) -> LeaseEnd {
        pending().await
    }
}
