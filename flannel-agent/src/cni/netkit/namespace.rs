//! The pod's network namespace, with a connection to its kernel's tables.

use std::{fs::File, os::fd::AsFd as _, path::Path};

use ipnetwork::IpNetwork;
use nix::sched::{CloneFlags, setns};

use super::super::error::{CniError, Code};
use super::{failure::failed, given::Given};
use crate::{
    host::sysctl,
    netlink::{Link, Netlink, address, link, netkit::PodEndOptions, route},
    values::{Family, Mac},
};

/// A pod's network namespace.
pub(super) struct Namespace {
    file: File,
    netlink: Netlink,
    /// What the pod calls its interface.
    interface: String,
}

impl Namespace {
    /// Opens the one at `path`.
    ///
    /// # Errors
    /// It is none, or may not be entered.
    pub(super) fn open(path: &Path, interface: &str) -> Result<Self, CniError> {
        let refused = |error: &dyn std::fmt::Display| {
            CniError::new(Code::Netns, format!("CNI_NETNS: {}: {error}", path.display()))
        };
        let file = File::open(path).map_err(|error| refused(&error))?;
        let netlink = within(&file, Netlink::open).map_err(|error| refused(&error))?;
        let netlink = netlink.map_err(|error| failed("ask the kernel about the pod", &error))?;
        Ok(Self { file, netlink, interface: interface.to_owned() })
    }

    /// What a netkit's end here is to be like.
    pub(super) fn end(&self, mac: Option<Mac>) -> PodEndOptions<'_> {
        PodEndOptions { name: &self.interface, namespace: self.file.as_fd(), mac }
    }

    /// The pod's interface, if it is there.
    pub(super) async fn link(&mut self) -> Result<Option<Link>, CniError> {
        let found = self.netlink.link(&self.interface).await;
        found.map_err(|error| failed(&format!("look for {} of the pod", self.interface), &error))
    }

    /// The addresses of the pod's interface.
    pub(super) async fn addresses(&mut self, link: &Link) -> Result<Vec<IpNetwork>, CniError> {
        let mut held = Vec::new();
        for family in [Family::V4, Family::V6] {
            let found = self.netlink.addresses(family, Some(link.index)).await;
            let found = found.map_err(|error| failed("read the pod's addresses", &error))?;
            held.extend(found.into_iter().map(|address| address.network));
        }
        Ok(held)
    }

    /// Gives the pod's interface what was `given`, and sets it up.
    ///
    /// # Errors
    /// The kernel's, with what was tried.
    pub(super) async fn set_up(&mut self, link: &Link, given: &Given) -> Result<(), CniError> {
        self.prepare(given)?;
        let name = self.interface.clone();
        for address in &given.addresses {
            let put = self.netlink.change(address::put(link.index, address.network)).await;
            put.map_err(|error| failed(&format!("give {name} address {}", address.network), &error))?;
        }
        let up = self.netlink.change(link::set_up(link.index)).await;
        up.map_err(|error| failed(&format!("set {name} up"), &error))?;
        for route_in_pod in given.routes_over(link.index)? {
            let added = self.netlink.change(route::append(&route_in_pod)).await;
            added.map_err(|error| {
                failed(&format!("add the pod's route to {}", route_in_pod.destination), &error)
            })?;
        }
        Ok(())
    }

    /// Neighbours learn of a new MAC behind an address that another pod had, and the interface has IPv6 if it gets an
    /// address of it.
    fn prepare(&self, given: &Given) -> Result<(), CniError> {
        let interface = &self.interface;
        let has_v6 = given.addresses.iter().any(|address| address.network.is_ipv6());
        let set = within(&self.file, || {
            // A kernel without IPv6 has not the one.
            for name in
                [format!("ipv4/conf/{interface}/arp_notify"), format!("ipv6/conf/{interface}/ndisc_notify")]
            {
                let _ = sysctl::NET.write(&name, "1");
            }
            let disabled = format!("ipv6/conf/{interface}/disable_ipv6");
            match sysctl::NET.read(&disabled) {
                Ok(value) if has_v6 && value != "0" => sysctl::NET.write(&disabled, "0"),
                _ => Ok(()),
            }
        });
        let failed = |error: &dyn std::fmt::Display| failed(&format!("turn IPv6 on at {interface}"), error);
        set.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
    }
}

/// Runs `what` in another network namespace, and comes back. There is one thread, and nobody else sees where it is.
fn within<T>(namespace: &File, what: impl FnOnce() -> T) -> std::io::Result<T> {
    let own = File::open("/proc/thread-self/ns/net")?;
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    let done = what();
    setns(own, CloneFlags::CLONE_NEWNET)?;
    Ok(done)
}
