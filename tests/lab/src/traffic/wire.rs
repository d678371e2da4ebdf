//! Frames as they are on an interface: heard, and sent byte for byte.

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    sys::{
        socket::{
            AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike as _,
            SockaddrStorage, bind, recvfrom, sendto, setsockopt, socket,
            sockopt::{RcvBufForce, ReceiveTimeout},
        },
        time::{TimeVal, TimeValLike as _},
    },
};

use super::TICK;
use crate::Netns;

/// Bytes that may wait to be read: what a busy machine reads late must not be lost.
const BUFFER: usize = 64 << 20;

/// One interface of a namespace, at the level of its frames.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    link: LinkAddr,
}

impl Wire {
    /// The interface `name` of `netns`. From now on what passes it is kept, both ways, until it is read.
    pub fn open(netns: &Netns, name: &str) -> Result<Self> {
        netns.inside(|| {
            let address: SockaddrStorage = getifaddrs()?
                .filter(|entry| entry.interface_name == name)
                .find_map(|entry| entry.address.filter(|address| address.as_link_addr().is_some()))
                .with_context(|| format!("no interface {name}"))?;
            let link = *address.as_link_addr().context("a link's address")?;
            let socket =
                socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
                    .context("packet socket")?;
            setsockopt(&socket, RcvBufForce, &BUFFER).context("SO_RCVBUFFORCE")?;
            setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(TICK.as_millis() as i64))?;
            ensure!(link.len() > 0, "{name} has no link's address");
            bind(socket.as_raw_fd(), &link).with_context(|| format!("bind to {name}"))?;
            Ok(Self { socket, link })
        })
    }

    /// The interface's MAC.
    pub fn mac(&self) -> Result<[u8; 6]> {
        self.link.addr().context("an interface without a MAC")
    }

    /// Sends `frame` out of the interface, as it is.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = sendto(self.socket.as_raw_fd(), frame, &self.link, MsgFlags::empty())
            .with_context(|| format!("send a frame of {} bytes", frame.len()))?;
        ensure!(sent == frame.len(), "sent {sent} of {} bytes", frame.len());
        Ok(())
    }

    /// The next frame that passed, if there is one within a moment.
    pub fn next(&self) -> Result<Option<Vec<u8>>> {
        let mut frame = vec![0; 128 << 10];
        match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut frame) {
            Ok((length, _)) => {
                frame.truncate(length);
                Ok(Some(frame))
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(error) => Err(error).context("receive a frame"),
        }
    }

    /// Waits for a frame in which `find` finds something.
    pub fn find<T>(
        &self,
        patience: Duration,
        what: &str,
        mut find: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<T> {
        let start = Instant::now();
        while start.elapsed() < patience {
            if let Some(found) = self.next()?.and_then(|frame| find(&frame)) {
                return Ok(found);
            }
        }
        anyhow::bail!("{what}: not within {patience:?}")
    }

    /// All that has passed so far and was not read.
    pub fn drain(&self) -> Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next()? {
            frames.push(frame);
        }
        Ok(frames)
    }
}
