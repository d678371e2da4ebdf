//! The clouds whose routers carry packets of pods: a route for each node's subnet, by the API of the cloud.
//!
//! ```text
//! metadata ─▶ which machine is this, in which network ─▶ API: what routes are there ─▶ changes ─▶ API: write them
//! ```
//!
//! What is right stays as it is. What fails leaves the routes as they were.

use std::{future::Future, sync::Arc, time::Duration};

use ipnetwork::IpNetwork;
use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::telemetry::LastMessage;

pub mod aws;
pub mod gce;
mod http;

/// Between looks at routes that are right.
pub const LOOK: Duration = Duration::from_secs(300);
/// Between attempts that fail. Up to a fifth less, so that nodes do not ask all at once.
const RETRY: Duration = Duration::from_secs(15);

/// Reads a variable of the environment.
pub type Variable = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Those of this process.
pub fn environment() -> Variable {
    Arc::new(|name| std::env::var(name).ok())
}

/// What is to be routed to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The cluster's network: what is outside is not flannel's.
    pub network: IpNetwork,
    /// This node's subnet of it.
    pub subnet: IpNetwork,
}

/// As the network config and our lease have it.
pub fn shares(subnets: &[(IpNetwork, IpNetwork)]) -> Vec<Share> {
    subnets.iter().map(|(network, subnet)| Share { network: *network, subnet: *subnet }).collect()
}

/// Routes that are made anew when what they are for is another.
#[derive(Debug)]
pub struct Kept<K, R>(Mutex<Option<(K, Arc<R>)>>);

impl<K, R> Default for Kept<K, R> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: PartialEq, R> Kept<K, R> {
    /// The routes for `key`.
    ///
    /// # Errors
    /// What `new` says.
    pub async fn of<E>(&self, key: K, new: impl FnOnce() -> Result<R, E>) -> Result<Arc<R>, E> {
        let mut kept = self.0.lock().await;
        match &*kept {
            Some((known, routes)) if *known == key => Ok(routes.clone()),
            _ => {
                let routes = Arc::new(new()?);
                *kept = Some((key, routes.clone()));
                Ok(routes)
            }
        }
    }
}

/// Routes in a cloud.
pub trait CloudRoutes: Send + Sync {
    /// Why they cannot be kept.
    type Error: CloudError;

    /// Brings the cloud's routes to what they should be, at one attempt; says what was changed, if anything was.
    fn ensure(&self) -> impl Future<Output = Result<Vec<String>, Self::Error>> + Send;
}

/// What a cloud did not do.
pub trait CloudError: std::error::Error + Send + Sync + 'static {
    /// Whether it may do it in a while, with nothing changed by anybody.
    fn may_pass(&self) -> bool;
}

/// Brings the cloud's routes to what they should be, however long the cloud takes to answer. Trouble that lasts is logged
/// once.
///
/// # Errors
/// What the cloud refuses, for somebody to change.
pub async fn settle<R: CloudRoutes>(routes: &R) -> Result<(), R::Error> {
    let mut said = LastMessage::default();
    loop {
        match routes.ensure().await {
            Ok(changes) => {
                if said.is_over() {
                    info!("the cloud's API answers again");
                }
                for change in changes {
                    info!(change, "changed in the cloud");
                }
                return Ok(());
            }
            Err(error) if error.may_pass() => {
                if said.is_news(&error) {
                    warn!(%error, "the cloud's routes cannot be looked at; they stay as they are. Trying again");
                }
                tokio::time::sleep(RETRY.mul_f64(rand::random_range(0.8..=1.0))).await;
            }
            Err(error) => return Err(error),
        }
    }
}
