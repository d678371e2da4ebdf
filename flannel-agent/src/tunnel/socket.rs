//! The UDP socket between nodes: many datagrams a system call.
#![expect(
    unsafe_code,
    reason = "sendmmsg(2) and recvmmsg(2) are called with arrays of headers that point to others"
)]

use std::{
    io::{self, IoSlice},
    mem::{MaybeUninit, zeroed},
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{setsockopt, sockopt},
};

use super::batch::{self, Datagram};

/// Room for packets that wait while the threads are busy, bytes.
const BUFFER: usize = 4 << 20;
/// The longest message: what GRO makes of many datagrams, or one datagram.
pub(super) const MESSAGE: usize = 1 << 16;
/// Messages that are received together.
pub(super) const MESSAGES: usize = 16;
/// Room for a control message of a number; aligned as `struct cmsghdr` is.
const CONTROL: usize = 4;

/// A socket at `address` and `port`, which receives aggregates where the kernel can.
///
/// # Errors
/// The address is not ours, or somebody else listens at the port.
pub fn bind(address: Ipv4Addr, port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddrV4::new(address, port))?;
    // Both are only faster: older kernels have no UDP_GRO (Linux 5.0), and outside of the first user namespace the limits
    // of net.core hold.
    let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
    if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        let _ = setsockopt(&socket, sockopt::RcvBuf, &BUFFER);
    }
    if setsockopt(&socket, sockopt::SndBufForce, &BUFFER).is_err() {
        let _ = setsockopt(&socket, sockopt::SndBuf, &BUFFER);
    }
    Ok(socket)
}

/// Sends `datagrams` of `memory`, in order: those of equal length to one node by one message. `failed` gets each that was
/// not sent. Waits while the socket has no room.
pub(super) fn send(
    socket: &UdpSocket,
    memory: &[u8],
    datagrams: &[Datagram],
    mut failed: impl FnMut(&Datagram, Errno),
) {
    let mut runs = Vec::new();
    let mut rest = datagrams;
    while !rest.is_empty() {
        let (run, behind) = rest.split_at(batch::run(rest).max(1));
        runs.push(run);
        rest = behind;
    }
    let mut sent = 0;
    while sent < runs.len() {
        match send_messages(socket, memory, &runs[sent..]) {
            Ok(0) => break,
            Ok(count) => sent += count,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN | Errno::ENOBUFS) if wait(socket) => {}
            // What the way does not carry in one message it may carry in many: a smaller path MTU, IPsec, a card without
            // checksums.
            Err(Errno::EINVAL | Errno::EIO | Errno::EMSGSIZE | Errno::EOPNOTSUPP) if runs[sent].len() > 1 => {
                for datagram in runs[sent].chunks(1) {
                    loop {
                        match send_messages(socket, memory, &[datagram]) {
                            Ok(_) => break,
                            Err(Errno::EINTR) => {}
                            Err(Errno::EAGAIN | Errno::ENOBUFS) if wait(socket) => {}
                            Err(errno) => {
                                failed(&datagram[0], errno);
                                break;
                            }
                        }
                    }
                }
                sent += 1;
            }
            Err(errno) => {
                runs[sent].iter().for_each(|datagram| failed(datagram, errno));
                sent += 1;
            }
        }
    }
}

/// Waits for room in the socket, not for long; whether there is some.
fn wait(socket: &UdpSocket) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)], PollTimeout::from(100u8))
        .is_ok_and(|ready| ready > 0)
}

/// Sends each run by one message, up to the first that fails: how many were sent.
fn send_messages(socket: &UdpSocket, memory: &[u8], runs: &[&[Datagram]]) -> Result<usize, Errno> {
    let pieces: Vec<Vec<IoSlice<'_>>> = runs.iter().map(|run| batch::pieces(memory, run)).collect();
    let mut names: Vec<libc::sockaddr_in> =
        runs.iter().filter_map(|run| Some(name(run.first()?.to))).collect();
    let mut controls = vec![[0u64; CONTROL]; runs.len()];
    let mut messages = Vec::with_capacity(runs.len());
    for (((run, pieces), name), control) in runs.iter().zip(&pieces).zip(&mut names).zip(&mut controls) {
        // SAFETY: all zero is a header without anything.
        let mut message: libc::mmsghdr = unsafe { zeroed() };
        let header = &mut message.msg_hdr;
        header.msg_name = std::ptr::from_mut(name).cast();
        header.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        // An IoSlice is an iovec (std::io::IoSlice), which sendmmsg only reads.
        header.msg_iov = pieces.as_ptr().cast::<libc::iovec>().cast_mut();
        header.msg_iovlen = pieces.len() as _;
        if run.len() > 1 {
            header.msg_control = control.as_mut_ptr().cast();
            // SAFETY: the control is longer than one message of two bytes, and aligned; the header says so.
            unsafe {
                header.msg_controllen = libc::CMSG_SPACE(size_of::<u16>() as u32) as _;
                let first = libc::CMSG_FIRSTHDR(header);
                (*first).cmsg_level = libc::SOL_UDP;
                (*first).cmsg_type = libc::UDP_SEGMENT;
                (*first).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as _;
                libc::CMSG_DATA(first).cast::<u16>().write_unaligned(run[0].len() as u16);
            }
        }
        messages.push(message);
    }
    // SAFETY: each header points to names, pieces and controls that outlive the call.
    let result = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            messages.len() as u32,
            libc::MSG_NOSIGNAL as _,
        )
    };
    Errno::result(result).map(|sent| sent as usize)
}

fn name(to: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(to.ip().octets()) },
        sin_zero: [0; 8],
    }
}

/// What was received by one message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    /// Bytes of it, at the message's place in the memory.
    pub(super) len: usize,
    /// Who sent it.
    pub(super) from: Ipv4Addr,
    /// Length of each datagram in it but the last.
    pub(super) size: usize,
}

/// Receives what is there, [`MESSAGES`] at most, each at its multiple of [`MESSAGE`] in `memory`. It does not wait.
///
/// # Errors
/// `EAGAIN` where nothing is there.
pub(super) fn receive(
    socket: &UdpSocket,
    memory: &mut [u8],
    mut each: impl FnMut(&mut [u8], usize, Message),
) -> Result<usize, Errno> {
    let mut pieces = [MaybeUninit::<libc::iovec>::uninit(); MESSAGES];
    // SAFETY: all zero is an address of no family.
    let mut names: [libc::sockaddr_in; MESSAGES] = unsafe { zeroed() };
    let mut controls = [[0u64; CONTROL]; MESSAGES];
    // SAFETY: all zero is a header without anything.
    let mut messages: [libc::mmsghdr; MESSAGES] = unsafe { zeroed() };
    let count = (memory.len() / MESSAGE).min(MESSAGES);
    for (n, buffer) in memory.chunks_exact_mut(MESSAGE).take(count).enumerate() {
        let piece = pieces[n].write(libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: MESSAGE });
        let header = &mut messages[n].msg_hdr;
        header.msg_name = (&raw mut names[n]).cast();
        header.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        header.msg_iov = piece;
        header.msg_iovlen = 1;
        header.msg_control = controls[n].as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&controls[n]) as _;
    }
    // SAFETY: the first `count` headers point to pieces of memory that are as long as is said, and to names and
    // controls; all outlive the call.
    let result = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            count as u32,
            // Of another type with musl.
            libc::MSG_DONTWAIT as _,
            std::ptr::null_mut(),
        )
    };
    let received = Errno::result(result)? as usize;
    for (n, message) in messages.iter().enumerate().take(received) {
        let len = message.msg_len as usize;
        // SAFETY: the header is one that the kernel has filled in, with its controls still there.
        let size = unsafe { segment_size(&message.msg_hdr) }.filter(|size| *size > 0).unwrap_or(len);
        let from = Ipv4Addr::from(names[n].sin_addr.s_addr.to_ne_bytes());
        each(memory, n * MESSAGE, Message { len, from, size });
    }
    Ok(received)
}

/// What GRO says of a message.
///
/// # Safety
/// `header` was filled in by the kernel, and its controls live.
unsafe fn segment_size(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: as the caller promises; each message of controls is as long as it says, and this kind holds an int.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while !control.is_null() {
            if (*control).cmsg_level == libc::SOL_UDP && (*control).cmsg_type == libc::UDP_GRO {
                return usize::try_from(libc::CMSG_DATA(control).cast::<libc::c_int>().read_unaligned()).ok();
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    None
}
