//! What is sent, and the figures that come of it.

use anyhow::Result;
use clap::ValueEnum;

use super::{Subject, connect, iperf, ping_pong, surroundings::Cpus};

/// Something to send for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Workload {
    /// One TCP stream.
    Tcp,
    /// Four TCP streams at once.
    Tcp4,
    /// TCP in writes of 128 bytes, without delay.
    TcpSmall,
    /// UDP packets of 64 bytes, as many as the sender can.
    Udp64,
    /// UDP packets of 512 bytes, as many as the sender can.
    Udp512,
    /// UDP packets of 1400 bytes, as many as the sender can.
    Udp1400,
    /// UDP packets of 64 bytes at a fixed rate.
    UdpRate64,
    /// UDP packets of 512 bytes at a fixed rate.
    UdpRate512,
    /// UDP packets of 1400 bytes at a fixed rate.
    UdpRate1400,
    /// TCP ping-pong, both ends on one CPU.
    TcpPingPong,
    /// UDP ping-pong, both ends on one CPU.
    UdpPingPong,
    /// TCP ping-pong, each end on a CPU of its own.
    TcpPingPongCross,
    /// UDP ping-pong, each end on a CPU of its own.
    UdpPingPongCross,
    /// TCP connections: connect, request, answer, close.
    Connect,
}

/// Packets a second where the rate is fixed: what the slowest path carries without loss.
pub(super) const RATE: u32 = 40_000;

impl Workload {
    /// All of them.
    pub const EACH: [Self; 14] = [
        Self::Tcp,
        Self::Tcp4,
        Self::TcpSmall,
        Self::Udp64,
        Self::Udp512,
        Self::Udp1400,
        Self::UdpRate64,
        Self::UdpRate512,
        Self::UdpRate1400,
        Self::TcpPingPong,
        Self::UdpPingPong,
        Self::TcpPingPongCross,
        Self::UdpPingPongCross,
        Self::Connect,
    ];

    /// Those that tell most in little time.
    pub const QUICK: [Self; 4] = [Self::Tcp, Self::Udp64, Self::TcpPingPong, Self::UdpPingPong];

    /// The figures it yields, in the order [`Workload::take`] yields them; the last may be missing where there is nothing
    /// that it is of.
    pub fn figures(self) -> &'static [Figure] {
        match self {
            Self::Tcp => &[Figure::Tcp],
            Self::Tcp4 => &[Figure::Tcp4],
            Self::TcpSmall => &[Figure::TcpSmall],
            Self::Udp64 => &[Figure::Udp64],
            Self::Udp512 => &[Figure::Udp512],
            Self::Udp1400 => &[Figure::Udp1400],
            Self::UdpRate64 => &[Figure::Softirq64],
            Self::UdpRate512 => &[Figure::Softirq512],
            Self::UdpRate1400 => &[Figure::Softirq1400],
            Self::TcpPingPong => &[Figure::TcpPingPong, Figure::TcpPingPongTail],
            Self::UdpPingPong => &[Figure::UdpPingPong, Figure::UdpPingPongTail],
            Self::TcpPingPongCross => &[Figure::TcpPingPongCross, Figure::TcpPingPongCrossTail],
            Self::UdpPingPongCross => &[Figure::UdpPingPongCross, Figure::UdpPingPongCrossTail],
            Self::Connect => &[Figure::Connect, Figure::ConnectAgent],
        }
    }

    /// How it is done, for those who want to repeat it.
    pub fn method(self) -> String {
        match self {
            Self::Tcp => "iperf3, one stream, client and server each pinned to a CPU of its own; received".to_owned(),
            Self::Tcp4 => "iperf3 -P 4, the rest as with one stream".to_owned(),
            Self::TcpSmall => "iperf3 -l 128 -N; writes' worth of bytes received".to_owned(),
            Self::Udp64 | Self::Udp512 | Self::Udp1400 => {
                "iperf3 -u -b 0, client and server each pinned to a CPU of its own; packets received (the sender is the \
                 limit of the fastest paths; over IPv6 the longest are of 1380 bytes)"
                    .to_owned()
            }
            Self::UdpRate64 | Self::UdpRate512 | Self::UdpRate1400 => format!(
                "the same at {RATE} packets/s; time that all CPUs spent in softirq, by /proc/stat, for each packet received"
            ),
            Self::TcpPingPong | Self::UdpPingPong => {
                "64 bytes there and back over one socket, two threads pinned to the same CPU; half of the round trip"
                    .to_owned()
            }
            Self::TcpPingPongCross | Self::UdpPingPongCross => {
                "the same with each thread on a CPU of its own: mostly the time to wake a CPU".to_owned()
            }
            Self::Connect => {
                "connect, 64 bytes, 64 bytes back, close, one after the other, both ends on one CPU: what a first packet \
                 costs; and the CPU time of the client's agent meanwhile, for each of them"
                    .to_owned()
            }
        }
    }

    /// Does it once, over `seconds`: its figures.
    pub(super) fn take(self, subject: &Subject, seconds: u32) -> Result<Vec<f64>> {
        let cpus = Cpus::of_this_process()?;
        let together = Cpus { second: cpus.first, ..cpus };
        let longest = if subject.target().is_ipv6() { 1380 } else { 1400 };
        let rate = |rate: f64| Ok(vec![rate]);
        match self {
            Self::Tcp => rate(iperf::tcp(subject, seconds, cpus, &[])?),
            Self::Tcp4 => rate(iperf::tcp(subject, seconds, cpus, &["-P", "4"])?),
            Self::TcpSmall => {
                let gigabits = iperf::tcp(subject, seconds, cpus, &["-l", "128", "-N"])?;
                rate(gigabits * 1e6 / (8.0 * 128.0))
            }
            Self::Udp64 => rate(iperf::udp(subject, seconds, cpus, 64)?),
            Self::Udp512 => rate(iperf::udp(subject, seconds, cpus, 512)?),
            Self::Udp1400 => rate(iperf::udp(subject, seconds, cpus, longest)?),
            Self::UdpRate64 => rate(iperf::softirq(subject, seconds, cpus, 64, RATE)?),
            Self::UdpRate512 => rate(iperf::softirq(subject, seconds, cpus, 512, RATE)?),
            Self::UdpRate1400 => rate(iperf::softirq(subject, seconds, cpus, longest, RATE)?),
            Self::TcpPingPong => ping_pong::tcp(subject, seconds, together),
            Self::UdpPingPong => ping_pong::udp(subject, seconds, together),
            Self::TcpPingPongCross => ping_pong::tcp(subject, seconds, cpus),
            Self::UdpPingPongCross => ping_pong::udp(subject, seconds, cpus),
            Self::Connect => connect::rate(subject, seconds, together),
        }
    }

    /// Ports its servers listen at, which a Service must translate.
    pub(super) const PORTS: [u16; 3] = [iperf::PORT, ping_pong::PORT, connect::PORT];
}

/// One figure of a dataplane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Figure {
    /// One TCP stream.
    Tcp,
    /// Four TCP streams together.
    Tcp4,
    /// Writes of 128 bytes.
    TcpSmall,
    /// Packets of 64 bytes received.
    Udp64,
    /// Packets of 512 bytes received.
    Udp512,
    /// Packets of 1400 bytes received.
    Udp1400,
    /// CPU for each packet of 64 bytes.
    Softirq64,
    /// CPU for each packet of 512 bytes.
    Softirq512,
    /// CPU for each packet of 1400 bytes.
    Softirq1400,
    /// Latency over TCP on one CPU.
    TcpPingPong,
    /// The same, of the slowest in a hundred.
    TcpPingPongTail,
    /// Latency over UDP on one CPU.
    UdpPingPong,
    /// The same, of the slowest in a hundred.
    UdpPingPongTail,
    /// Latency over TCP across CPUs.
    TcpPingPongCross,
    /// The same, of the slowest in a hundred.
    TcpPingPongCrossTail,
    /// Latency over UDP across CPUs.
    UdpPingPongCross,
    /// The same, of the slowest in a hundred.
    UdpPingPongCrossTail,
    /// TCP connections.
    Connect,
    /// CPU that the agent takes while there are such connections, for each of them.
    ConnectAgent,
}

impl Figure {
    /// What it is called, by people.
    pub fn title(self) -> &'static str {
        self.words().0
    }

    /// As files call it.
    pub fn label(self) -> &'static str {
        self.words().1
    }

    /// Unit of it.
    pub fn unit(self) -> &'static str {
        self.words().2
    }

    const fn words(self) -> (&'static str, &'static str, &'static str) {
        const MICROSECONDS: &str = "µs one way";
        match self {
            Self::Tcp => ("TCP, 1 stream", "tcp", "Gbit/s"),
            Self::Tcp4 => ("TCP, 4 streams", "tcp4", "Gbit/s"),
            Self::TcpSmall => ("TCP, 128-byte writes", "tcp_small", "k writes/s"),
            Self::Udp64 => ("UDP, 64 B packets", "udp64", "k packets/s"),
            Self::Udp512 => ("UDP, 512 B packets", "udp512", "k packets/s"),
            Self::Udp1400 => ("UDP, 1400 B packets", "udp1400", "k packets/s"),
            Self::Softirq64 => ("softirq CPU, 64 B", "softirq64", "µs/packet"),
            Self::Softirq512 => ("softirq CPU, 512 B", "softirq512", "µs/packet"),
            Self::Softirq1400 => ("softirq CPU, 1400 B", "softirq1400", "µs/packet"),
            Self::TcpPingPong => ("TCP ping-pong, p50", "tcp_ping_pong_p50", MICROSECONDS),
            Self::TcpPingPongTail => ("TCP ping-pong, p99", "tcp_ping_pong_p99", MICROSECONDS),
            Self::UdpPingPong => ("UDP ping-pong, p50", "udp_ping_pong_p50", MICROSECONDS),
            Self::UdpPingPongTail => ("UDP ping-pong, p99", "udp_ping_pong_p99", MICROSECONDS),
            Self::TcpPingPongCross => ("TCP across CPUs, p50", "tcp_cross_p50", MICROSECONDS),
            Self::TcpPingPongCrossTail => ("TCP across CPUs, p99", "tcp_cross_p99", MICROSECONDS),
            Self::UdpPingPongCross => ("UDP across CPUs, p50", "udp_cross_p50", MICROSECONDS),
            Self::UdpPingPongCrossTail => ("UDP across CPUs, p99", "udp_cross_p99", MICROSECONDS),
            Self::Connect => ("TCP connections", "connect", "k/s"),
            Self::ConnectAgent => ("agent's CPU beside them", "connect_agent", "µs/connection"),
        }
    }

    /// Digits after the point that mean something.
    pub fn precision(self) -> usize {
        match self {
            Self::Udp64 | Self::Udp512 | Self::Udp1400 | Self::TcpSmall => 0,
            Self::Tcp | Self::Tcp4 | Self::Connect => 1,
            _ => 2,
        }
    }

    /// Whether more of it is better: so with rates, not with times.
    pub fn more_is_better(self) -> bool {
        matches!(
            self,
            Self::Tcp
                | Self::Tcp4
                | Self::TcpSmall
                | Self::Udp64
                | Self::Udp512
                | Self::Udp1400
                | Self::Connect
        )
    }
}

impl Subject {
    /// `port` of the server as the client names it.
    pub(super) fn target_at(&self, port: u16) -> std::net::SocketAddr {
        (self.target(), port).into()
    }

    /// `port` of the server as it binds it.
    pub(super) fn server_at(&self, port: u16) -> std::net::SocketAddr {
        (self.server().address(), port).into()
    }
}
