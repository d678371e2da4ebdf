//! What is read of the kernel's notices of entries of connection tracking that go.

use flannel_common::path::forgotten::{Forgotten, WORDS, read};
use proptest::prelude::*;

/// Of UDP from 10.244.1.2:40000 to 10.244.2.3:53, as the kernel writes it.
const NOTICE: [u8; 4 * WORDS] = [
    0xc4, 0, 0, 0, 0x02, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // netlink
    2, 0, 0, 0, // nfnetlink
    0x34, 0, 0x01, 0x80, 0x14, 0, 0x01, 0x80, 8, 0, 1, 0, 10, 244, 1, 2, 8, 0, 2, 0, 10, 244, 2,
    3, // addresses
    0x1c, 0, 0x02, 0x80, 5, 0, 1, 0, 17, 0, 0, 0, 6, 0, 2, 0, 0x9c, 0x40, 0, 0, 6, 0, 3, 0, 0, 53, 0,
    0, // ports
    0x34, 0, 0x02, 0x80, 0x14, 0, 0x01, 0x80, 8, 0, 1, 0, 10, 244, 2, 3, 8, 0, 2, 0, 10, 244, 1,
    2, // the answer
];

fn words(bytes: &[u8; 4 * WORDS]) -> [u32; WORDS] {
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    words
}

#[cfg(target_endian = "little")]
#[test]
fn a_notice_names_the_flow_as_it_began() {
    let Forgotten::V4(flow) = read(&words(&NOTICE)) else { panic!("not of IPv4") };
    assert_eq!((flow.local, flow.local_port), ([10, 244, 1, 2], 40_000));
    assert_eq!((flow.remote, flow.remote_port), ([10, 244, 2, 3], 53));
    assert_eq!(flow.reversed().reversed(), flow);
    assert_eq!((flow.reversed().local, flow.reversed().local_port), ([10, 244, 2, 3], 53));
}

/// In another order or of other lengths, it is the agent's to read.
#[cfg(target_endian = "little")]
#[test]
fn what_does_not_stand_where_it_should_is_not_read() {
    for at in [22, 24, 26, 28, 30, 36, 38, 46, 48, 50, 56, 58, 64, 66] {
        let mut notice = NOTICE;
        notice[at] ^= 0x10;
        assert_eq!(read(&words(&notice)), Forgotten::Unread, "byte {at}");
    }
    let mut of_icmp = NOTICE;
    of_icmp[52] = 1;
    assert_eq!(read(&words(&of_icmp)), Forgotten::Other);
}

proptest! {
    #[test]
    fn no_notice_is_too_strange(notice: [u32; WORDS]) {
        let _ = read(&notice);
    }
}
