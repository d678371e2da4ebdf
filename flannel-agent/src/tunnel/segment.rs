//! An aggregate from the device into the packets it stands for, as the kernel's segmentation would cut it
//! (net/ipv4/tcp_offload.c, net/ipv4/udp_offload.c).

use flannel_common::{
    packet::{
        checksum::{self, sum_of},
        headers::{Ipv4, PROTOCOL_TCP, PROTOCOL_UDP, UDP_LEN},
    },
    reason::Reason,
};

use super::{
    batch::Span,
    packet::{self, checksum_at, finished, header_len, pseudo_header, read, write},
    vnet::{Kind, Offload},
};

/// The longest headers of a piece: IPv4 and TCP with all options they can have.
const HEADERS: usize = 60 + 60;
/// Smallest header of TCP, bytes.
const TCP_LEN: usize = 20;
/// Where IPv4 has its length, identification and checksum.
const TOTAL_LEN: usize = 2;
const ID: usize = 4;
const IP_CHECKSUM: usize = 10;
/// Where TCP has its sequence number, data offset and flags.
const SEQUENCE: usize = 4;
const DATA_OFFSET: usize = 12;
const FLAGS: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Completes the checksum of a single packet that the kernel has left to whoever sends it.
///
/// # Errors
/// It stands outside of the packet.
pub(super) fn complete(packet: &mut [u8], ip: &Ipv4, offload: &Offload) -> Result<(), Reason> {
    let Some((start, offset)) = offload.checksum else { return Ok(()) };
    let segment = packet.get_mut(start..usize::from(ip.total_len)).ok_or(Reason::Truncated)?;
    if segment.len() < offset + 2 {
        return Err(Reason::Truncated);
    }
    // The field holds the sum of the pseudo header, so the sum over all includes it.
    let checksum = finished(ip.protocol, sum_of(segment));
    write(segment, offset, checksum);
    Ok(())
}

/// Cuts the aggregate `memory[whole]`, whose IP header is `ip`, into pieces. The headers of each are written at `room`, one
/// after the other; `each` gets the headers' span and that of the payload, which stays where it is. How many bytes of room
/// were used.
///
/// # Errors
/// It is not what `kind` says, or does not fit.
pub(super) fn cut(
    memory: &mut [u8],
    whole: Span,
    ip: &Ipv4,
    (kind, size): (Kind, usize),
    room: usize,
    mut each: impl FnMut(Span, Span),
) -> Result<usize, Reason> {
    let total = usize::from(ip.total_len);
    let packet = memory.get(whole.start..whole.start + total).ok_or(Reason::Truncated)?;
    let transport = header_len(ip);
    let transport_len = match (kind, ip.protocol) {
        (Kind::Tcp, PROTOCOL_TCP) => {
            usize::from(packet.get(transport + DATA_OFFSET).ok_or(Reason::Truncated)? >> 4) * 4
        }
        (Kind::Udp, PROTOCOL_UDP) => UDP_LEN,
        _ => return Err(Reason::TooBig),
    };
    let (headers, smallest) = (
        transport + transport_len,
        match kind {
            Kind::Tcp => TCP_LEN,
            Kind::Udp => UDP_LEN,
        },
    );
    if transport_len < smallest || headers >= total || size == 0 {
        return Err(Reason::Truncated);
    }
    let mut template = [0; HEADERS];
    let template = template.get_mut(..headers).ok_or(Reason::Truncated)?;
    template.copy_from_slice(&packet[..headers]);
    let sequence =
        u32::from_be_bytes(*template[transport + SEQUENCE..].first_chunk().ok_or(Reason::Truncated)?);
    let checksum_at = transport + checksum_at(ip.protocol).ok_or(Reason::TooBig)?;
    // Without one, pieces have none either.
    let has_checksum = kind == Kind::Tcp || read(template, checksum_at) != Some(0);
    let payload = total - headers;
    let count = payload.div_ceil(size);
    if room + count * headers > memory.len() {
        return Err(Reason::TooBig);
    }
    for n in 0..count {
        let offset = n * size;
        let len = size.min(payload - offset);
        let body = Span { start: whole.start + headers + offset, len };
        let head = Span { start: room + n * headers, len: headers };
        let (is_first, is_last) = (n == 0, n + 1 == count);
        write(template, TOTAL_LEN, (headers + len) as u16);
        write(template, ID, ip.id.wrapping_add(n as u16));
        write(template, IP_CHECKSUM, 0);
        let ip_sum = sum_of(&template[..transport]);
        write(template, IP_CHECKSUM, !checksum::fold(ip_sum));
        match kind {
            Kind::Tcp => {
                let number = sequence.wrapping_add(offset as u32);
                template[transport + SEQUENCE..][..4].copy_from_slice(&number.to_be_bytes());
                let mut flags = packet_flags(memory, whole.start + transport + FLAGS);
                if !is_last {
                    flags &= !(FIN | PSH);
                }
                if !is_first {
                    flags &= !CWR;
                }
                template[transport + FLAGS] = flags;
            }
            Kind::Udp => write(template, transport + 4, (UDP_LEN + len) as u16),
        }
        write(template, checksum_at, 0);
        if has_checksum {
            let body = memory.get(body.range()).ok_or(Reason::Truncated)?;
            // Headers have an even length, so the payload's numbers keep their order.
            let whole =
                pseudo_header(ip, transport_len + len) + sum_of(&template[transport..]) + sum_of(body);
            write(template, checksum_at, finished(ip.protocol, whole));
        }
        memory.get_mut(head.range()).ok_or(Reason::Truncated)?.copy_from_slice(template);
        each(head, body);
    }
    Ok(count * headers)
}

fn packet_flags(memory: &[u8], at: usize) -> u8 {
    memory.get(at).copied().unwrap_or(0)
}

/// The header of the packet `memory[whole]`, with its TTL counted down.
///
/// # Errors
/// It is no packet of IPv4, or its TTL ends here.
pub(super) fn enter(memory: &mut [u8], whole: Span) -> Result<Ipv4, Reason> {
    let packet = memory.get_mut(whole.range()).ok_or(Reason::Truncated)?;
    let mut ip = packet::header(packet)?;
    packet::count_down(packet, &mut ip)?;
    Ok(ip)
}
