//! The kernel's notices that nf_tables has changed, which rules of iptables are part of in its nft back end.

use std::io;

use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER};

/// Bit of the multicast group NFNLGRP_NFTABLES, number 7 (linux/netfilter/nfnetlink.h).
const NFTABLES: u32 = 1 << 6;
/// Room for one notice, bytes; what is cut off is of no interest.
const DATAGRAM: usize = 4 << 10;

/// Hears that something has changed, and not what.
pub(super) struct RulesetMonitor {
    socket: TokioSocket,
    datagram: Vec<u8>,
}

impl RulesetMonitor {
    /// Starts to listen. Needs a Tokio runtime, and CAP_NET_ADMIN.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, NFTABLES))?;
        Ok(Self { socket, datagram: Vec::with_capacity(DATAGRAM) })
    }

    /// Waits until something has changed since the last call. Cancel safe.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        self.datagram.clear();
        match self.socket.recv(&mut self.datagram).await {
            Ok(()) => {}
            Err(error) if overrun(&error) => {}
            Err(error) => return Err(error),
        }
        // What else has come by now is the same news.
        loop {
            self.datagram.clear();
            match self.socket.socket_ref().recv(&mut self.datagram, 0) {
                Ok(_) => {}
                Err(error) if overrun(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// More has changed than the socket has room for: only that it has matters.
fn overrun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::ENOBUFS)
}
