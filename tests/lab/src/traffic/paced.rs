//! A steady trickle of numbered packets both ways, and what became of each.

use std::{
    fmt,
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{Endpoint, TICK, is_quiet, udp_pair};

/// Longest a trickle runs, whatever its owner does.
const LIMIT: Duration = Duration::from_secs(600);

/// How long receivers wait for stragglers after the last packet was sent.
const STRAGGLERS: Duration = Duration::from_secs(1);

/// A sender that is this late drops its schedule instead of catching up in a burst.
const LATE: Duration = Duration::from_millis(100);

/// What became of the packets of one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Numbers used, whether or not the kernel accepted the packet.
    pub sent: u64,
    /// Of those, how many the sender's own kernel refused.
    pub refused: u64,
    /// Different numbers that arrived.
    pub received: u64,
    /// Arrivals after one with a higher number.
    pub reordered: u64,
    /// Arrivals of a number that had arrived.
    pub duplicated: u64,
    /// Longest run of consecutive numbers that never arrived.
    pub longest_loss: u64,
    /// The first number that never arrived.
    pub first_lost: Option<u64>,
    /// Longest time between two arrivals.
    pub longest_gap: Duration,
}

impl Loss {
    /// Numbers that never arrived.
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} lost ({}longest run {}, {} refused by the sender's kernel), {} reordered, {} duplicated, \
             longest gap {} ms",
            self.lost(),
            self.sent,
            self.first_lost.map_or_else(String::new, |first| format!("first number {first}, ")),
            self.longest_loss,
            self.refused,
            self.reordered,
            self.duplicated,
            self.longest_gap.as_millis()
        )
    }
}

/// Both directions.
#[derive(Clone, Debug)]
pub struct PacedReport {
    /// Names of the two ends.
    pub between: (String, String),
    /// First end to second.
    pub forward: Loss,
    /// Second end to first.
    pub backward: Loss,
}

impl PacedReport {
    /// Fails, with all numbers, unless every packet arrived once. Packets must have been sent at all.
    pub fn check_lossless(&self) -> Result<()> {
        for direction in [&self.forward, &self.backward] {
            ensure!(direction.sent > 0, "nothing was sent: {self}");
            ensure!(direction.lost() == 0 && direction.duplicated == 0, "{self}");
        }
        Ok(())
    }
}

impl fmt::Display for PacedReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (a, b) = &self.between;
        write!(f, "{a} -> {b}: {}; {b} -> {a}: {}", self.forward, self.backward)
    }
}

/// UDP packets both ways at a steady rate, until [`Paced::stop`].
#[derive(Debug)]
pub struct Paced {
    stop: Arc<AtomicBool>,
    between: (String, String),
    forward: Direction,
    backward: Direction,
}

#[derive(Debug)]
struct Direction {
    sender: JoinHandle<Sent>,
    receiver: JoinHandle<Result<Arrivals>>,
    received: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Sent {
    packets: u64,
    refused: u64,
}

impl Paced {
    /// Starts `rate` packets per second of `size` payload bytes (16 at least) in each direction.
    pub fn start(a: &Endpoint, b: &Endpoint, rate: u32, size: usize) -> Result<Self> {
        ensure!(rate > 0 && size >= HEADER, "paced traffic of {rate}/s, {size} bytes");
        let (at_a, at_b) = udp_pair(a, b)?;
        let stop = Arc::new(AtomicBool::new(false));
        let run: u64 = rand::random();
        let start = |from: &UdpSocket, to: &UdpSocket| Direction::start(from, to, rate, size, run, &stop);
        let (forward, backward) = (start(&at_a, &at_b)?, start(&at_b, &at_a)?);
        Ok(Self { stop, between: (a.name().to_owned(), b.name().to_owned()), forward, backward })
    }

    /// The usual trickle: 1000 packets of 64 bytes a second, each way.
    pub fn usual(a: &Endpoint, b: &Endpoint) -> Result<Self> {
        Self::start(a, b, 1000, 64)
    }

    /// Packets that have arrived so far, first to second end and back.
    pub fn received(&self) -> (u64, u64) {
        let count = |direction: &Direction| direction.received.load(Ordering::Relaxed);
        (count(&self.forward), count(&self.backward))
    }

    /// Stops sending, waits for what is under way, and reports.
    pub fn stop(self) -> Result<PacedReport> {
        self.stop.store(true, Ordering::Relaxed);
        let panicked = || anyhow!("a paced thread panicked");
        let finish = |direction: Direction| -> Result<Loss> {
            let sent = direction.sender.join().map_err(|_| panicked())?;
            let arrivals = direction.receiver.join().map_err(|_| panicked())??;
            Ok(arrivals.loss(&sent))
        };
        let (forward, backward) = (finish(self.forward)?, finish(self.backward)?);
        Ok(PacedReport { between: self.between, forward, backward })
    }
}

/// Run and number, 8 bytes each, then filling.
const HEADER: usize = 16;

impl Direction {
    fn start(
        from: &UdpSocket,
        to: &UdpSocket,
        rate: u32,
        size: usize,
        run: u64,
        stop: &Arc<AtomicBool>,
    ) -> Result<Self> {
        let (from, to, stop) = (from.try_clone()?, to.try_clone()?, Arc::clone(stop));
        let received = Arc::new(AtomicU64::new(0));
        // Set once, when all is sent, to the number of packets plus one.
        let total = Arc::new(AtomicU64::new(0));
        let (counter, done) = (Arc::clone(&received), Arc::clone(&total));
        let receiver = thread::Builder::new()
            .name("paced-receive".to_owned())
            .spawn(move || receive(&to, run, &counter, &done))
            .context("start receiver")?;
        let sender = thread::Builder::new()
            .name("paced-send".to_owned())
            .spawn(move || {
                let sent = send(&from, rate, size, run, &stop);
                total.store(sent.packets + 1, Ordering::Release);
                sent
            })
            .context("start sender")?;
        Ok(Self { sender, receiver, received })
    }
}

fn send(socket: &UdpSocket, rate: u32, size: usize, run: u64, stop: &AtomicBool) -> Sent {
    let mut packet = vec![0x5a; size];
    packet[..8].copy_from_slice(&run.to_be_bytes());
    let mut sent = Sent { packets: 0, refused: 0 };
    let interval = Duration::from_secs(1) / rate;
    let start = Instant::now();
    let mut due = start;
    while !stop.load(Ordering::Relaxed) && start.elapsed() < LIMIT {
        packet[8..HEADER].copy_from_slice(&sent.packets.to_be_bytes());
        sent.packets += 1;
        if socket.send(&packet).is_err() {
            // An ICMP error for an earlier packet is reported here once, in this one's place.
            sent.refused += u64::from(socket.send(&packet).is_err());
        }
        due += interval;
        let now = Instant::now();
        if due > now {
            thread::sleep(due - now);
        } else if now - due > LATE {
            due = now;
        }
    }
    sent
}

/// What a receiver saw.
#[derive(Debug, Default)]
struct Arrivals {
    /// How often each number arrived.
    times: Vec<u8>,
    reordered: u64,
    longest_gap: Duration,
}

fn receive(socket: &UdpSocket, run: u64, received: &AtomicU64, total: &AtomicU64) -> Result<Arrivals> {
    let mut arrivals = Arrivals::default();
    let mut buffer = [0; 2048];
    let mut last: Option<Instant> = None;
    let mut highest = 0;
    let mut unique = 0;
    let mut quiet_since = Instant::now();
    loop {
        let total = total.load(Ordering::Acquire);
        if total > 0 && (unique == total - 1 || quiet_since.elapsed() > STRAGGLERS) {
            return Ok(arrivals);
        }
        let length = match socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if is_quiet(&error) => {
                if total == 0 {
                    quiet_since = Instant::now();
                }
                continue;
            }
            Err(error) => return Err(error).context("receive paced traffic"),
        };
        let now = Instant::now();
        quiet_since = now;
        let Some(number) = number(&buffer[..length], run) else { continue };
        if let Some(last) = last.replace(now) {
            arrivals.longest_gap = arrivals.longest_gap.max(now - last);
        }
        let index = usize::try_from(number)?;
        if arrivals.times.len() <= index {
            arrivals.times.resize(index + 1, 0);
        }
        arrivals.times[index] = arrivals.times[index].saturating_add(1);
        if arrivals.times[index] == 1 {
            unique += 1;
            received.store(unique, Ordering::Relaxed);
            arrivals.reordered += u64::from(number < highest);
        }
        highest = highest.max(number);
    }
}

fn number(packet: &[u8], run: u64) -> Option<u64> {
    let (of_run, rest) = packet.split_first_chunk()?;
    let number = u64::from_be_bytes(*rest.first_chunk()?);
    // A number no sender reaches in its time is not one of ours.
    (u64::from_be_bytes(*of_run) == run && number < 100_000_000).then_some(number)
}

impl Arrivals {
    fn loss(&self, sent: &Sent) -> Loss {
        let mut loss = Loss { sent: sent.packets, refused: sent.refused, ..Loss::default() };
        let mut run = 0;
        for number in 0..sent.packets as usize {
            let times = u64::from(self.times.get(number).copied().unwrap_or(0));
            if times == 0 {
                run += 1;
                loss.longest_loss = loss.longest_loss.max(run);
                loss.first_lost = loss.first_lost.or(Some(number as u64));
            } else {
                run = 0;
                loss.received += 1;
                loss.duplicated += times - 1;
            }
        }
        loss.reordered = self.reordered;
        loss.longest_gap = self.longest_gap;
        loss
    }
}

const _: () = assert!(TICK.as_millis() < STRAGGLERS.as_millis());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_never_came() {
        let arrivals = Arrivals { times: vec![1, 0, 0, 2, 1], ..Arrivals::default() };
        let loss = arrivals.loss(&Sent { packets: 6, refused: 1 });
        assert_eq!((loss.lost(), loss.longest_loss, loss.duplicated, loss.refused), (3, 2, 1, 1));
    }
}
