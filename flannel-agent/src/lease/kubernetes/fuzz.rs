//! Any bytes as a Node from the API server: what a fuzzer of leases on Kubernetes runs.

use std::net::Ipv4Addr;

use super::{
    annotations::AnnotationPrefix,
    node_lease::{Families, lease_of, published, to_annotate, unusable_overwrites},
    record::NodeRecord,
};
use crate::{
    lease::wire::{LeaseAttrs, VxlanData},
    values::Mac,
};

/// Reads a Node of JSON.
///
/// # Panics
/// Its lease has a subnet of a family that the network has not, or none.
pub(crate) fn node(bytes: &[u8]) {
    let Ok(record) = serde_json::from_slice::<NodeRecord>(bytes) else { return };
    let Ok(prefix) = AnnotationPrefix::new("flannel.alpha.coreos.com") else { return };
    for (v4, v6) in [(true, false), (false, true), (true, true)] {
        let Ok(lease) = lease_of(&record, &prefix, Families { v4, v6 }) else { continue };
        assert!(lease.subnet.v4.is_some() || lease.subnet.v6.is_some());
        assert!((v4 || lease.subnet.v4.is_none()) && (v6 || lease.subnet.v6.is_none()));
        let text = lease.attrs.to_json();
        assert_eq!(LeaseAttrs::from_json(text.as_bytes()).ok().as_ref(), Some(&lease.attrs), "{text}");
    }
    let mac = Some(Mac([0x5e, 0x60, 0xbd, 0x18, 0x41, 0xf3]));
    let ours = LeaseAttrs::vxlan_v4(Ipv4Addr::new(192, 0, 2, 1), VxlanData { vni: 1, vtep_mac: mac });
    let _ = published(&record, &prefix);
    let _ = unusable_overwrites(&record, &prefix);
    for (name, _) in to_annotate(&record, &prefix, &ours) {
        assert!(name.starts_with("flannel.alpha.coreos.com/"), "{name}");
    }
}
