//! How netfilter translates flows.

use super::{Flow, per_family};
use crate::family::{Family, V4, V6};

per_family! {
    /// Value of `translations_v4` and `translations_v6`: the other end of a flow as it is known on the other side of
    /// netfilter. Only the agent adds them.
    ///
    /// A flow has two, or none. One has the flow as its pod knows it for its key, such as with a Service for its other
    /// end, and tells the backend. One has the flow as the network knows it, with the backend for its other end, and
    /// tells the Service. The other end of the first is outside of the cluster's network, that of the second inside of
    /// it, so that neither is taken for the other.
    pub struct Translation<F>, TranslationBits: repr(C) {
        /// Address of the other end, network order.
        pub remote: F::Address,
        /// Port of the other end, host order.
        pub remote_port: u16,
        /// Always zero: keeps the size a multiple of four.
        pub reserved: u16,
        /// The id by which connection tracking tells this flow from any other that has, or had, the same addresses and
        /// ports.
        pub id: u32,
    }
}

impl<F: Family> Translation<F> {
    /// The key of the flow's other entry, where `flow` is the key of this one.
    #[inline(always)]
    pub const fn other_side(&self, flow: &Flow<F>) -> Flow<F> {
        Flow {
            local: flow.local,
            remote: self.remote,
            local_port: flow.local_port,
            remote_port: self.remote_port,
            protocol: flow.protocol,
        }
    }
}

super::assert_layout!(Translation<V4>, 12, 4);
super::assert_layout!(Translation<V6>, 24, 8);
