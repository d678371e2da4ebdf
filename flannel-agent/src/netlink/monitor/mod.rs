//! What changes in the kernel, by kind and no finer: whoever hears of it reads again.

use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use nix::errno::Errno;

use super::{NetlinkError, Notice, connection::open, error::errno};

pub use changed::{Changed, Watched};

use changed::classify;

mod changed;

/// Receive buffer, bytes: room for the notices of some ten thousand objects that change at once.
const RECEIVE_BUFFER: usize = 16 << 20;
const DATAGRAM: usize = 64 << 10;
/// RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR.
const INTERFACES: u32 = 0x1 | 0x10 | 0x100;
/// RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE.
const ROUTES: u32 = 0x40 | 0x400;
/// RTMGRP_IPV4_RULE, and the bit of RTNLGRP_IPV6_RULE.
const RULES: u32 = 0x80 | 1 << 18;
/// RTMGRP_NEIGH.
const NEIGHBOURS: u32 = 0x4;
/// RTMGRP_TC.
const TRAFFIC_CONTROL: u32 = 0x8;

/// RTNLGRP_IPV4_NETCONF and RTNLGRP_IPV6_NETCONF, and RTNLGRP_NEXTHOP.
const FORWARDING: u32 = 1 << 23 | 1 << 24 | 1 << 31;

/// Listens to the kernel's notices about links, addresses, neighbours, routes, rules, forwarding and traffic control.
pub struct Monitor {
    socket: Option<TokioSocket>,
    /// RTMGRP_* bits.
    groups: u32,
    datagram: Vec<u8>,
}

impl Monitor {
    /// Starts to listen to all that [`Changed`] tells apart. Needs a Tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::of(INTERFACES | ROUTES | RULES | FORWARDING | NEIGHBOURS | TRAFFIC_CONTROL)
    }

    /// Starts to listen to interfaces and their addresses alone. Every listener costs whoever changes a table of ten
    /// thousand entries one more copy of each.
    pub fn of_interfaces() -> Result<Self, NetlinkError> {
        Self::of(INTERFACES)
    }

    fn of(groups: u32) -> Result<Self, NetlinkError> {
        Ok(Self { socket: Some(open(RECEIVE_BUFFER, groups)?), groups, datagram: Vec::new() })
    }

    /// From now on also listens to routes, or no longer does. Where that is news, the next [`Monitor::changed`]
    /// reports an overrun.
    pub fn hear_routes(&mut self, wanted: bool) {
        let groups = if wanted { self.groups | ROUTES } else { self.groups & !ROUTES };
        if groups != self.groups {
            self.groups = groups;
            self.pause();
        }
    }

    /// Listens to nothing until it is asked again, which will be told that notices were missed.
    pub fn pause(&mut self) {
        self.socket = None;
    }

    /// Listens again after a pause; whether there was one.
    ///
    /// # Errors
    /// There is no socket to be had. The next call of [`Monitor::changed`] tries again.
    pub fn resume(&mut self) -> Result<bool, NetlinkError> {
        let paused = self.socket.is_none();
        if paused {
            self.socket = Some(open(RECEIVE_BUFFER, self.groups)?);
        }
        Ok(paused)
    }

    /// Waits until something changed that can matter to us, and tells all that has been noticed by then. Cancel safe.
    ///
    /// # Errors
    /// The socket failed. The next call opens another and reports an overrun, since notices were missed.
    pub async fn changed(&mut self, watched: &Watched) -> Result<Changed, NetlinkError> {
        let mut changed = Changed { overrun: self.resume()?, ..Changed::default() };
        let Some(socket) = &mut self.socket else { return Ok(changed) };
        // The first wait is for whatever comes; what else has come by then is taken along without waiting.
        while !changed.any() {
            self.datagram.clear();
            self.datagram.reserve(DATAGRAM);
            if let Err(error) = socket.recv(&mut self.datagram).await {
                changed |= lost(&mut self.socket, errno(&error))?;
                return Ok(changed);
            }
            changed |= classify(&self.datagram, watched, |_| false);
        }
        loop {
            self.datagram.clear();
            self.datagram.reserve(DATAGRAM);
            match socket.socket_ref().recv(&mut self.datagram, 0) {
                Ok(_) => changed |= classify(&self.datagram, watched, |_| false),
                Err(error) if errno(&error) == Errno::EAGAIN => return Ok(changed),
                Err(error) => {
                    changed |= lost(&mut self.socket, errno(&error))?;
                    return Ok(changed);
                }
            }
        }
    }
}

impl Monitor {
    /// All that has been noticed by now but what `is_echo` of what we have done, without waiting.
    pub fn heard_but(&mut self, watched: &Watched, is_echo: impl Fn(&Notice) -> bool) -> Changed {
        let mut changed = Changed::default();
        while let Some(socket) = &self.socket {
            self.datagram.clear();
            self.datagram.reserve(DATAGRAM);
            match socket.socket_ref().recv(&mut self.datagram, 0) {
                Ok(_) => changed |= classify(&self.datagram, watched, &is_echo),
                Err(error) if errno(&error) == Errno::EAGAIN => break,
                // A socket that is lost is opened anew by whoever waits next, and reports that notices were missed.
                Err(error) => changed |= lost(&mut self.socket, errno(&error)).unwrap_or_default(),
            }
        }
        changed
    }
}

/// What a failed read means: lost notices, or a lost socket.
fn lost(socket: &mut Option<TokioSocket>, errno: Errno) -> Result<Changed, NetlinkError> {
    if errno == Errno::ENOBUFS {
        return Ok(Changed::EVERYTHING);
    }
    *socket = None;
    Err(NetlinkError::Socket(errno))
}
