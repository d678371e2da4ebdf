//! `gce`: routes in Google's cloud.

use std::{sync::Arc, time::Duration};

use futures::future::{BoxFuture, ready};
use tracing::warn;

use super::{
    AnyBackend, Backend, BackendError, Options, Registered, Start,
    kind::{Kind, Support},
};
use crate::cloud::{self, Kept, Share, gce::GceRoutes};

/// Its line in the table.
pub(super) const KIND: Kind = Kind {
    name: "gce",
    what: "routes of Google's cloud",
    support: Support::Built(|_| Ok(Arc::new(GceOptions))),
};

/// The gce backend has no options.
#[derive(Clone, Copy, Debug)]
pub struct GceOptions;

impl Options for GceOptions {
    fn kind(&self) -> &'static str {
        KIND.name
    }

    fn adopt<'a>(&'a self, _: Start<'a>) -> BoxFuture<'a, Result<AnyBackend, BackendError>> {
        Box::pin(ready(Ok(AnyBackend::new(Gce::default()))))
    }
}

/// Routes in Google's cloud: its routers carry packets of pods.
#[derive(Debug, Default)]
pub struct Gce {
    routes: Kept<Vec<Share>, GceRoutes>,
}

impl Gce {
    async fn ensure(&self, node: &Registered) -> Result<(), BackendError> {
        let shares: Vec<Share> =
            cloud::shares(&node.subnets).into_iter().filter(|share| share.subnet.is_ipv4()).collect();
        let new = || {
            if shares.len() < node.subnets.len() {
                warn!(
                    "the gce backend makes routes for IPv4 only, as upstream's: IPv6 of pods stays on this node"
                );
            }
            GceRoutes::new(shares.clone(), cloud::environment())
        };
        let refused = |error: cloud::gce::GceError| BackendError::Other(format!("gce: {error}"));
        let routes = self.routes.of(shares.clone(), new).await.map_err(refused)?;
        cloud::settle(&*routes).await.map_err(refused)
    }
}

impl Backend for Gce {
    fn options(&self) -> &dyn Options {
        &GceOptions
    }

    /// Upstream publishes none.
    fn published(&self) -> &'static str {
        ""
    }

    fn follows_peers(&self) -> bool {
        false
    }

    fn kernel_only(&self) -> Option<&'static str> {
        Some("Google's routers carry packets between nodes")
    }

    fn register<'a>(&'a self, node: &'a Registered) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(self.ensure(node))
    }

    fn register_again(&self) -> Option<Duration> {
        Some(cloud::LOOK)
    }
}
