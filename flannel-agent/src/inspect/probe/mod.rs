//! Asks a peer for echoes (ICMP), as `ping` does, and where it answers none, for a connection: at its public address,
//! and through the overlay at the address of its own device, VXLAN or another, which nodes of stock flannel answer at,
//! too.
//!
//! An echo that comes back says that what it met works in both directions. Large ones that may not be fragmented say how
//! large packets may be.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    ops::Add,
    thread::sleep,
    time::{Duration, Instant},
};

use ipnetwork::IpNetwork;
use nix::errno::Errno;

use crate::control::snapshot::{self, Backend, Interface};

mod checksums;
mod echo;
mod segment;
mod socket;

pub use checksums::Checksums;
pub use echo::{Answer, Condition};
use socket::EchoSocket;

/// How long an answer may take: a second attempt follows.
const PATIENCE: Duration = Duration::from_secs(1);
/// Attempts of the small echo.
const ATTEMPTS: u16 = 2;
/// How long the answers to a round of large echoes may take.
const ROUND: Duration = Duration::from_millis(400);
/// A port of TCP that nodes of Kubernetes let each other ask at, the kubelet's. Where nobody listens a reset is as good.
const PORT: u16 = 10_250;
/// Sizes that one round tries at once.
const SIZES: u32 = 12;
/// Rounds of two by which a limit is told from loss: echoes of the largest size that was answered, and of the next.
const PROOFS: u32 = 6;
/// No smaller packet is looked for, bytes: what every IPv4 host takes (RFC 791), and IPv6 link carries (RFC 8200).
const LEAST_V4: u32 = 576;
const LEAST_V6: u32 = 1280;

/// What to ask of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its public address.
    pub public_ip: IpAddr,
    /// An address of it that is reached through the overlay; `None` where packets take no tunnel.
    pub overlay: Option<IpAddr>,
    /// An address of its pods', whether or not one has it.
    pub behind: Option<IpAddr>,
    /// The TTL that ends where the peer's node would hand a packet to its pods.
    pub hops: u8,
    /// The largest packet that should get there, bytes.
    pub mtu: u32,
    /// The interface of this node that its packets leave by, with its MTU in bytes; `None` where it is not known.
    pub interface: Option<(String, u32)>,
}

impl Target {
    /// A peer at `public_ip` that has `subnet` and is reached by `way`, from the external interface.
    ///
    /// Devices of the tunnels whose nodes flannel numbers, whoever made it, have the first address of their subnet.
    pub fn of(
        subnet: IpNetwork,
        public_ip: IpAddr,
        way: &str,
        backend: Option<&Backend>,
        external: &Interface,
    ) -> Self {
        let device = backend.and_then(|backend| backend.device_to(subnet, way));
        Self {
            public_ip,
            overlay: device.map(|_| subnet.network()),
            behind: behind(subnet),
            hops: hops(way),
            mtu: device.map_or(external.mtu, |device| device.mtu),
            interface: Some((external.name.clone(), external.mtu)),
        }
    }
}

/// The TTL that ends where the peer's node would hand a packet that comes by `way` to its pods.
pub fn hops(way: &str) -> u8 {
    // The udp backend's tunnel counts it down at each end, stock flannel's as well.
    if way == "udp" { 3 } else { 1 }
}

/// The last address of `subnet` that a pod can have; `None` where it has room for none.
pub fn behind(subnet: IpNetwork) -> Option<IpAddr> {
    let last = match subnet.broadcast() {
        IpAddr::V4(last) => IpAddr::from(Ipv4Addr::from(u32::from(last).checked_sub(1)?)),
        IpAddr::V6(last) => IpAddr::from(Ipv6Addr::from(u128::from(last).checked_sub(1)?)),
    };
    (subnet.contains(last) && last != subnet.network()).then_some(last)
}

/// What came of one address.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Echoes {
    /// The round trip; absent where no answer came.
    pub rtt: Option<Duration>,
    /// What answered was TCP, after no echo was: how large packets may be is not known then.
    pub by_tcp: bool,
    /// Why nothing could be sent.
    pub error: Option<Errno>,
    /// The largest packet that was answered, bytes: only looked for where a small one was.
    pub largest: Option<u32>,
    /// Echoes get lost whatever their size, so that nothing is known of the largest.
    pub lost: Option<Lost>,
    /// Answers that came broken.
    pub corrupt: Corrupt,
}

/// Echoes that were not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// How many.
    pub lost: u32,
    /// Of so many.
    pub sent: u32,
    /// Connections of TCP, of [`Lost::CONNECTIONS`], that were answered.
    pub connected: u32,
}

impl Lost {
    /// How many connections tell whether only echoes get lost.
    pub const CONNECTIONS: u32 = 6;
}

/// Answers that came broken: how many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Corrupt {
    /// With a wrong checksum: on the way back.
    pub back: u32,
    /// With other bytes and a checksum that fits: on the way there or back.
    pub either: u32,
}

impl Corrupt {
    /// Of these answers.
    fn of(answers: &[Answer]) -> Self {
        let count =
            |condition| answers.iter().filter(|answer| answer.condition == condition).map(|_| 1).sum();
        Self { back: count(Condition::BadChecksum), either: count(Condition::OtherBytes) }
    }

    /// All of them.
    pub const fn total(self) -> u32 {
        self.back + self.either
    }
}

impl Add for Corrupt {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { back: self.back + other.back, either: self.either + other.either }
    }
}

/// What came of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// At its public address.
    pub underlay: Echoes,
    /// Through the overlay; nothing where packets take no tunnel.
    pub overlay: Option<Echoes>,
    /// What was seen of checksums of TCP and UDP on the way of its pods' packets; only looked for where an echo was answered.
    pub checksums: Checksums,
}

impl Outcome {
    /// At the address whose packets take the way of its pods'.
    pub fn through(&self) -> Echoes {
        self.overlay.unwrap_or(self.underlay)
    }

    /// Answers that came broken, at either address.
    pub fn corrupt(&self) -> Corrupt {
        self.overlay.map_or(self.underlay.corrupt, |echoes| self.underlay.corrupt + echoes.corrupt)
    }

    /// As the control socket tells it, with the errors that were `found`.
    pub fn told(&self, at: u64, found: Vec<String>) -> snapshot::Probe {
        let through = self.through();
        let seconds = |echoes: Echoes| echoes.rtt.map(|rtt| rtt.as_secs_f64());
        snapshot::Probe {
            at,
            overlay_rtt_seconds: seconds(through),
            underlay_rtt_seconds: seconds(self.underlay),
            path_mtu: through.largest,
            found,
        }
    }
}

/// Asks `target`. Blocks for some seconds where nothing comes back, so it belongs on a thread of its own.
pub fn probe(target: &Target) -> Outcome {
    let beside = |to| echoes(to, None);
    let through = |to| echoes(to, Some(target.mtu));
    let mut found = match target.overlay {
        Some(to) => {
            Outcome { underlay: beside(target.public_ip), overlay: Some(through(to)), ..Outcome::default() }
        }
        None => Outcome { underlay: through(target.public_ip), ..Outcome::default() },
    };
    let Echoes { rtt, by_tcp, .. } = found.through();
    if let Some(rtt) = rtt.filter(|_| !by_tcp) {
        found.checksums =
            Checksums::look(target.overlay.unwrap_or(target.public_ip), (target.behind, target.hops), rtt);
    }
    found
}

/// Small echoes, and where one is answered, large ones up to `mtu`.
fn echoes(to: IpAddr, mtu: Option<u32>) -> Echoes {
    let mut found = Echoes::default();
    let socket = match EchoSocket::open(to) {
        Ok(socket) => socket,
        Err(error) => return Echoes { error: Some(error), ..found },
    };
    for attempt in 0..ATTEMPTS {
        let start = Instant::now();
        if let Err(error) = socket.send(attempt, socket.least()) {
            found.error = Some(error);
            sleep(Duration::from_millis(100));
            continue;
        }
        let answers =
            socket.receive(start + PATIENCE, |answer| answer.sequence == attempt && answer.is_intact());
        found.corrupt = found.corrupt + Corrupt::of(&answers);
        if answers.iter().any(|answer| answer.sequence == attempt && answer.is_intact()) {
            found.rtt = Some(start.elapsed());
            found.error = None;
            break;
        }
    }
    if found.rtt.is_none() && found.corrupt.total() == 0 {
        // A node that is told to drop echoes is no node that is down.
        found.rtt = connection(to, PATIENCE);
        found.by_tcp = found.rtt.is_some();
        return found;
    }
    if let Some(mtu) = mtu.filter(|_| found.rtt.is_some()) {
        let (largest, corrupt) = largest(&socket, to, mtu);
        match largest {
            Ok(largest) => found.largest = largest,
            Err(lost) => {
                let answered = (0..Lost::CONNECTIONS).filter(|_| connection(to, ROUND).is_some());
                found.lost = Some(Lost { connected: answered.map(|_| 1).sum(), ..lost });
            }
        }
        found.corrupt = found.corrupt + corrupt;
    }
    found
}

/// The round trip of a connection of TCP, or of its refusal, within `patience`.
fn connection(to: IpAddr, patience: Duration) -> Option<Duration> {
    let start = Instant::now();
    let answered = match TcpStream::connect_timeout(&SocketAddr::new(to, PORT), patience) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::ConnectionRefused,
    };
    answered.then(|| start.elapsed())
}

/// The largest packet up to `mtu` bytes that is answered, unless echoes get lost whatever their size; how many answers were
/// broken.
fn largest(socket: &EchoSocket, to: IpAddr, mtu: u32) -> (Result<Option<u32>, Lost>, Corrupt) {
    let least = if to.is_ipv4() { LEAST_V4 } else { LEAST_V6 };
    let mut corrupt = Corrupt::default();
    let mut round = |sizes: &[u32]| -> Vec<u32> {
        for (sequence, size) in (100u16..).zip(sizes) {
            // One that our own route does not carry is refused at once.
            let _ = socket.send(sequence, *size);
        }
        let wanted = sizes.len();
        let mut seen = 0;
        let answers = socket.receive(Instant::now() + ROUND, |answer| {
            seen += usize::from(answer.sequence >= 100);
            seen == wanted
        });
        corrupt = corrupt + Corrupt::of(&answers);
        let size = |answer: &Answer| sizes.get(usize::from(answer.sequence.checked_sub(100)?)).copied();
        answers.iter().filter(|answer| answer.is_intact()).filter_map(size).collect()
    };
    // Twice: a single loss is no small path.
    if !round(&[mtu]).is_empty() || !round(&[mtu]).is_empty() {
        return (Ok(Some(mtu)), corrupt);
    }
    let (mut good, mut bad) = (None, mtu);
    while good.is_none_or(|good| bad - good > 1) {
        let from = good.unwrap_or(least.min(bad));
        let sizes = between(from, bad);
        match round(&sizes).into_iter().max().filter(|size| good.is_none_or(|good| *size > good)) {
            Some(size) => {
                bad = sizes.iter().copied().filter(|other| *other > size).min().unwrap_or(bad);
                good = Some(size);
            }
            None => break,
        }
    }
    let passes = good.unwrap_or_else(|| socket.least());
    let answered: Vec<u32> = (0..PROOFS).flat_map(|_| round(&[passes, bad])).collect();
    (limit(&answered, passes, bad).map(|()| good), corrupt)
}

/// Whether the echoes that were `answered`, of [`PROOFS`] with `passes` bytes and as many with `bad`, show that none larger than
/// `passes` gets there.
///
/// # Errors
/// They show that echoes get lost whatever their size.
fn limit(answered: &[u32], passes: u32, bad: u32) -> Result<(), Lost> {
    let count = |wanted: u32| answered.iter().filter(|size| **size == wanted).map(|_| 1).sum::<u32>();
    if count(bad) == 0 && count(passes) + 1 >= PROOFS {
        return Ok(());
    }
    Err(Lost { lost: 2 * PROOFS - count(bad) - count(passes), sent: 2 * PROOFS, connected: 0 })
}

/// Sizes from `from` on, below `to`, evenly apart.
fn between(from: u32, to: u32) -> Vec<u32> {
    let step = ((to.saturating_sub(from)) / SIZES).max(1);
    let mut sizes: Vec<u32> =
        (0..=SIZES).map(|number| from + number * step).filter(|size| *size < to).collect();
    sizes.dedup();
    sizes
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn rounds_close_in_on_the_largest_size() {
        assert_eq!(between(576, 1450).len(), 13);
        assert_eq!(between(1398, 1400), [1398, 1399]);
        assert_eq!(between(1400, 1400), Vec::<u32>::new());
        for limit in [576, 577, 999, 1398, 1449] {
            let (mut good, mut bad, mut rounds) = (576, 1450, 0);
            while bad - good > 1 {
                let sizes = between(good, bad);
                let best = sizes.iter().copied().filter(|size| *size <= limit).max().unwrap();
                bad = sizes.into_iter().filter(|size| *size > best).min().unwrap_or(bad);
                good = best;
                rounds += 1;
                assert!(rounds < 6);
            }
            assert_eq!(good, limit);
        }
    }

    #[test]
    fn a_limit_is_told_from_loss() {
        let of = |passed: usize, failed: usize| [vec![1400; passed], vec![1401; failed]].concat();
        let judged = |passed, failed| limit(&of(passed, failed), 1400, 1401).map_err(|lost| lost.lost);
        assert_eq!(judged(6, 0), Ok(()));
        assert_eq!(judged(5, 0), Ok(()), "one may get lost");
        assert_eq!(judged(4, 0), Err(8));
        assert_eq!(judged(6, 1), Err(5), "what is larger gets there");
        assert_eq!(judged(0, 0), Err(12));
    }

    #[test]
    fn this_host_answers_itself() {
        let Ok(_) = EchoSocket::open(Ipv4Addr::LOCALHOST.into()) else { return };
        let found = echoes(Ipv4Addr::LOCALHOST.into(), Some(1450));
        assert!(
            found.rtt.is_some() && found.largest == Some(1450) && found.corrupt == Corrupt::default(),
            "{found:?}"
        );
    }
}
