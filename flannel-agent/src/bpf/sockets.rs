//! The TCP sockets of pods: a program of ours looks for them in a pod's network namespace, which the agent may not enter
//! (`socket_state`, run by BPF_PROG_TEST_RUN).
#![expect(
    unsafe_code,
    reason = "aya runs only programs that it owns, and its object is kept elsewhere; bpf(2) takes pointers"
)]

use std::{
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{Ebpf, programs::ProgramFd};
use flannel_common::{layout::Flow, map::SOCKET_STATE, packet::headers::ETHERNET_LEN};
use nix::{errno::Errno, libc};

use super::{LoadError, TrieFamily, object::descriptor, syscall::bpf};

/// Number of the command (include/uapi/linux/bpf.h, `enum bpf_cmd`).
const TEST_RUN: libc::c_long = 10;
/// Length of `struct __sk_buff` (include/uapi/linux/bpf.h), and the offset of the words in it that are the program's own.
const CONTEXT: usize = 192;
const WORDS: usize = 48;
/// Room for the longest question: `struct bpf_sock_tuple` behind an Ethernet header.
const QUESTION: usize = ETHERNET_LEN + 36;

/// The `test` part of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    program: u32,
    result: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
}

const _: () = assert!(size_of::<Attributes>() == 64);

/// What a pod's socket says of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodEnd {
    /// It is established.
    Open,
    /// One side has ended it, and the other may still send.
    HalfClosed,
    /// Both sides end it, or this one does and has no answer yet.
    Closing,
    /// There is no socket of it, or one of a connection that begins anew or is over.
    Gone,
}

/// Asks the TCP sockets of pods.
pub struct PodSockets {
    program: ProgramFd,
}

impl PodSockets {
    /// By the program of `ebpf`, which is loaded.
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        Ok(Self { program: descriptor(ebpf, SOCKET_STATE)? })
    }

    /// How the connection of `flow` is at the pod whose network namespace has this number in the caller's.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn end<F: TrieFamily>(&self, namespace: i32, flow: &Flow<F>) -> Result<PodEnd, Errno> {
        let question = question(flow);
        let mut context = [0u8; CONTEXT];
        context[WORDS..WORDS + 4].copy_from_slice(&namespace.to_ne_bytes());
        let mut attributes = Attributes {
            program: self.program.as_fd().as_raw_fd().cast_unsigned(),
            data_size_in: question.len() as u32,
            data_in: question.as_ptr() as u64,
            context_size_in: CONTEXT as u32,
            context_in: context.as_ptr() as u64,
            ..Attributes::default()
        };
        // SAFETY: the attributes are the kernel's for this command, and what they point at is as long as they say, is only
        // read and outlives the call.
        unsafe { bpf(TEST_RUN, &mut attributes) }?;
        Ok(PodEnd::of(attributes.result))
    }
}

impl PodEnd {
    /// By the state of the socket (include/net/tcp_states.h).
    const fn of(state: u32) -> Self {
        match state {
            // TCP_ESTABLISHED.
            1 => Self::Open,
            // TCP_FIN_WAIT2, TCP_CLOSE_WAIT.
            5 | 8 => Self::HalfClosed,
            // TCP_FIN_WAIT1, TCP_LAST_ACK, TCP_CLOSING.
            4 | 9 | 11 => Self::Closing,
            _ => Self::Gone,
        }
    }
}

/// The connection as packets come to the pod: `struct bpf_sock_tuple` behind an Ethernet header.
fn question<F: TrieFamily>(flow: &Flow<F>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(QUESTION);
    bytes.resize(ETHERNET_LEN, 0);
    for address in [flow.remote, flow.local] {
        match F::address(address) {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes.extend(flow.remote_port.to_be_bytes());
    bytes.extend(flow.local_port.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use flannel_common::{
        family::{V4, V6},
        layout::{AddressV6, FlowProtocol},
    };

    use super::*;

    #[test]
    fn a_question_is_as_long_as_the_program_expects() {
        let flow = Flow::<V4> {
            local: [10, 244, 1, 2],
            remote: [10, 96, 0, 10],
            local_port: 40_000,
            remote_port: 80,
            protocol: FlowProtocol::Tcp,
        };
        assert_eq!(question(&flow)[ETHERNET_LEN..], [10, 96, 0, 10, 10, 244, 1, 2, 0, 80, 0x9c, 0x40]);
        let address = AddressV6::new([7; 16]);
        let flow = Flow::<V6> {
            local: address,
            remote: address,
            local_port: 1,
            remote_port: 2,
            protocol: FlowProtocol::Tcp,
        };
        assert_eq!(question(&flow).len(), QUESTION);
    }
}
