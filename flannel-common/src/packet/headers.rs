//! Views of the headers we meet, by value. Numbers are in host order, addresses and MACs in network order.

/// Length of an Ethernet header, bytes.
pub const ETHERNET_LEN: usize = 14;
/// Length of an IPv4 header without options, bytes.
pub const IPV4_LEN: usize = 20;
/// Length of a UDP header, bytes.
pub const UDP_LEN: usize = 8;
/// Length of a VXLAN header, bytes.
pub const VXLAN_LEN: usize = 8;
/// What VXLAN over IPv4 adds to a frame, bytes: outer Ethernet, IPv4, UDP, VXLAN.
pub const ENCAP_LEN: usize = ETHERNET_LEN + IPV4_LEN + UDP_LEN + VXLAN_LEN;

/// EtherType of IPv4 (IEEE 802).
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// Protocol number of an IPv4 packet in another (IANA).
pub const PROTOCOL_IPIP: u8 = 4;
/// Protocol number of TCP (IANA).
pub const PROTOCOL_TCP: u8 = 6;
/// Protocol number of UDP (IANA).
pub const PROTOCOL_UDP: u8 = 17;
/// Offset of the checksum in a TCP header.
pub const TCP_CHECKSUM: usize = 16;
/// Offset of the checksum in a UDP header.
pub const UDP_CHECKSUM: usize = 6;
/// Bytes of a TCP header up to its flags, which are the last of them.
pub const TCP_TO_FLAGS: usize = 14;
/// TCP flag (RFC 9293, section 3.1): the sender has no more to say.
pub const TCP_FIN: u8 = 0x01;
/// TCP flag: a connection begins.
pub const TCP_SYN: u8 = 0x02;
/// TCP flag: a connection is over.
pub const TCP_RST: u8 = 0x04;
/// TCP flag: the packet acknowledges; only the first of a connection does not.
pub const TCP_ACK: u8 = 0x10;
/// VXLAN flags with only "VNI present" set (RFC 7348, section 5).
pub const VXLAN_FLAGS: u8 = 0x08;

/// `N` bytes of a header from `at`: copied as one piece, which byte by byte they would not be.
#[inline(always)]
pub(crate) const fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut taken = [0; N];
    taken.copy_from_slice(bytes.split_at(at).1.split_at(N).0);
    taken
}

/// Puts a field of a header at `at`.
#[inline(always)]
pub(super) const fn put<const N: usize>(bytes: &mut [u8], at: usize, field: [u8; N]) {
    bytes.split_at_mut(at).1.split_at_mut(N).0.copy_from_slice(&field);
}

/// Whether the two are the same station. By words: an array on a program's stack would be compared in pieces that are
/// not aligned.
#[inline(always)]
pub(crate) const fn is_same_mac(a: &[u8; 6], b: &[u8; 6]) -> bool {
    let words = [u32::from_ne_bytes(take(a, 0)), u32::from_ne_bytes(take(b, 0))];
    let rest: [[u8; 2]; 2] = [take(a, 4), take(b, 4)];
    words[0] == words[1] && u16::from_ne_bytes(rest[0]) == u16::from_ne_bytes(rest[1])
}

/// A MAC as one word, which differs for MACs that differ in their first four bytes alone, or in their last two alone.
#[inline(always)]
pub const fn folded(mac: &[u8; 6]) -> u32 {
    u32::from_ne_bytes(take(mac, 0)) ^ u16::from_ne_bytes(take(mac, 4)) as u32
}

/// Ethernet II.
///
/// The MACs are kept as words: arrays of bytes would land on a program's stack, and LLVM would reach them
/// there in pieces that are not aligned, which the verifier refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Destination and source, the bytes of each word in the order of memory.
    macs: [u32; 3],
    /// EtherType.
    pub ethertype: u16,
}

impl Ethernet {
    /// The header of a frame from `source` to `destination`.
    #[inline(always)]
    pub const fn new(destination: [u8; 6], source: [u8; 6], ethertype: u16) -> Self {
        let middle: [u8; 2] = take(&destination, 4);
        let next: [u8; 2] = take(&source, 0);
        let macs = [
            u32::from_ne_bytes(take(&destination, 0)),
            u32::from_ne_bytes([middle[0], middle[1], next[0], next[1]]),
            u32::from_ne_bytes(take(&source, 2)),
        ];
        Self { macs, ethertype }
    }

    /// The header of a frame whose MACs stand in `words` the other way round, source before destination, the bytes of
    /// each word in the order of memory.
    #[inline(always)]
    pub const fn of_words(words: [u32; 3], ethertype: u16) -> Self {
        let [first, middle, last] = words;
        let ([a, b, c, d], [e, f, g, h], [i, j, k, l]) =
            (first.to_ne_bytes(), middle.to_ne_bytes(), last.to_ne_bytes());
        let macs = [
            u32::from_ne_bytes([g, h, i, j]),
            u32::from_ne_bytes([k, l, a, b]),
            u32::from_ne_bytes([c, d, e, f]),
        ];
        Self { macs, ethertype }
    }

    /// Reads the header from its bytes.
    #[inline(always)]
    pub const fn parse(bytes: &[u8; ETHERNET_LEN]) -> Self {
        Self {
            macs: [
                u32::from_ne_bytes(take(bytes, 0)),
                u32::from_ne_bytes(take(bytes, 4)),
                u32::from_ne_bytes(take(bytes, 8)),
            ],
            ethertype: u16::from_be_bytes(take(bytes, 12)),
        }
    }

    /// The header as it stands on the wire.
    #[inline(always)]
    pub const fn bytes(&self) -> [u8; ETHERNET_LEN] {
        let mut bytes = [0; ETHERNET_LEN];
        put(&mut bytes, 0, self.macs[0].to_ne_bytes());
        put(&mut bytes, 4, self.macs[1].to_ne_bytes());
        put(&mut bytes, 8, self.macs[2].to_ne_bytes());
        put(&mut bytes, 12, self.ethertype.to_be_bytes());
        bytes
    }

    /// Destination MAC.
    pub const fn destination(&self) -> [u8; 6] {
        take(&self.bytes(), 0)
    }

    /// Source MAC.
    pub const fn source(&self) -> [u8; 6] {
        take(&self.bytes(), 6)
    }

    /// Both MACs, the bytes of each word in the order of memory.
    #[inline(always)]
    pub(super) const fn words(&self) -> [u32; 3] {
        self.macs
    }

    /// Whether the destination is a single station.
    #[inline(always)]
    pub const fn is_unicast(&self) -> bool {
        self.macs[0].to_be() & 0x0100_0000 == 0
    }

    /// Whether the frame goes to `mac`.
    #[inline(always)]
    pub const fn is_to(&self, mac: &[u8; 6]) -> bool {
        let low: [u8; 2] = take(mac, 4);
        let middle = self.macs[1].to_ne_bytes();
        self.macs[0] == u32::from_ne_bytes(take(mac, 0))
            && u16::from_ne_bytes(take(&middle, 0)) == u16::from_ne_bytes(low)
    }

    /// The destination, [`folded`].
    #[inline(always)]
    pub const fn destination_folded(&self) -> u32 {
        let middle = self.macs[1].to_ne_bytes();
        self.macs[0] ^ u16::from_ne_bytes(take(&middle, 0)) as u32
    }

    /// Whether the two headers name the same stations.
    #[inline(always)]
    pub const fn same_stations(&self, other: &Self) -> bool {
        self.macs[0] == other.macs[0] && self.macs[1] == other.macs[1] && self.macs[2] == other.macs[2]
    }
}

/// IPv4 (RFC 791) without options.
///
/// Addresses are aligned to words: on a program's stack LLVM moves them as such, which the verifier takes there only where
/// they are aligned.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// Version and header length: 0x45 without options.
    pub version_ihl: u8,
    /// DSCP (upper six bits) and ECN (lower two).
    pub tos: u8,
    /// Length of header and payload, bytes.
    pub total_len: u16,
    /// Identification.
    pub id: u16,
    /// Flags (upper three bits) and fragment offset in units of 8 bytes.
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Header checksum, as read as one big-endian number.
    pub checksum: u16,
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
}

impl Ipv4 {
    /// Reads the header from its bytes.
    #[inline(always)]
    pub const fn parse(bytes: &[u8; IPV4_LEN]) -> Self {
        Self {
            version_ihl: bytes[0],
            tos: bytes[1],
            total_len: u16::from_be_bytes(take(bytes, 2)),
            id: u16::from_be_bytes(take(bytes, 4)),
            fragment: u16::from_be_bytes(take(bytes, 6)),
            ttl: bytes[8],
            protocol: bytes[9],
            checksum: u16::from_be_bytes(take(bytes, 10)),
            source: take(bytes, 12),
            destination: take(bytes, 16),
        }
    }

    /// The header as it stands on the wire.
    #[inline(always)]
    pub const fn bytes(&self) -> [u8; IPV4_LEN] {
        let mut bytes = [0; IPV4_LEN];
        put(&mut bytes, 0, [self.version_ihl, self.tos]);
        put(&mut bytes, 2, self.total_len.to_be_bytes());
        put(&mut bytes, 4, self.id.to_be_bytes());
        put(&mut bytes, 6, self.fragment.to_be_bytes());
        put(&mut bytes, 8, [self.ttl, self.protocol]);
        put(&mut bytes, 10, self.checksum.to_be_bytes());
        put(&mut bytes, 12, self.source);
        put(&mut bytes, 16, self.destination);
        bytes
    }

    /// Whether this is one piece of a larger packet: more fragments follow, or some came before.
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        self.fragment & 0x3fff != 0
    }

    /// Whether the payload begins with the header of its protocol: the whole packet, or its first fragment.
    #[inline(always)]
    pub const fn is_beginning(&self) -> bool {
        self.fragment & 0x1fff == 0
    }
}

/// UDP (RFC 768).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Length of header and payload, bytes.
    pub len: u16,
    /// Checksum; 0 when the sender made none.
    pub checksum: u16,
}

impl Udp {
    /// Reads the header from its bytes.
    #[inline(always)]
    pub const fn parse(bytes: &[u8; UDP_LEN]) -> Self {
        Self {
            source: u16::from_be_bytes(take(bytes, 0)),
            destination: u16::from_be_bytes(take(bytes, 2)),
            len: u16::from_be_bytes(take(bytes, 4)),
            checksum: u16::from_be_bytes(take(bytes, 6)),
        }
    }

    /// The header as it stands on the wire.
    #[inline(always)]
    pub const fn bytes(&self) -> [u8; UDP_LEN] {
        let mut bytes = [0; UDP_LEN];
        put(&mut bytes, 0, self.source.to_be_bytes());
        put(&mut bytes, 2, self.destination.to_be_bytes());
        put(&mut bytes, 4, self.len.to_be_bytes());
        put(&mut bytes, 6, self.checksum.to_be_bytes());
        bytes
    }
}

/// VXLAN (RFC 7348, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// Flags and the 24 reserved bits after them: `0x0800_0000` when only the VNI is present.
    pub flags: u32,
    /// Network identifier (upper 24 bits) and the 8 reserved bits after it.
    pub vni: u32,
}

impl Vxlan {
    /// The header of a packet of network `vni`, 0 to 2^24-1.
    #[inline(always)]
    pub const fn of(vni: u32) -> Self {
        Self { flags: (VXLAN_FLAGS as u32) << 24, vni: vni << 8 }
    }

    /// Reads the header from its bytes.
    #[inline(always)]
    pub const fn parse(bytes: &[u8; VXLAN_LEN]) -> Self {
        Self { flags: u32::from_be_bytes(take(bytes, 0)), vni: u32::from_be_bytes(take(bytes, 4)) }
    }

    /// The header as it stands on the wire.
    #[inline(always)]
    pub const fn bytes(&self) -> [u8; VXLAN_LEN] {
        let mut bytes = [0; VXLAN_LEN];
        put(&mut bytes, 0, self.flags.to_be_bytes());
        put(&mut bytes, 4, self.vni.to_be_bytes());
        bytes
    }
}
