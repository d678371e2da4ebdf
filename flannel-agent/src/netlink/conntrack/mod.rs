//! Single entries of connection tracking, and the kernel's notices of those that go (NETLINK_NETFILTER, ctnetlink).
//!
//! Blocking, as [`TrafficControl`](super::TrafficControl): the kernel answers before it returns from the request.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    time::Duration,
};

use netlink_packet_core::NLM_F_REQUEST;
use netlink_sys::{
    AsyncSocket, AsyncSocketExt, Socket, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER,
};
use nix::{
    errno::Errno,
    sys::{
        socket::{setsockopt, sockopt},
        time::TimeVal,
    },
};

use super::{
    KernelError, NetlinkError,
    connection::frames,
    error::errno,
    raw::{HEADER, number},
};

mod entry;
mod message;

pub use entry::{ConntrackEntry, ConntrackStatus, ConntrackTuple, EndedEntry, TcpState};

use message::{DELETE, GET};

/// Multicast groups (include/uapi/linux/netfilter/nfnetlink.h, `enum nfnetlink_groups`): of entries that go, and of
/// connections that were expected and are no more.
const DESTROYED: u32 = 3;
const NOT_EXPECTED: u32 = 6;
/// Kind of every message that answers with an error, or with none.
const ERROR: u16 = 2;
/// Room for one datagram, bytes: an entry takes some hundreds.
const DATAGRAM: usize = 8 << 10;
/// Receive buffer of the notices, bytes: room for some thousands of entries that go at once.
const RECEIVE_BUFFER: usize = 4 << 20;
/// How long the kernel may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks for entries of connection tracking in the network namespace of the thread that opened it.
pub struct Conntrack {
    socket: Socket,
    sequence: u32,
}

impl Conntrack {
    /// Opens a connection.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self, NetlinkError> {
        let refused = |error: io::Error| NetlinkError::Open(errno(&error));
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(refused)?;
        let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience).map_err(NetlinkError::Open)?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(refused)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The entry one of whose two tuples is `tuple`; `None` where there is none.
    ///
    /// # Errors
    /// When the kernel refuses, as without CAP_NET_ADMIN or without connection tracking.
    pub fn entry(&mut self, tuple: &ConntrackTuple) -> Result<Option<ConntrackEntry>, NetlinkError> {
        match self.ask(&message::request(GET, NLM_F_REQUEST, tuple)) {
            Ok(answer) => Ok(answer.as_deref().and_then(entry::read)),
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives the TCP connection one of whose two tuples is `tuple` another `state`, if any, and keeps it for so long if nothing
    /// more comes. Where there is none, nothing changes.
    ///
    /// # Errors
    /// As those of [`Self::entry`].
    pub fn change(
        &mut self,
        tuple: &ConntrackTuple,
        state: Option<TcpState>,
        kept: Option<Duration>,
    ) -> Result<(), NetlinkError> {
        match self.ask(&message::change(tuple, state, kept)) {
            Ok(_) => Ok(()),
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The message that answers `request`, if it is not an acknowledgement.
    fn ask(&mut self, request: &[u8]) -> Result<Option<Vec<u8>>, NetlinkError> {
        let failed = |error: io::Error| match errno(&error) {
            Errno::EAGAIN => NetlinkError::Silent(PATIENCE),
            errno => NetlinkError::Socket(errno),
        };
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = request.to_vec();
        request[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        self.socket.send_to(&request, &SocketAddr::new(0, 0), 0).map_err(failed)?;
        loop {
            let mut datagram = Vec::with_capacity(DATAGRAM);
            self.socket.recv(&mut datagram, 0).map_err(failed)?;
            for frame in frames(&datagram) {
                let message = &datagram[frame];
                if message.get(8..12) != Some(&self.sequence.to_ne_bytes()[..]) {
                    continue;
                }
                if number(message) != Some(ERROR) {
                    return Ok(Some(message.to_vec()));
                }
                let code = message.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok());
                return match code.map_or(0, i32::from_ne_bytes) {
                    0 => Ok(None),
                    code => {
                        let errno = Errno::from_raw(code.wrapping_neg());
                        Err(KernelError { errno, message: None }.into())
                    }
                };
            }
        }
    }
}

/// The kernel's notices of entries that go, while they are followed, and as far as a filter lets them through.
///
/// The kernel tells only of entries that were made while somebody listened to connection tracking
/// (net.netfilter.nf_conntrack_events is 2, as a rule), be it to something else. So this listens from when it was opened to what
/// hardly ever happens, and makes the kernel write notices, which costs it as much as a lookup for each connection, only where
/// they are wanted.
pub struct ConntrackEnds {
    socket: TokioSocket,
    datagram: Vec<u8>,
    is_followed: bool,
}

impl ConntrackEnds {
    /// Listens. `filter` is to give the socket its filter, if any. Needs a Tokio runtime.
    ///
    /// # Errors
    /// When the kernel gives no socket, or no notices.
    pub fn open(filter: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>) -> Result<Self, NetlinkError> {
        let refused = |error: io::Error| NetlinkError::Open(errno(&error));
        let mut socket = TokioSocket::new(NETLINK_NETFILTER).map_err(refused)?;
        let inner: &mut Socket = socket.socket_mut();
        // Past net.core.rmem_max only with CAP_NET_ADMIN; without it, as much as there is.
        if setsockopt(inner, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(inner, sockopt::RcvBuf, &RECEIVE_BUFFER).map_err(NetlinkError::Open)?;
        }
        filter(inner.as_fd()).map_err(refused)?;
        inner.bind(&SocketAddr::new(0, 0)).map_err(refused)?;
        inner.add_membership(NOT_EXPECTED).map_err(refused)?;
        Ok(Self { socket, datagram: Vec::new(), is_followed: false })
    }

    /// Has the kernel tell of entries that go from here on, or no longer.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn follow(&mut self, wanted: bool) -> Result<(), NetlinkError> {
        if self.is_followed != wanted {
            let socket = self.socket.socket_ref();
            let done = match wanted {
                true => socket.add_membership(DESTROYED),
                false => socket.drop_membership(DESTROYED),
            };
            done.map_err(|error| NetlinkError::Socket(errno(&error)))?;
            self.is_followed = wanted;
        }
        Ok(())
    }

    /// Waits until entries go, and tells them; all that the kernel has told of by now. Cancel safe.
    ///
    /// # Errors
    /// The socket failed; [`Errno::ENOBUFS`] is that notices were lost, and the next call goes on.
    pub async fn next(&mut self) -> Result<Vec<EndedEntry>, NetlinkError> {
        let mut ended = Vec::new();
        self.datagram.clear();
        self.datagram.reserve(DATAGRAM);
        self.socket.recv(&mut self.datagram).await.map_err(|error| NetlinkError::Socket(errno(&error)))?;
        loop {
            for frame in frames(&self.datagram) {
                let message = &self.datagram[frame];
                if number(message) == Some(DELETE) {
                    ended.extend(entry::ended(message));
                }
            }
            self.datagram.clear();
            self.datagram.reserve(DATAGRAM);
            match self.socket.socket_ref().recv(&mut self.datagram, nix::libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(error) if errno(&error) == Errno::EAGAIN => return Ok(ended),
                Err(error) => return Err(NetlinkError::Socket(errno(&error))),
            }
        }
    }
}
