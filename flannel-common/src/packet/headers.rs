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
/// Protocol number of TCP (IANA).
pub const PROTOCOL_TCP: u8 = 6;
/// Protocol number of UDP (IANA).
pub const PROTOCOL_UDP: u8 = 17;
/// VXLAN flags with only "VNI present" set (RFC 7348, section 5).
pub const VXLAN_FLAGS: u8 = 0x08;

/// Ethernet II.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Destination MAC.
    pub destination: [u8; 6],
    /// Source MAC.
    pub source: [u8; 6],
    /// EtherType.
    pub ethertype: u16,
}

impl Ethernet {
    /// Reads the header from its bytes.
    #[inline(always)]
    pub const fn parse(bytes: [u8; ETHERNET_LEN]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n] = bytes;
        Self {
            destination: [a, b, c, d, e, f],
            source: [g, h, i, j, k, l],
            ethertype: u16::from_be_bytes([m, n]),
        }
    }

    /// The header as it stands on the wire.
    #[inline(always)]
    pub const fn bytes(&self) -> [u8; ETHERNET_LEN] {
        let [a, b, c, d, e, f] = self.destination;
        let [g, h, i, j, k, l] = self.source;
        let [m, n] = self.ethertype.to_be_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n]
    }

    /// Whether the destination is a single station.
    #[inline(always)]
    pub const fn is_unicast(&self) -> bool {
        self.destination[0] & 1 == 0
    }
}

/// IPv4 (RFC 791) without options.
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
    pub const fn parse(bytes: [u8; IPV4_LEN]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t] = bytes;
        Self {
            version_ihl: a,
            tos: b,
            total_len: u16::from_be_bytes([c, d]),
            id: u16::from_be_bytes([e, f]),
            fragment: u16::from_be_bytes([g, h]),
            ttl: i,
            protocol: j,
            checksum: u16::from_be_bytes([k, l]),
            source: [m, n, o, p],
            destination: [q, r, s, t],
        }
    }

    /// The header as it stands on the wire.
    #[inline(always)]
    pub const fn bytes(&self) -> [u8; IPV4_LEN] {
        let [c, d] = self.total_len.to_be_bytes();
        let [e, f] = self.id.to_be_bytes();
        let [g, h] = self.fragment.to_be_bytes();
        let [k, l] = self.checksum.to_be_bytes();
        let [m, n, o, p] = self.source;
        let [q, r, s, t] = self.destination;
        [self.version_ihl, self.tos, c, d, e, f, g, h, self.ttl, self.protocol, k, l, m, n, o, p, q, r, s, t]
    }

    /// Whether this is one piece of a larger packet: more fragments follow, or some came before.
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        self.fragment & 0x3fff != 0
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
    pub const fn parse(bytes: [u8; UDP_LEN]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self {
            source: u16::from_be_bytes([a, b]),
            destination: u16::from_be_bytes([c, d]),
            len: u16::from_be_bytes([e, f]),
            checksum: u16::from_be_bytes([g, h]),
        }
    }

    /// The header as it stands on the wire.
    #[inline(always)]
    pub const fn bytes(&self) -> [u8; UDP_LEN] {
        let [a, b] = self.source.to_be_bytes();
        let [c, d] = self.destination.to_be_bytes();
        let [e, f] = self.len.to_be_bytes();
        let [g, h] = self.checksum.to_be_bytes();
        [a, b, c, d, e, f, g, h]
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
    pub const fn parse(bytes: [u8; VXLAN_LEN]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self { flags: u32::from_be_bytes([a, b, c, d]), vni: u32::from_be_bytes([e, f, g, h]) }
    }

    /// The header as it stands on the wire.
    #[inline(always)]
    pub const fn bytes(&self) -> [u8; VXLAN_LEN] {
        let [a, b, c, d] = self.flags.to_be_bytes();
        let [e, f, g, h] = self.vni.to_be_bytes();
        [a, b, c, d, e, f, g, h]
    }
}
