//! `host-gw`: routes to nodes on the same link.

use std::{net::IpAddr, sync::Arc};

use futures::future::{BoxFuture, ready};

use super::{
    AnyBackend, Backend, BackendError, Candidate, ExternalInterface, Options, PeerRoute, Skip, Start,
    Unusable,
    kind::{Kind, Support},
};

/// Its line in the table.
pub(super) const KIND: Kind = Kind {
    name: "host-gw",
    what: "routes to nodes on the same link",
    support: Support::Built(|_| Ok(Arc::new(HostGw))),
};

/// Routes to nodes on the same link. It has no options.
#[derive(Clone, Copy, Debug)]
pub struct HostGw;

impl Options for HostGw {
    fn kind(&self) -> &'static str {
        KIND.name
    }

    fn adopt<'a>(&'a self, _: Start<'a>) -> BoxFuture<'a, Result<AnyBackend, BackendError>> {
        Box::pin(ready(Ok(AnyBackend::new(*self))))
    }
}

impl Backend for HostGw {
    fn options(&self) -> &dyn Options {
        self
    }

    fn judge(&self, _: &Candidate<'_>) -> Result<PeerRoute, Skip> {
        Ok(PeerRoute::Direct)
    }

    fn is_without_tunnel(&self) -> bool {
        true
    }

    /// Others route to the address they know, so that it has to be the interface's.
    fn check_address(
        &self,
        external: &ExternalInterface,
        address: IpAddr,
        public: IpAddr,
    ) -> Result<(), Unusable> {
        if public == address {
            return Ok(());
        }
        let (field, flag) = match public {
            IpAddr::V4(_) => ("PublicIP", "public-ip"),
            IpAddr::V6(_) => ("PublicIPv6", "public-ipv6"),
        };
        Err(Unusable::BehindNat { field, flag, public, interface: external.name.clone(), address })
    }
}
