//! Requests to the kernel, many in flight.
//!
//! A plain socket rather than a task behind a channel: one caller at a time, every answer is awaited by who
//! asked, and a lost answer (ENOBUFS) is an error instead of a request that waits for ever.

use std::{ops::Range, time::Duration};

use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{AsyncSocket, AsyncSocketExt, Socket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt},
};
use tokio::time::timeout;

use super::error::{KernelError, NetlinkError, errno};

/// A request without its header: that is filled in when it is sent.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) message: RouteNetlinkMessage,
    /// `NLM_F_*` besides REQUEST and ACK.
    pub(crate) flags: u16,
}

/// What became of a request: the message it was answered with, if it asked for one.
pub(crate) type Answer = Result<Option<RouteNetlinkMessage>, KernelError>;

/// Requests sent in one datagram. The answers of all of them must fit the receive buffer, at up to 8 KiB
/// of kernel memory each.
const WINDOW: usize = 256;
/// Receive buffer, bytes; the kernel grants twice as much for its own overhead.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Room for one datagram, bytes. Dumps come in pieces of at most 32 KiB.
const DATAGRAM: usize = 64 << 10;
/// How long the kernel may take. It works while the request is sent, so any wait is for the RTNL lock.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a dump is repeated that changes interrupted.
const DUMP_TRIES: usize = 5;

const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSGERR_ATTR_MSG: u16 = 1;
const HEADER: usize = 16;

/// A connection to the kernel's routing tables (NETLINK_ROUTE).
pub struct Netlink {
    socket: TokioSocket,
    sequence: u32,
    /// A request was begun and not seen through: cancelled, timed out, answers lost. What still comes in
    /// belongs to nobody, so the socket is replaced before the next request.
    unfinished: bool,
    datagram: Vec<u8>,
}

impl Netlink {
    /// Opens a connection. Needs a Tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        let socket = open(RECEIVE_BUFFER, 0)?;
        Ok(Self { socket, sequence: 0, unfinished: false, datagram: Vec::new() })
    }

    /// Makes requests that have no answer but success, in order. One result for each.
    pub(crate) async fn transact(&mut self, requests: &[Request]) -> Vec<Result<(), NetlinkError>> {
        match self.exchange(requests).await {
            Ok(answers) => answers.into_iter().map(|answer| Ok(answer.map(drop)?)).collect(),
            Err(error) => vec![Err(error); requests.len()],
        }
    }

    /// Makes requests, in order, and returns the answer of each.
    pub(crate) async fn exchange(&mut self, requests: &[Request]) -> Result<Vec<Answer>, NetlinkError> {
        let mut answers = Vec::with_capacity(requests.len());
        for window in requests.chunks(WINDOW) {
            answers.extend(self.exchange_window(window).await?);
        }
        Ok(answers)
    }

    async fn exchange_window(&mut self, requests: &[Request]) -> Result<Vec<Answer>, NetlinkError> {
        self.renew()?;
        let Some(last) = requests.len().checked_sub(1) else { return Ok(Vec::new()) };
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for (index, request) in requests.iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            // The kernel works in order and always tells of failure, so when the last one is acknowledged, those before
            // it that were not refused are done: else each costs another message.
            let flags = if index == last { NLM_F_ACK } else { 0 };
            encode(&mut bytes, request, flags, self.sequence);
        }
        self.unfinished = true;
        self.send(&bytes).await?;

        let mut answers: Vec<Answer> = vec![Ok(None); requests.len()];
        let mut open = true;
        while open {
            self.receive().await?;
            for frame in frames(&self.datagram) {
                let message = decode(&self.datagram[frame])?;
                let index = message.header.sequence_number.wrapping_sub(first) as usize;
                let Some(answer) = answers.get_mut(index) else { continue };
                match message.payload {
                    NetlinkPayload::InnerMessage(reply) => *answer = Ok(Some(reply)),
                    NetlinkPayload::Error(error) => {
                        if let Some(refusal) = refusal(&error, message.header.flags) {
                            *answer = Err(refusal);
                        }
                        open &= index != last;
                    }
                    _ => {}
                }
            }
        }
        self.unfinished = false;
        Ok(answers)
    }

    /// Reads a table; `query` may narrow it down.
    pub(crate) async fn dump(
        &mut self,
        query: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.dump_as(query, Some).await
    }

    /// Reads a table, and of its objects what `read` makes of them: as they come they take ten times the room.
    pub(crate) async fn dump_as<T: Send>(
        &mut self,
        query: RouteNetlinkMessage,
        read: impl Fn(RouteNetlinkMessage) -> Option<T> + Send + Sync,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_TRIES {
            if let Some(table) = self.dump_once(query.clone(), &read).await? {
                return Ok(table);
            }
        }
        Err(NetlinkError::Unstable)
    }

    /// The table, or nothing if it changed meanwhile and may be incomplete.
    async fn dump_once<T: Send>(
        &mut self,
        query: RouteNetlinkMessage,
        read: &(impl Fn(RouteNetlinkMessage) -> Option<T> + Send + Sync),
    ) -> Result<Option<Vec<T>>, NetlinkError> {
        self.renew()?;
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        encode(&mut bytes, &Request { message: query, flags: NLM_F_DUMP }, 0, self.sequence);
        self.unfinished = true;
        self.send(&bytes).await?;

        let mut table = Vec::new();
        let mut consistent = true;
        loop {
            self.receive().await?;
            for frame in frames(&self.datagram) {
                // One object of a kind this crate cannot read is no reason to see none.
                let Ok(message) = decode(&self.datagram[frame]) else { continue };
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                consistent &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(object) => table.extend(read(object)),
                    NetlinkPayload::Done(done) => {
                        self.unfinished = false;
                        if done.code < 0 {
                            let errno = Errno::from_raw(-done.code);
                            return Err(KernelError { errno, message: None }.into());
                        }
                        return Ok(consistent.then_some(table));
                    }
                    NetlinkPayload::Error(error) => {
                        if let Some(refusal) = refusal(&error, message.header.flags) {
                            self.unfinished = false;
                            return Err(refusal.into());
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    fn renew(&mut self) -> Result<(), NetlinkError> {
        if self.unfinished {
            self.socket = open(RECEIVE_BUFFER, 0)?;
            self.unfinished = false;
        }
        Ok(())
    }

    async fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        let kernel = SocketAddr::new(0, 0);
        self.socket.send_to(bytes, &kernel).await.map_err(|e| NetlinkError::Socket(errno(&e)))?;
        Ok(())
    }

    async fn receive(&mut self) -> Result<(), NetlinkError> {
        self.datagram.clear();
        self.datagram.reserve(DATAGRAM);
        timeout(PATIENCE, self.socket.recv(&mut self.datagram))
            .await
            .map_err(|_| NetlinkError::Silent(PATIENCE))?
            .map_err(|e| NetlinkError::Socket(errno(&e)))
    }
}

/// Opens a socket that listens to the multicast groups whose bits `groups` has.
pub(super) fn open(receive_buffer: usize, groups: u32) -> Result<TokioSocket, NetlinkError> {
    let refused = |e: std::io::Error| NetlinkError::Open(errno(&e));
    let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(refused)?;
    let inner: &mut Socket = socket.socket_mut();
    // Past net.core.rmem_max only with CAP_NET_ADMIN; without it, as much as there is.
    if setsockopt(inner, sockopt::RcvBufForce, &receive_buffer).is_err() {
        setsockopt(inner, sockopt::RcvBuf, &receive_buffer).map_err(NetlinkError::Open)?;
    }
    inner.set_cap_ack(true).map_err(refused)?;
    inner.set_ext_ack(true).map_err(refused)?;
    // Lets the kernel filter dumps by device and table.
    inner.set_netlink_get_strict_chk(true).map_err(refused)?;
    inner.bind(&SocketAddr::new(0, groups)).map_err(refused)?;
    Ok(socket)
}

pub(super) fn encode(bytes: &mut Vec<u8>, request: &Request, flags: u16, sequence: u32) {
    let mut message = NetlinkMessage::from(request.message.clone());
    message.header.flags = NLM_F_REQUEST | request.flags | flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..]);
}

pub(super) fn decode(frame: &[u8]) -> Result<NetlinkMessage<RouteNetlinkMessage>, NetlinkError> {
    NetlinkMessage::deserialize(frame).map_err(|error| NetlinkError::Malformed(error.to_string()))
}

/// Where in a datagram its messages are. Stops at the first whose length cannot be.
pub(super) fn frames(datagram: &[u8]) -> impl Iterator<Item = Range<usize>> + use<> {
    let mut found = Vec::new();
    let mut start = 0;
    while let Some(&[a, b, c, d]) = datagram.get(start..start + 4) {
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        if length < HEADER || length > datagram.len() - start {
            break;
        }
        found.push(start..start + length);
        start += length.next_multiple_of(4);
    }
    found.into_iter()
}

/// The refusal that an error message stands for; none if it acknowledges.
pub(super) fn refusal(error: &ErrorMessage, flags: u16) -> Option<KernelError> {
    let code = error.code?.get();
    let message = (flags & NLM_F_ACK_TLVS != 0).then(|| extended_message(&error.header, flags)).flatten();
    Some(KernelError { errno: Errno::from_raw(code.wrapping_neg()), message })
}

/// The text among the attributes that follow the refused request's header.
fn extended_message(bytes: &[u8], flags: u16) -> Option<String> {
    let skip = if flags & NLM_F_CAPPED != 0 {
        HEADER
    } else {
        u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?).next_multiple_of(4) as usize
    };
    let mut rest = bytes.get(skip..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(4..length)?;
        if kind == NLMSGERR_ATTR_MSG {
            let text = value.split(|&byte| byte == 0).next()?;
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        rest = rest.get(length.next_multiple_of(4).max(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn the_kernel_is_quoted() {
        let attributes =
            [attribute(2, &[1, 2, 3, 4]), attribute(NLMSGERR_ATTR_MSG, b"no such thing\0")].concat();
        let mut whole = vec![0; 24];
        whole[..4].copy_from_slice(&22u32.to_ne_bytes());
        let capped = [vec![0; HEADER], attributes.clone()].concat();
        assert_eq!(extended_message(&capped, NLM_F_CAPPED).as_deref(), Some("no such thing"));
        whole.extend(attributes);
        assert_eq!(extended_message(&whole, 0).as_deref(), Some("no such thing"));
        assert_eq!(extended_message(&[], NLM_F_CAPPED), None);
    }

    proptest! {
        #[test]
        fn no_answer_is_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..128), flags in any::<u16>()) {
            for frame in frames(&bytes) {
                let _ = decode(&bytes[frame]);
            }
            let _ = extended_message(&bytes, flags);
        }

        #[test]
        fn a_length_that_cannot_be_ends_the_datagram(bytes in prop::collection::vec(0..24u8, 0..128)) {
            for frame in frames(&bytes) {
                prop_assert!(frame.len() >= HEADER && frame.end <= bytes.len());
            }
        }
    }
}
