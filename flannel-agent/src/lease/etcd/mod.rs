//! Leases in etcd, by the keys and rules of flannel's etcd subnet managers: in the v3 store, or in the v2 store, where
//! flannel 0.11 to 0.17 keep them.
//!
//! ```text
//! options ─▶ EtcdStore ─ network_config()      <prefix>/config, and which store has it
//!                      ├ report_config_changes()
//!                      ├ acquire() ─▶ OwnLease  <prefix>/subnets/<own>
//!                      ├ keep(own) ─▶ LeaseKeeper: renews, and takes back what was deleted
//!                      └ watch(own) ─▶ EtcdWatch: a LeaseSource of all others
//! ```
//!
//! All of these ask a [`server::Server`], which is v3 ([`members`]) or v2 ([`v2`]).
//!
//! Nothing but our own, valid lease is ever written below `<prefix>/subnets`: an entry that stock flanneld
//! cannot decode makes it drop every peer it has.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use etcd_client::{ConnectOptions, GetOptions, GetResponse};
use tokio::sync::watch;
use tracing::warn;

use self::{
    ctl::Etcdctl,
    endpoint::EndpointError,
    members::{Member, Members},
    tls::{Files, TlsError},
};
use super::{BadConfig, Heard, LeaseSubnet, Mended, Unusable, wire::lease_key};
use crate::{config::ConfigError, telemetry::LastMessage};
pub use acquire::{AcquireError, OwnLease};
pub use keep::{LeaseKeeper, LostLease, OwnLeaseReport};
pub use lease_watch::{EtcdWatch, Inherited};
pub use options::{EtcdApi, EtcdOptions, LeaseTiming};

mod acquire;
mod advice;
mod channel;
mod claim;
mod config;
mod config_watch;
mod ctl;
mod endpoint;
mod entry;
mod keep;
mod key_watch;
mod known;
mod lease_watch;
mod members;
pub mod migrate;
mod options;
mod pace;
mod seen;
mod server;
mod store;
mod tls;
mod trust;
mod v2;

/// Between attempts to get what the agent cannot start without.
const RETRY: Duration = Duration::from_secs(1);
/// Attempts before giving up when others are faster every time.
const TRIES: usize = 10;
/// Pings on a connection that carries a watch, and how long an answer may take: a peer that vanished is
/// noticed after the sum of both. etcd closes connections pinged more often than every 5 s.
const PING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// How long one member may take to answer one request.
const ANSWER: Duration = Duration::from_secs(5);
/// For a TCP connection, and for TLS on it.
const CONNECT: Duration = Duration::from_secs(3);

/// What can go wrong with etcd.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// `--etcd-endpoints` is wrong.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// A certificate or key is wrong.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// `--subnet-lease-renew-margin` is out of range.
    #[error("Invalid subnet-lease-renew-margin option, out of acceptable range: {0}; use 1 to 1439 minutes")]
    RenewMargin(u64),
    /// No member answered.
    #[error("etcd does not answer to \"{what}\": {tried}")]
    Unreachable {
        /// What was asked.
        what: &'static str,
        /// Each endpoint, what it did instead, and what to do about it.
        tried: String,
    },
    /// A member answered, with an error that every other would give too.
    #[error("etcd at {endpoint} refuses to \"{what}\": {reason}; {advice}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Who answered.
        endpoint: String,
        /// What it said.
        reason: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// Somebody else writes to our key all the time.
    #[error(
        "{key} was changed by others each of the {TRIES} times it was written: find out who writes to it"
    )]
    Unsettled {
        /// The key.
        key: String,
    },
    /// There is no configuration. The beginning is upstream's.
    #[error(
        "flannel config not found in etcd store. Did you create your config using etcdv3 API? Here {looked}. Write it by: \
         {put}. Or, in a cluster with nodes of flannel 0.11 to 0.17, which know the v2 store only, by: {mk} (set instead \
         of mk where the key is there)"
    )]
    NoConfig {
        /// What was looked at, and how it is there.
        looked: String,
        /// The command that writes one to the v3 store.
        put: String,
        /// The command that writes one to the v2 store.
        mk: String,
    },
    /// There is no v2 API.
    #[error(
        "etcd at {endpoint} serves no v2 store: start it with --enable-v2=true (etcd 3.6 and later have none), or leave \
         --etcd-api=v2 out"
    )]
    NoV2 {
        /// Who answered.
        endpoint: String,
    },
    /// The configuration is wrong.
    #[error("{key}: {error}")]
    Config {
        /// Where it stands.
        key: String,
        /// What is wrong.
        error: ConfigError,
    },
}

/// The lease store. Clones share connections.
#[derive(Clone)]
pub struct EtcdStore {
    members: Arc<Members>,
    v2: Arc<v2::Members>,
    given_api: EtcdApi,
    /// What [`EtcdApi::Auto`] came to; itself until then, when leases are v3's.
    decided: Arc<Mutex<EtcdApi>>,
    /// Why the last request failed, if it did.
    trouble: watch::Sender<Option<String>>,
    /// How far the leases of other nodes are known.
    heard: watch::Sender<Heard>,
    /// When our lease ends, as long as it is kept.
    expiration: watch::Sender<Option<SystemTime>>,
    /// What others have made of it.
    mended: watch::Sender<Mended>,
    /// What is wrong with the network configuration.
    bad_config: watch::Sender<Option<BadConfig>>,
    /// Leases of others that cannot be used.
    unusable: watch::Sender<Vec<Unusable>>,
    prefix: Arc<str>,
    timing: LeaseTiming,
    undecodable: Arc<AtomicU64>,
    /// How an operator reaches the same etcd.
    ctl: Arc<Etcdctl>,
}

impl EtcdStore {
    /// Checks the options and reads the certificates. Connections are made when first needed, so etcd may
    /// start later. Needs a Tokio runtime from then on.
    pub fn connect(options: &EtcdOptions) -> Result<Self, EtcdError> {
        let pair = match (&options.certfile, &options.keyfile) {
            (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
            (None, None) => None,
            (Some(_), None) => ignored("--etcd-certfile", "--etcd-keyfile"),
            (None, Some(_)) => ignored("--etcd-keyfile", "--etcd-certfile"),
        };
        let endpoints = endpoint::parse(&options.endpoints, pair.is_some())?;
        let encrypted = endpoints.iter().any(|endpoint| endpoint.tls);
        let have_certificate = pair.is_some();
        let files = Files { ca: options.cafile.clone(), pair };
        let ctl = Etcdctl {
            endpoints: endpoints.iter().map(ToString::to_string).collect(),
            files: encrypted.then(|| files.clone()),
            user: options.username.clone().filter(|_| options.password.is_some()),
        };
        if encrypted || have_certificate {
            tls::client_config(&files)?;
        }
        if !encrypted && files.ca.is_some() && !have_certificate {
            warn!(
                "no certificate and key were found, so connecting to etcd with http: --etcd-cafile is not used"
            );
        }
        let user = match (&options.username, &options.password) {
            (Some(user), Some(password)) => Some((user.clone(), password.clone())),
            (None, None) => None,
            (Some(_), None) => ignored("--etcd-username", "--etcd-password"),
            (None, Some(_)) => ignored("--etcd-password", "--etcd-username"),
        };
        let (mut members, mut members_v2) = (Vec::new(), Vec::new());
        for endpoint in endpoints {
            let connect = ConnectOptions::new()
                .with_keep_alive(PING.0, PING.1)
                .with_connect_timeout(CONNECT)
                .with_tcp_keepalive(PING.0)
                .with_auto_token_refresh(true)
                // A member cut off from the others would answer from what it knew before.
                .with_require_leader(true);
            if have_certificate && !endpoint.tls {
                warn!(%endpoint, "connecting without TLS, as the endpoint says http; --etcd-certfile is not used");
            }
            let tls = endpoint.tls.then(|| files.clone());
            let of_v2 = v2::Member::new(endpoint.clone(), tls.clone(), user.clone(), have_certificate);
            members_v2.push(of_v2);
            members.push(Member {
                endpoint,
                options: connect,
                tls,
                user: user.clone(),
                have_certificate,
                client: Default::default(),
            });
        }
        let (prefix, trouble) = (clean(&options.prefix), watch::Sender::new(None));
        Ok(Self {
            members: Arc::new(Members::new(members, trouble.clone())),
            v2: Arc::new(v2::Members::new(members_v2, &prefix, trouble.clone())),
            given_api: options.api,
            decided: Arc::default(),
            trouble,
            heard: watch::Sender::new(Heard::default()),
            expiration: watch::Sender::new(None),
            mended: watch::Sender::new(Mended::default()),
            bad_config: watch::Sender::new(None),
            unusable: watch::Sender::new(Vec::new()),
            prefix: prefix.into(),
            timing: options.timing,
            undecodable: Arc::default(),
            ctl: Arc::new(ctl),
        })
    }

    /// How many leases of peers could not be decoded and were skipped. One that stays as it is counts once.
    pub fn undecodable(&self) -> u64 {
        self.undecodable.load(Ordering::Relaxed)
    }

    fn config_key(&self) -> String {
        join(&self.prefix, "config")
    }

    /// The start of the keys of all leases. No slash at its end, as upstream has none.
    fn leases_key(&self) -> String {
        join(&self.prefix, "subnets")
    }

    fn lease_key(&self, subnet: &LeaseSubnet) -> String {
        join(&self.leases_key(), &lease_key(subnet))
    }
}

/// Reads a key, or all that begin with it.
async fn get(
    members: &Members,
    what: &'static str,
    key: &[u8],
    prefix: bool,
) -> Result<(GetResponse, members::MemberId), EtcdError> {
    let options = if prefix { GetOptions::new().with_prefix() } else { GetOptions::new() };
    members
        .call(what, |client| {
            let (key, options) = (key.to_vec(), options.clone());
            let mut kv = client.kv_client().max_decoding_message_size(MAX_MESSAGE);
            async move { kv.get(key, Some(options)).await }
        })
        .await
}

/// 4 MB, the default of gRPC, is the leases of some 15 000 nodes.
const MAX_MESSAGE: usize = 256 << 20;

fn ignored<T>(given: &str, missing: &str) -> Option<T> {
    warn!("{given} is not used, because {missing} is not given");
    None
}

/// A key prefix made as Go's `path.Join` makes it, for the keys of all nodes to be the same.
fn clean(prefix: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in prefix.split('/').filter(|part| !part.is_empty() && *part != ".") {
        match part {
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if prefix.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    let root = if prefix.starts_with('/') { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
}

fn join(prefix: &str, name: &str) -> String {
    match prefix {
        "" | "/" => format!("{prefix}{name}"),
        _ => format!("{prefix}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_as_go_joins_paths() {
        for (prefix, key) in [
            ("/coreos.com/network", "/coreos.com/network/config"),
            ("/coreos.com/network/", "/coreos.com/network/config"),
            ("/coreos.com//./x/../network", "/coreos.com/network/config"),
            ("network", "network/config"),
            ("", "config"),
            ("/", "/config"),
            ("/../a", "/a/config"),
            ("../a", "../a/config"),
        ] {
            assert_eq!(join(&clean(prefix), "config"), key, "{prefix}");
        }
    }

    #[test]
    fn the_same_thing_is_said_once() {
        let mut said = LastMessage::default();
        assert!(said.is_news(&"a") && !said.is_news(&"a") && said.is_news(&"b") && said.is_news(&"a"));
        assert!(said.is_over() && !said.is_over() && said.is_news(&"a"));
    }
}
