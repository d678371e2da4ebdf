//! `alloc`: the lease, and nothing else.

use std::sync::Arc;

use futures::future::{BoxFuture, ready};

use super::{
    AnyBackend, Backend, BackendError, Options, Start,
    kind::{Kind, Support},
};

/// Its line in the table.
pub(super) const KIND: Kind = Kind {
    name: "alloc",
    what: "routes that you make yourself",
    support: Support::Built(|_| Ok(Arc::new(Alloc))),
};

/// The lease, and nothing else: the administrator makes the routes. It has no options.
#[derive(Clone, Copy, Debug)]
pub struct Alloc;

impl Options for Alloc {
    fn kind(&self) -> &'static str {
        KIND.name
    }

    fn adopt<'a>(&'a self, _: Start<'a>) -> BoxFuture<'a, Result<AnyBackend, BackendError>> {
        Box::pin(ready(Ok(AnyBackend::new(*self))))
    }
}

impl Backend for Alloc {
    fn options(&self) -> &dyn Options {
        self
    }

    /// Upstream publishes none.
    fn published(&self) -> &'static str {
        ""
    }

    fn follows_peers(&self) -> bool {
        false
    }

    fn kernel_only(&self) -> Option<&'static str> {
        Some("the alloc backend moves no packets")
    }
}
