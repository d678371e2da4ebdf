//! Packets of one flow that came together into aggregates, as the kernel's receive offload merges them (net/ipv4/af_inet.c,
//! net/ipv4/tcp_offload.c): only what the kernel could cut again into the same packets.

use flannel_common::packet::{
    checksum,
    headers::{IPV4_LEN, Ipv4, PROTOCOL_TCP, PROTOCOL_UDP, TCP_ACK, UDP_LEN},
};

use super::{
    batch::Span,
    packet::{checksum_at, is_right, pseudo_header, read, write},
    vnet::{Kind, Offload},
};

/// The longest headers of a packet that is merged: TCP with all options.
const HEADERS: usize = IPV4_LEN + 60;
/// Packets of other flows that may come between two of one flow.
const OPEN: usize = 8;
/// So many pieces an aggregate has at most: what the kernel takes of UDP, and enough of TCP.
const MOST_PIECES: usize = 64;
/// Don't fragment, in the field of flags and fragment offset.
const DF: u16 = 0x4000;
const PSH: u8 = 0x08;
const FLAGS: usize = 13;
/// Where TCP has its checksum: what is before must be equal, but for the sequence number and the flag PSH.
const TCP_CHECKSUM: usize = 16;

/// One write to the device: a packet as it came, or several in one.
#[derive(Debug, Default)]
pub(super) struct Item {
    /// The packet as it came, or the first.
    first: Span,
    /// Payloads of those that were merged, the first one's included; empty with one packet.
    payloads: Vec<Span>,
    /// What an aggregate that begins with it is like; `None` where it can begin none.
    shape: Option<Shape>,
    /// Nothing can be appended any more.
    closed: bool,
    /// Packets in it.
    pub(super) count: usize,
    /// Bytes of these packets.
    pub(super) bytes: usize,
}

/// What packets of an aggregate have in common, and how far it has come.
#[derive(Clone, Copy, Debug)]
struct Shape {
    ip: Ipv4,
    kind: Kind,
    /// Length of the headers.
    headers: usize,
    /// Payload of each piece but the last.
    size: usize,
    /// Payload so far.
    payload: usize,
    /// Sequence number of the next segment.
    next: u32,
    /// The last segment has PSH, which ends an aggregate.
    push: bool,
}

/// What is to be written, merged as it comes in.
#[derive(Debug)]
pub(super) struct Merger {
    items: Vec<Item>,
    used: usize,
    /// The device takes aggregates of UDP.
    udp: bool,
    /// It takes aggregates at all.
    tcp: bool,
}

impl Merger {
    /// For a device that takes aggregates of these.
    pub(super) fn new(tcp: bool, udp: bool) -> Self {
        Self { items: Vec::new(), used: 0, udp, tcp }
    }

    /// What is to be written, in order.
    pub(super) fn items(&self) -> &[Item] {
        self.items.get(..self.used).unwrap_or_default()
    }

    /// Begins anew.
    pub(super) fn clear(&mut self) {
        self.used = 0;
    }

    /// Takes the packet `memory[packet]` with the header `ip`, which is as long as that says.
    pub(super) fn take(&mut self, memory: &[u8], packet: Span, ip: &Ipv4) {
        let shape = self.mergeable(memory, packet, ip);
        if let Some(shape) = &shape {
            let from = self.used.saturating_sub(OPEN);
            // The last of its flow, whatever that is: no packet overtakes another of its flow.
            let last = self.items[from..self.used].iter_mut().rfind(|item| item.is_of_flow(memory, packet));
            if let Some(item) = last
                && item.append(memory, packet, shape)
            {
                return;
            }
        }
        if self.used == self.items.len() {
            self.items.push(Item::default());
        }
        let item = &mut self.items[self.used];
        self.used += 1;
        let payloads = std::mem::take(&mut item.payloads);
        *item = Item { first: packet, payloads, shape, closed: false, count: 1, bytes: packet.len };
        item.payloads.clear();
    }

    /// What an aggregate is like that begins with a packet; `None` where none can.
    fn mergeable(&self, memory: &[u8], packet: Span, ip: &Ipv4) -> Option<Shape> {
        let bytes = memory.get(packet.range())?;
        if ip.version_ihl != 0x45 || ip.is_fragment() || packet.len != usize::from(ip.total_len) {
            return None;
        }
        let transport = bytes.get(IPV4_LEN..)?;
        let (kind, headers, next, push) = match ip.protocol {
            PROTOCOL_TCP if self.tcp => {
                let flags = *transport.get(FLAGS)?;
                // All others begin or end something, or say something that is not of each segment.
                if flags & !PSH != TCP_ACK {
                    return None;
                }
                let headers = IPV4_LEN + usize::from(transport[12] >> 4) * 4;
                let sequence = u32::from_be_bytes(*transport[4..].first_chunk()?);
                (Kind::Tcp, headers, sequence, flags & PSH != 0)
            }
            // Without a checksum nobody can tell whether the payload is right.
            PROTOCOL_UDP if self.udp && read(transport, 6)? != 0 => {
                let len = usize::from(read(transport, 4)?);
                if len != transport.len() {
                    return None;
                }
                (Kind::Udp, IPV4_LEN + UDP_LEN, 0, false)
            }
            _ => return None,
        };
        let size = packet.len.checked_sub(headers).filter(|size| *size > 0)?;
        if headers < IPV4_LEN + UDP_LEN || (kind == Kind::Tcp && headers < IPV4_LEN + 20) {
            return None;
        }
        let next = next.wrapping_add(size as u32);
        Some(Shape { ip: *ip, kind, headers, size, payload: size, next, push })
    }
}

impl Item {
    /// Whether a packet is of the flow of this one: of the same addresses, protocol and ports.
    fn is_of_flow(&self, memory: &[u8], packet: Span) -> bool {
        let flow = |span: Span| {
            let bytes = memory.get(span.range())?;
            let addresses_and_ports: &[u8; 12] = bytes.get(12..)?.first_chunk()?;
            Some((bytes.get(9)?, addresses_and_ports))
        };
        flow(self.first) == flow(packet)
    }

    /// Appends a packet of the same flow, if the kernel could cut it off again as it is.
    fn append(&mut self, memory: &[u8], packet: Span, new: &Shape) -> bool {
        let Some(shape) = self.shape.as_mut().filter(|_| !self.closed) else { return false };
        let follows = new.ip.id == shape.ip.id.wrapping_add(self.count as u16);
        let fits = new.ip.tos == shape.ip.tos
            && new.ip.ttl == shape.ip.ttl
            && new.ip.fragment == shape.ip.fragment
            // Where nothing is fragmented, the identification says nothing (RFC 6864).
            && (follows || new.ip.fragment == DF)
            && new.headers == shape.headers
            && new.size <= shape.size
            && self.count < MOST_PIECES
            && shape.headers + shape.payload + new.size <= usize::from(u16::MAX)
            && match shape.kind {
                Kind::Udp => true,
                Kind::Tcp => {
                    !shape.push
                        && new.next.wrapping_sub(new.size as u32) == shape.next
                        && is_same_header(memory, self.first, packet, shape.headers)
                }
            };
        let is_first = self.payloads.is_empty();
        if !fits
            || !is_intact(memory, packet, &new.ip)
            || (is_first && !is_intact(memory, self.first, &shape.ip))
        {
            // Whatever comes behind this packet comes behind it.
            self.closed = true;
            return false;
        }
        if is_first {
            self.payloads.push(Span { start: self.first.start + shape.headers, len: shape.payload });
        }
        self.payloads.push(Span { start: packet.start + new.headers, len: new.size });
        // Only the last piece may be a shorter one.
        self.closed = new.size < shape.size;
        shape.payload += new.size;
        shape.next = new.next;
        shape.push = new.push;
        self.count += 1;
        self.bytes += packet.len;
        true
    }

    /// What stands in front at the device, the headers, and the payloads behind them. With one packet, the packet is
    /// the only payload.
    pub(super) fn parts(&self, memory: &[u8]) -> (Offload, Head, &[Span]) {
        let single = (Offload::default(), Head::default(), std::slice::from_ref(&self.first));
        let Some(shape) = self.shape.as_ref().filter(|_| !self.payloads.is_empty()) else { return single };
        let Some(bytes) = memory.get(self.first.start..self.first.start + shape.headers) else {
            return single;
        };
        let mut head = Head { bytes: [0; HEADERS], len: shape.headers };
        let Some(written) = head.bytes.get_mut(..shape.headers) else { return single };
        written.copy_from_slice(bytes);
        let mut ip = Ipv4 { total_len: (shape.headers + shape.payload) as u16, ..shape.ip };
        ip.checksum = checksum::of(&ip);
        written[..IPV4_LEN].copy_from_slice(&ip.bytes());
        let len = shape.headers - IPV4_LEN + shape.payload;
        match shape.kind {
            Kind::Tcp if shape.push => written[IPV4_LEN + FLAGS] |= PSH,
            Kind::Tcp => {}
            Kind::Udp => write(written, IPV4_LEN + 4, len as u16),
        }
        let Some(at) = checksum_at(ip.protocol) else { return single };
        write(written, IPV4_LEN + at, checksum::fold(pseudo_header(&ip, len)));
        let offload = Offload {
            checksum: Some((IPV4_LEN, at)),
            aggregate: Some((shape.kind, shape.size)),
            headers: shape.headers,
        };
        (offload, head, &self.payloads)
    }
}

impl Item {
    /// The packets in it as they came.
    pub(super) fn packets(&self) -> impl Iterator<Item = Span> {
        let headers = self.shape.map_or(0, |shape| shape.headers);
        let merged = self
            .payloads
            .iter()
            .map(move |payload| Span { start: payload.start - headers, len: payload.len + headers });
        merged.chain(self.payloads.is_empty().then_some(self.first))
    }
}

/// The headers of an aggregate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    bytes: [u8; HEADERS],
    len: usize,
}

impl Default for Head {
    fn default() -> Self {
        Self { bytes: [0; HEADERS], len: 0 }
    }
}

impl Head {
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// Whether two segments differ in nothing but sequence number, PSH and checksum.
fn is_same_header(memory: &[u8], a: Span, b: Span, headers: usize) -> bool {
    let transport = |packet: Span| memory.get(packet.start + IPV4_LEN..packet.start + headers);
    let (Some(a), Some(b)) = (transport(a), transport(b)) else { return false };
    a[8..FLAGS] == b[8..FLAGS]
        && a[FLAGS] | PSH == b[FLAGS] | PSH
        && a[FLAGS + 1..TCP_CHECKSUM] == b[FLAGS + 1..TCP_CHECKSUM]
        && a[TCP_CHECKSUM + 2..] == b[TCP_CHECKSUM + 2..]
}

/// Whether both checksums of a packet without IP options are right: merged, nobody could tell any more.
fn is_intact(memory: &[u8], packet: Span, ip: &Ipv4) -> bool {
    let Some(segment) = memory.get(packet.start + IPV4_LEN..packet.start + packet.len) else { return false };
    checksum::sum(ip) == 0xffff && is_right(ip, segment)
}
