//! UDP datagrams, one by one and in GSO batches, each one's content checked.

use std::{
    io::IoSlice,
    net::UdpSocket,
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::sys::socket::{
    ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt::UdpGroSegment,
};

use super::{Endpoint, content::Content, is_quiet, udp_pair};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Bytes of IPv4 and UDP headers, without options.
pub const HEADERS: usize = 28;

/// Bytes of IPv6 and UDP headers, without extensions.
pub const HEADERS_V6: usize = 48;

/// Exchanges before a batch.
const OPENING: u64 = 3;

/// Most segments the kernel takes in one GSO send (UDP_MAX_SEGMENTS of older kernels).
const MOST_SEGMENTS: usize = 64;

/// Sends `count` datagrams of `size` payload bytes from `from` to `to` and back again, one after the
/// other. Fails unless each arrives unchanged at both ends.
pub fn echo(from: &Endpoint, to: &Endpoint, size: usize, count: u64) -> Result<()> {
    let (client, server) = udp_pair(from, to)?;
    let work = || -> Result<()> {
        for number in 0..count {
            let sent = datagram(number, size);
            client.send(&sent).with_context(|| format!("send datagram {number}"))?;
            let arrived = receive(&server).with_context(|| format!("datagram {number} did not arrive"))?;
            ensure!(arrived == sent, "datagram {number} arrived changed: {} bytes", arrived.len());
            server.send(&arrived).with_context(|| format!("answer datagram {number}"))?;
            let returned =
                receive(&client).with_context(|| format!("answer to datagram {number} did not arrive"))?;
            ensure!(returned == sent, "datagram {number} came back changed: {} bytes", returned.len());
        }
        Ok(())
    };
    work().with_context(|| format!("UDP, {size} bytes, from {} to {}", from.name(), to.name()))
}

/// How the receiver of [`gso`] takes datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiver {
    /// One by one.
    Plain,
    /// With UDP_GRO: several of one size at once, as QUIC servers do.
    Gro,
}

/// Sends `batches` batches, each one call that the kernel cuts into `segments` datagrams of `size` bytes,
/// the last of them shorter. Fails unless each datagram arrives once, unchanged and uncut. Like most that send so
/// much, the two talk a little before: after that the flow may skip the host's stack.
pub fn gso(
    from: &Endpoint,
    to: &Endpoint,
    size: usize,
    segments: usize,
    batches: u64,
    by: Receiver,
) -> Result<()> {
    ensure!((2..=MOST_SEGMENTS).contains(&segments) && size > 1, "{segments} segments of {size} bytes");
    let (client, server) = udp_pair(from, to)?;
    if by == Receiver::Gro {
        setsockopt(&server, UdpGroSegment, &true).context("UDP_GRO")?;
    }
    let last = size / 2;
    let bytes = size * (segments - 1) + last;
    let work = || -> Result<()> {
        for number in 0..OPENING {
            for (speaker, listener) in [(&client, &server), (&server, &client)] {
                let said = datagram(number, 32);
                speaker.send(&said).context("open the flow")?;
                let heard = receive(listener).context("open the flow")?;
                ensure!(heard == said, "the opening arrived changed");
            }
        }
        for batch in 0..batches {
            let mut sent = vec![0; bytes];
            Content::new(batch).fill(&mut sent);
            let receiver = thread::scope(|scope| {
                let receiver = scope.spawn(|| collect(&server, segments, size, by));
                send_batch(&client, &sent, size).with_context(|| format!("send batch {batch}"))?;
                receiver.join().map_err(|_| anyhow!("receiver panicked"))?
            });
            let mut arrived = receiver.with_context(|| format!("batch {batch}"))?;
            // Datagrams may overtake one another; their content says which is which.
            for (number, expected) in sent.chunks(size).enumerate() {
                let place = arrived.iter().position(|datagram| datagram == expected);
                let Some(place) = place else {
                    bail!("batch {batch}: datagram {number} is missing or changed")
                };
                arrived.swap_remove(place);
            }
            ensure!(arrived.is_empty(), "batch {batch}: {} datagrams too many", arrived.len());
        }
        Ok(())
    };
    work().with_context(|| {
        format!(
            "UDP GSO, {segments} segments of {size} bytes, {by:?} receiver, from {} to {}",
            from.name(),
            to.name()
        )
    })
}

fn send_batch(socket: &UdpSocket, bytes: &[u8], segment: usize) -> Result<()> {
    let segment = u16::try_from(segment).context("segment size")?;
    let control = [ControlMessage::UdpGsoSegments(&segment)];
    let parts = [IoSlice::new(bytes)];
    let sent = sendmsg::<SockaddrStorage>(socket.as_raw_fd(), &parts, &control, MsgFlags::empty(), None)?;
    ensure!(sent == bytes.len(), "{sent} of {} bytes sent", bytes.len());
    Ok(())
}

/// Receives until `count` datagrams are there. With GRO one read brings several, all of `size` but the last.
fn collect(socket: &UdpSocket, count: usize, size: usize, by: Receiver) -> Result<Vec<Vec<u8>>> {
    let mut datagrams: Vec<Vec<u8>> = Vec::new();
    while datagrams.len() < count {
        let read =
            receive(socket).with_context(|| format!("{} of {count} datagrams arrived", datagrams.len()))?;
        match by {
            Receiver::Plain => datagrams.push(read),
            Receiver::Gro => datagrams.extend(read.chunks(size).map(<[u8]>::to_vec)),
        }
    }
    Ok(datagrams)
}

fn datagram(number: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    Content::new(number).fill(&mut bytes);
    bytes
}

fn receive(socket: &UdpSocket) -> Result<Vec<u8>> {
    let start = Instant::now();
    let mut buffer = vec![0; 65_536];
    while start.elapsed() < PATIENCE {
        match socket.recv(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(error) if is_quiet(&error) => {}
            Err(error) => return Err(error).context("receive"),
        }
    }
    bail!("nothing for {PATIENCE:?}")
}
