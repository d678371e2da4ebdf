//! A node's lease, as its annotations and pod CIDRs tell it, and the annotations that tell ours.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    annotations::{
        AnnotationPrefix, BACKEND_DATA, BACKEND_TYPE, BACKEND_V6_DATA, MANAGED, PUBLIC_IP,
        PUBLIC_IP_OVERWRITE, PUBLIC_IPV6, PUBLIC_IPV6_OVERWRITE,
    },
    record::{NodeRecord, PodCidrError},
};
use crate::{
    lease::{Lease, LeaseAttrs, LeaseSubnet, wire::RawJson},
    values::Family,
};

/// The families of the cluster's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Families {
    pub(super) v4: bool,
    pub(super) v6: bool,
}

impl Families {
    pub(super) fn of(subnet: LeaseSubnet) -> Self {
        Self { v4: subnet.v4.is_some(), v6: subnet.v6.is_some() }
    }

    /// What of `subnet` is of these.
    pub(super) fn of_these(self, subnet: LeaseSubnet) -> LeaseSubnet {
        LeaseSubnet { v4: subnet.v4.filter(|_| self.v4), v6: subnet.v6.filter(|_| self.v6) }
    }
}

/// Why a node has no lease.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoLease {
    /// No flannel has annotated it: it is new, or another's.
    #[error("no annotations of flannel's")]
    NotManaged,
    /// It has no subnet of the network's families.
    #[error("no pod CIDR of the network's families")]
    NoPodCidr,
    /// Its pod CIDRs are none.
    #[error(transparent)]
    PodCidr(#[from] PodCidrError),
    /// It has the annotations, and they say nothing usable.
    #[error("{0}")]
    Unusable(String),
}

/// The lease of the node of `record`, in the network's `families`. A node of one family in a network of two has a
/// lease of one.
pub(super) fn lease_of(
    record: &NodeRecord,
    prefix: &AnnotationPrefix,
    families: Families,
) -> Result<Lease, NoLease> {
    let annotation = |name| record.annotation(prefix, name).unwrap_or_default();
    let cidrs = families.of_these(record.pod_cidrs()?);
    if annotation(MANAGED) != "true" {
        return Err(NoLease::NotManaged);
    }
    if (cidrs.v4, cidrs.v6) == (None, None) {
        return Err(NoLease::NoPodCidr);
    }
    // What is said of a family that is off does not matter.
    let v4 = match families.v4 {
        true => record.address::<Ipv4Addr>(prefix, PUBLIC_IP).map_err(NoLease::Unusable)?,
        false => None,
    };
    let v6 = match families.v6 {
        true => record.address::<Ipv6Addr>(prefix, PUBLIC_IPV6).map_err(NoLease::Unusable)?,
        false => None,
    };
    let subnet = LeaseSubnet { v4: cidrs.v4.filter(|_| v4.is_some()), v6: cidrs.v6.filter(|_| v6.is_some()) };
    if (subnet.v4, subnet.v6) == (None, None) {
        let wanted = if cidrs.v4.is_some() { PUBLIC_IP } else { PUBLIC_IPV6 };
        return Err(NoLease::Unusable(format!("annotation {}: absent", prefix.of(wanted))));
    }
    let data = |name, present: bool| -> Result<Option<RawJson>, NoLease> {
        match annotation(name) {
            _ if !present => Ok(None),
            "" | "null" => Ok(None),
            text => RawJson::parse(text).map(Some).map_err(|error| {
                NoLease::Unusable(format!("annotation {}: {text:?} is not JSON: {error}", prefix.of(name)))
            }),
        }
    };
    let attrs = LeaseAttrs {
        public_ip: v4.unwrap_or(Ipv4Addr::UNSPECIFIED),
        public_ipv6: v6,
        backend_type: annotation(BACKEND_TYPE).to_owned(),
        backend_data: data(BACKEND_DATA, subnet.v4.is_some())?,
        backend_v6_data: data(BACKEND_V6_DATA, subnet.v6.is_some())?,
    };
    if attrs.backend_type == "vxlan" && subnet.v4.is_some() {
        let mac = attrs.vxlan(Family::V4).map_err(|error| NoLease::Unusable(error.to_string()))?.vtep_mac;
        if mac.is_none_or(|mac| !mac.is_of_one_device()) {
            return Err(NoLease::Unusable(format!(
                "annotation {}: {:?} names no MAC of a device",
                prefix.of(BACKEND_DATA),
                annotation(BACKEND_DATA)
            )));
        }
    }
    // Nothing ends it but the end of the node.
    let node = Some(record.name().into());
    Ok(Lease { subnet, attrs, expiration: None, made: record.made(), node })
}

/// What our lease said when it was last written; `None` if it was not, or cannot be read.
pub(super) fn published(record: &NodeRecord, prefix: &AnnotationPrefix) -> Option<LeaseAttrs> {
    let data = |name| RawJson::parse(record.annotation(prefix, name)?).ok();
    Some(LeaseAttrs {
        public_ip: record.address(prefix, PUBLIC_IP).ok().flatten().unwrap_or(Ipv4Addr::UNSPECIFIED),
        public_ipv6: record.address(prefix, PUBLIC_IPV6).ok().flatten(),
        backend_type: record.annotation(prefix, BACKEND_TYPE)?.to_owned(),
        backend_data: data(BACKEND_DATA),
        backend_v6_data: data(BACKEND_V6_DATA),
    })
}

/// The annotations that tell our lease, name and value, and are not on our node as they should be: none if all are.
/// What an operator overwrites is published as he says.
pub(super) fn to_annotate(
    record: &NodeRecord,
    prefix: &AnnotationPrefix,
    attrs: &LeaseAttrs,
) -> Vec<(String, String)> {
    let text = |data: &Option<RawJson>| data.as_ref().map_or("null", RawJson::as_str).to_owned();
    let overwritten_v4 = record.address(prefix, PUBLIC_IP_OVERWRITE).ok().flatten();
    let overwritten_v6 = record.address(prefix, PUBLIC_IPV6_OVERWRITE).ok().flatten();
    let mut wanted = vec![(MANAGED, "true".to_owned()), (BACKEND_TYPE, attrs.backend_type.clone())];
    // As upstream: a node of vxlan or wireguard without data of a family is not in that family.
    let needs_data = matches!(attrs.backend_type.as_str(), "vxlan" | "wireguard");
    if !needs_data || attrs.backend_data.is_some() {
        wanted.push((BACKEND_DATA, text(&attrs.backend_data)));
        wanted.push((PUBLIC_IP, overwritten_v4.unwrap_or(attrs.public_ip).to_string()));
    }
    let over_v6 = matches!(attrs.backend_type.as_str(), "vxlan" | "wireguard" | "host-gw" | "extension");
    if let Some(v6) = attrs.public_ipv6
        && over_v6
        && (!needs_data || attrs.backend_v6_data.is_some())
    {
        wanted.push((BACKEND_V6_DATA, text(&attrs.backend_v6_data)));
        wanted.push((PUBLIC_IPV6, overwritten_v6.unwrap_or(v6).to_string()));
    }
    let missing =
        wanted.into_iter().filter(|(name, value)| record.annotation(prefix, name) != Some(value.as_str()));
    missing.map(|(name, value)| (prefix.of(name), value)).collect()
}

/// What an operator has written over our addresses, and cannot be published.
pub(super) fn unusable_overwrites(record: &NodeRecord, prefix: &AnnotationPrefix) -> Vec<String> {
    let v4 = record.address::<Ipv4Addr>(prefix, PUBLIC_IP_OVERWRITE).err();
    let v6 = record.address::<Ipv6Addr>(prefix, PUBLIC_IPV6_OVERWRITE).err();
    v4.into_iter().chain(v6).collect()
}

#[cfg(test)]
mod tests;
