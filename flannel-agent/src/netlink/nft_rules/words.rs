//! Matches and targets of iptables by what they do to packets: in its own words, and in rules of nftables that it has made.

/// Matches whose answer depends on which packets they have seen, or on what is in one.
pub(crate) const MATCHES: [&str; 13] = [
    "bpf",
    "connbytes",
    "hashlimit",
    "length",
    "limit",
    "nfacct",
    "quota",
    "quota2",
    "rateest",
    "recent",
    "statistic",
    "string",
    "u32",
];
/// Targets that give packets, or copies of them, to somebody, or by which each packet keeps something alive.
pub(crate) const EACH: [&str; 6] = ["IDLETIMER", "NFQUEUE", "QUEUE", "RATEEST", "SET", "TEE"];
/// Targets that only tell of packets.
pub(crate) const TELLS: [&str; 5] = ["AUDIT", "LOG", "NFLOG", "TRACE", "ULOG"];
