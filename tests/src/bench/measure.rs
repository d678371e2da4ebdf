//! What is measured.

use anyhow::Result;
use clap::ValueEnum;

use super::{Subject, iperf, sockperf, surroundings::Cpus};

/// One figure of a dataplane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Measure {
    /// One TCP stream, sender and receiver on different CPUs: Gbit/s.
    Tcp,
    /// UDP packets of 64 bytes received, sender unpaced, on different CPUs: thousands per second.
    Udp,
    /// TCP ping-pong of 64 bytes, both ends on one CPU: microseconds one way.
    TcpPingPong,
    /// UDP ping-pong of 64 bytes, both ends on one CPU: microseconds one way.
    UdpPingPong,
}

impl Measure {
    /// All of them.
    pub const EACH: [Self; 4] = [Self::Tcp, Self::Udp, Self::TcpPingPong, Self::UdpPingPong];

    /// Head of its column.
    pub fn title(self) -> &'static str {
        match self {
            Self::Tcp => "TCP stream",
            Self::Udp => "UDP 64 B packets",
            Self::TcpPingPong => "TCP ping-pong",
            Self::UdpPingPong => "UDP ping-pong",
        }
    }

    /// Unit of its figures.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Tcp => "Gbit/s",
            Self::Udp => "kpps",
            Self::TcpPingPong | Self::UdpPingPong => "us one way",
        }
    }

    /// How it is taken, for those who want to repeat it.
    pub fn method(self) -> &'static str {
        match self {
            Self::Tcp => "iperf3, one stream, client and server each pinned to a CPU of its own; received",
            Self::Udp => {
                "iperf3 -u -l 64 -b 0, client and server each pinned to a CPU of its own; packets received \
                 (the sender is the limit of the fastest paths)"
            }
            Self::TcpPingPong => {
                "sockperf ping-pong --tcp -m 64, client and server pinned to the same CPU; mean"
            }
            Self::UdpPingPong => "sockperf ping-pong -m 64, client and server pinned to the same CPU; mean",
        }
    }

    /// Digits after the point that mean something.
    pub fn precision(self) -> usize {
        match self {
            Self::Tcp => 1,
            Self::Udp => 0,
            Self::TcpPingPong | Self::UdpPingPong => 2,
        }
    }

    /// Takes it once, over `seconds`.
    pub(super) fn take(self, subject: &Subject, seconds: u32) -> Result<f64> {
        let cpus = Cpus::of_this_process()?;
        let (client, server) = (subject.client(), subject.server());
        match self {
            Self::Tcp => iperf::tcp(client, server, seconds, cpus),
            Self::Udp => iperf::udp(client, server, seconds, cpus),
            Self::TcpPingPong => sockperf::tcp(client, server, seconds, cpus),
            Self::UdpPingPong => sockperf::udp(client, server, seconds, cpus),
        }
    }
}
