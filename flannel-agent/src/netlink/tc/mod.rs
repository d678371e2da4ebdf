//! Traffic control: clsact queueing disciplines, and the filters in them.
//!
//! Blocking, unlike [`Netlink`](super::Netlink): filters are put between calls of bpf(2), which block too, and
//! where there is no runtime. The kernel answers before it returns from the request.

use std::{
    os::fd::{AsRawFd as _, BorrowedFd},
    time::Duration,
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_ECHO, NLM_F_EXCL, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    sys::{
        socket::{setsockopt, sockopt},
        time::TimeVal,
    },
};

mod object;

pub(crate) use object::PRIORITY;
pub use object::{TcDiscipline, TcFilter, TcPlace, TcProgram, TcQdisc, TcSide};

use object::{CLSACT, INGRESS};

use super::{
    NetlinkError, Request,
    connection::{decode, encode, frames, refusal},
    error::{KernelError, errno},
    raw::{HEADER, attributes, number, text, word},
};

/// Room for one datagram, bytes. Dumps come in pieces of at most 32 KiB.
const DATAGRAM: usize = 64 << 10;
/// How long the kernel may take, which is as long as others hold the RTNL lock.
const PATIENCE: Duration = Duration::from_secs(30);
/// Number of a message that tells of a filter (include/uapi/linux/rtnetlink.h, RTM_NEWTFILTER).
const NEW_FILTER: u16 = 44;
/// Of its end (RTM_DELTFILTER), and of disciplines (RTM_NEWQDISC, RTM_DELQDISC).
const DELETED_FILTER: u16 = 45;
const NEW_QDISC: u16 = 36;
const DELETED_QDISC: u16 = 37;
/// Every kind of message of traffic control: disciplines, classes, filters, actions, chains.
const KINDS: [std::ops::RangeInclusive<u16>; 2] = [36..=50, 100..=102];
/// Length of `struct tcmsg`, bytes.
const TCMSG: usize = 20;
/// Protocol of a filter that takes every packet (include/uapi/linux/if_ether.h, ETH_P_ALL).
const EVERY_PROTOCOL: u16 = 3;

/// A connection for traffic control, in the network namespace of the thread that opened it.
pub struct TrafficControl {
    socket: Socket,
    sequence: u32,
}

impl TrafficControl {
    /// Opens one.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self, NetlinkError> {
        let refused = |error: std::io::Error| NetlinkError::Open(errno(&error));
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(refused)?;
        let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience).map_err(NetlinkError::Open)?;
        socket.set_cap_ack(true).map_err(refused)?;
        socket.set_ext_ack(true).map_err(refused)?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(refused)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The interfaces that have a discipline for filters, and which.
    ///
    /// # Errors
    /// When the kernel refuses, or its answer cannot be read.
    pub fn qdiscs(&mut self) -> Result<Vec<(u32, TcQdisc)>, NetlinkError> {
        let query = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let messages = self.talk(query, NLM_F_DUMP)?;
        Ok(messages.iter().filter_map(|message| qdisc(read(message)?)).collect())
    }

    /// Every discipline of every interface.
    ///
    /// # Errors
    /// When the kernel refuses, or its answer cannot be read.
    pub fn disciplines(&mut self) -> Result<Vec<TcDiscipline>, NetlinkError> {
        let query = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let messages = self.talk(query, NLM_F_DUMP)?;
        Ok(messages.iter().filter_map(|message| discipline(message)).collect())
    }

    /// The discipline for filters on an interface.
    ///
    /// # Errors
    /// When the kernel refuses, or its answer cannot be read.
    pub fn qdisc(&mut self, ifindex: u32) -> Result<Option<TcQdisc>, NetlinkError> {
        // Kernels before 6.7 answer by a notification, which the one who asks gets only with ECHO.
        let query = RouteNetlinkMessage::GetQueueDiscipline(of_clsact(ifindex, TcHandle::UNSPEC));
        match self.talk(query, NLM_F_ACK | NLM_F_ECHO) {
            Ok(messages) => {
                let found = messages.iter().find_map(|message| qdisc(read(message)?));
                Ok(found.map(|(_, kind)| kind))
            }
            // EINVAL where there has been one, ENODEV where the interface is gone.
            Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::EINVAL | Errno::ENODEV)) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Gives an interface a clsact discipline.
    ///
    /// # Errors
    /// `EEXIST` where it has one, or one for ingress alone; other refusals of the kernel.
    pub fn add_clsact(&mut self, ifindex: u32) -> Result<(), NetlinkError> {
        let mut message = of_clsact(ifindex, TcHandle { minor: 0, ..TcHandle::CLSACT });
        message.attributes.push(TcAttribute::Kind(CLSACT.to_owned()));
        let message = RouteNetlinkMessage::NewQueueDiscipline(message);
        self.talk(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Takes the clsact discipline from an interface, with all filters in it.
    ///
    /// # Errors
    /// When the kernel refuses. That there is none is no error.
    pub fn delete_clsact(&mut self, ifindex: u32) -> Result<(), NetlinkError> {
        let message = of_clsact(ifindex, TcHandle { minor: 0, ..TcHandle::CLSACT });
        gone(self.talk(RouteNetlinkMessage::DelQueueDiscipline(message), NLM_F_ACK))
    }

    /// Every filter at one side of an interface, of whatever kind, in the order in which packets meet them.
    ///
    /// # Errors
    /// When the kernel refuses, or its answer cannot be read.
    pub fn filters(&mut self, ifindex: u32, side: TcSide) -> Result<Vec<TcFilter>, NetlinkError> {
        let everything = TcPlace { ifindex, side, priority: 0, handle: 0 };
        let query = RouteNetlinkMessage::GetTrafficFilter(at(everything, 0));
        let messages = self.talk(query, NLM_F_DUMP)?;
        let known = messages.iter().filter(|message| number(message) == Some(NEW_FILTER));
        // One that cannot be read is still somebody's.
        let unknown = TcFilter { priority: 0, handle: 0, program: None };
        Ok(known.map(|message| read(message).and_then(filter).unwrap_or_else(|| unknown.clone())).collect())
    }

    /// The filter at `place`.
    ///
    /// # Errors
    /// When the kernel refuses, or its answer cannot be read.
    pub fn filter(&mut self, place: TcPlace) -> Result<Option<TcFilter>, NetlinkError> {
        let query = RouteNetlinkMessage::GetTrafficFilter(at(place, EVERY_PROTOCOL));
        match self.talk(query, NLM_F_ACK) {
            Ok(messages) => Ok(messages.iter().find_map(|message| filter(read(message)?))),
            // EINVAL where there are no filters at all ("Cannot find specified filter chain").
            Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::EINVAL)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts a filter that does what `program` says to `place`. One that is there is replaced in one step: no packet
    /// meets neither or both.
    ///
    /// # Errors
    /// When the kernel refuses: there is no discipline, or a filter of another kind has that priority.
    pub fn put_program(
        &mut self,
        place: TcPlace,
        name: &str,
        program: BorrowedFd<'_>,
    ) -> Result<(), NetlinkError> {
        let mut message = at(place, EVERY_PROTOCOL);
        let descriptor = program.as_raw_fd().cast_unsigned();
        message.attributes = vec![
            TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
            TcAttribute::Options(vec![
                TcOption::Bpf(TcFilterBpfOption::ProgFd(descriptor)),
                TcOption::Bpf(TcFilterBpfOption::ProgName(name.to_owned())),
                TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
            ]),
        ];
        self.talk(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_ACK | NLM_F_CREATE).map(drop)
    }

    /// Removes the filter at `place`.
    ///
    /// # Errors
    /// When the kernel refuses. That there is none is no error.
    pub fn delete_filter(&mut self, place: TcPlace) -> Result<(), NetlinkError> {
        gone(self.talk(RouteNetlinkMessage::DelTrafficFilter(at(place, EVERY_PROTOCOL)), NLM_F_ACK))
    }

    /// Makes one request, and returns the messages that answer it.
    fn talk(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<Vec<Vec<u8>>, NetlinkError> {
        let failed = |error: std::io::Error| match errno(&error) {
            Errno::EAGAIN => NetlinkError::Silent(PATIENCE),
            errno => NetlinkError::Socket(errno),
        };
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        encode(&mut bytes, &Request { message, flags }, 0, self.sequence);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).map_err(failed)?;
        let mut answers = Vec::new();
        loop {
            let mut datagram = Vec::with_capacity(DATAGRAM);
            self.socket.recv(&mut datagram, 0).map_err(failed)?;
            for frame in frames(&datagram) {
                let bytes = &datagram[frame];
                // A filter of a kind this crate cannot read is told of all the same.
                let Ok(message) = decode(bytes) else {
                    answers.push(bytes.to_vec());
                    continue;
                };
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::Error(error) => {
                        return match refusal(&error, message.header.flags) {
                            Some(refusal) => Err(refusal.into()),
                            None => Ok(answers),
                        };
                    }
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        let errno = Errno::from_raw(-done.code);
                        return Err(KernelError { errno, message: None }.into());
                    }
                    NetlinkPayload::Done(_) => return Ok(answers),
                    _ => answers.push(bytes.to_vec()),
                }
            }
        }
    }
}

/// What deletes a thing that is not there has succeeded.
fn gone(result: Result<Vec<Vec<u8>>, NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        // EINVAL where the discipline that held it is gone, too; ENODEV with its interface.
        Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::EINVAL | Errno::ENODEV)) => Ok(()),
        result => result.map(drop),
    }
}

fn of_clsact(ifindex: u32, handle: TcHandle) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = handle;
    message
}

fn at(place: TcPlace, protocol: u16) -> TcMessage {
    let mut message = TcMessage::with_index(place.ifindex.cast_signed());
    message.header.parent = place.side.parent();
    message.header.handle = place.handle.into();
    message.header.info = u32::from(place.priority) << 16 | u32::from(protocol.to_be());
    message
}

/// Whether a notice of traffic control tells of a discipline or a filter that is not one of ours, or for ours; `None`
/// of one that is not of traffic control.
pub(super) fn notice(message: &[u8]) -> Option<bool> {
    let kind = number(message)?;
    if !KINDS.iter().any(|kinds| kinds.contains(&kind)) {
        return None;
    }
    Some(match kind {
        NEW_FILTER | DELETED_FILTER => {
            word(message, TCMSG - 4).is_none_or(|info| info >> 16 != u32::from(PRIORITY))
        }
        // A place for filters does nothing to packets; that all in it are gone is news.
        NEW_QDISC => discipline(message).is_none_or(|discipline| discipline.filters().is_none()),
        DELETED_QDISC => true,
        _ => false,
    })
}

fn discipline(message: &[u8]) -> Option<TcDiscipline> {
    const KIND: u16 = 1;
    if !matches!(number(message)?, NEW_QDISC | DELETED_QDISC) {
        return None;
    }
    let mut attributes = attributes(message.get(HEADER + TCMSG..)?);
    let kind = attributes.find_map(|(kind, value)| (kind == KIND).then(|| text(value)))?;
    Some(TcDiscipline { ifindex: word(message, 4)?, kind })
}

fn read(message: &[u8]) -> Option<RouteNetlinkMessage> {
    let message: NetlinkMessage<RouteNetlinkMessage> = decode(message).ok()?;
    match message.payload {
        NetlinkPayload::InnerMessage(inner) => Some(inner),
        _ => None,
    }
}

fn qdisc(message: RouteNetlinkMessage) -> Option<(u32, TcQdisc)> {
    let RouteNetlinkMessage::NewQueueDiscipline(message) = message else { return None };
    let kind = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) if kind == CLSACT => Some(TcQdisc::Clsact),
        TcAttribute::Kind(kind) if kind == INGRESS => Some(TcQdisc::Ingress),
        _ => None,
    })?;
    Some((message.header.index.cast_unsigned(), kind))
}

fn filter(message: RouteNetlinkMessage) -> Option<TcFilter> {
    let RouteNetlinkMessage::NewTrafficFilter(message) = message else { return None };
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options.as_slice()),
        _ => None,
    });
    let (mut name, mut id) = (None, None);
    for option in options.unwrap_or_default() {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgName(found)) => name = Some(found.clone()),
            TcOption::Bpf(TcFilterBpfOption::ProgId(found)) => id = Some(*found),
            _ => {}
        }
    }
    Some(TcFilter {
        priority: (message.header.info >> 16) as u16,
        handle: message.header.handle.into(),
        program: id.map(|id| TcProgram { name: name.unwrap_or_default(), id }),
    })
}
