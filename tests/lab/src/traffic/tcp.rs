//! TCP in bulk, as any program sends it: the kernel cuts it into large GSO packets.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::{Endpoint, content::Content};

/// How long a connection may stand still before it counts as broken.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same of a stream, whose sender waits twice as long after each attempt that is lost.
const STREAM_PATIENCE: Duration = Duration::from_secs(30);

/// Bytes per write: many segments, so that the stack sends the largest packets it can.
const CHUNK: usize = 256 << 10;

/// Sends `bytes` over one connection from `from` to `to`, every byte checked; how long it took.
pub fn bulk(from: &Endpoint, to: &Endpoint, bytes: u64) -> Result<Duration> {
    transfer(from, to, bytes).with_context(|| format!("TCP from {} to {}", from.name(), to.name()))
}

/// One connection that carries as much as it can until it is stopped, every byte checked.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    sender: JoinHandle<Result<()>>,
    receiver: JoinHandle<Result<Duration>>,
}

impl Stream {
    /// Starts one from `from` to `to`.
    pub fn start(from: &Endpoint, to: &Endpoint) -> Result<Self> {
        let listener = to.netns().inside(|| TcpListener::bind(to.socket_address(0)).context("listen"))?;
        let destination = listener.local_addr()?;
        let seed = rand::random();
        let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let progress = Arc::clone(&received);
        let receiver = thread::spawn(move || follow(&listener, seed, &progress));
        let stream =
            from.netns().inside(|| TcpStream::connect_timeout(&destination, PATIENCE).context("connect"))?;
        let stopped = Arc::clone(&stop);
        let sender = thread::spawn(move || pour(stream, seed, &stopped));
        Ok(Self { stop, received, sender, receiver })
    }

    /// Bytes that have arrived so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Ends it; the bytes that arrived, and the longest time between two arrivals.
    pub fn stop(self) -> Result<(u64, Duration)> {
        self.stop.store(true, Ordering::Relaxed);
        let panicked = || anyhow!("a thread of the stream panicked");
        let sent = self.sender.join().map_err(|_| panicked())?;
        let longest = self.receiver.join().map_err(|_| panicked())?;
        sent.context("sender")?;
        let longest = longest.context("receiver")?;
        Ok((self.received.load(Ordering::Relaxed), longest))
    }
}

fn pour(mut stream: TcpStream, seed: u64, stop: &AtomicBool) -> Result<()> {
    stream.set_write_timeout(Some(STREAM_PATIENCE))?;
    let mut content = Content::new(seed);
    let mut buffer = vec![0; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        let place = content.position();
        content.fill(&mut buffer);
        stream.write_all(&buffer).with_context(|| format!("write at {place}"))?;
    }
    Ok(())
}

fn follow(listener: &TcpListener, seed: u64, received: &AtomicU64) -> Result<Duration> {
    let (mut stream, _) = accept(listener, PATIENCE)?;
    stream.set_read_timeout(Some(STREAM_PATIENCE))?;
    let mut content = Content::new(seed);
    let mut buffer = vec![0; CHUNK];
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    loop {
        let length = stream.read(&mut buffer).with_context(|| format!("read at {}", content.position()))?;
        if length == 0 {
            return Ok(longest);
        }
        longest = longest.max(last.elapsed());
        last = Instant::now();
        content
            .check(&buffer[..length])
            .map_err(|place| anyhow!("byte {place} differs from what was sent"))?;
        received.store(content.position(), Ordering::Relaxed);
    }
}

fn transfer(from: &Endpoint, to: &Endpoint, bytes: u64) -> Result<Duration> {
    let listener = to.netns().inside(|| TcpListener::bind(to.socket_address(0)).context("listen"))?;
    let destination = listener.local_addr()?;
    let seed = rand::random();
    let receiver = thread::spawn(move || receive(&listener, seed));
    let start = Instant::now();
    let sent = from.netns().inside(|| send(destination, seed, bytes));
    let received = receiver.join().map_err(|_| anyhow!("receiver panicked"))?;
    sent?;
    let received = received?;
    ensure!(received == bytes, "{received} of {bytes} bytes arrived");
    Ok(start.elapsed())
}

fn send(destination: SocketAddr, seed: u64, bytes: u64) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&destination, PATIENCE).context("connect")?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut content = Content::new(seed);
    let mut buffer = vec![0; CHUNK];
    while content.position() < bytes {
        let length = (bytes - content.position()).min(CHUNK as u64) as usize;
        let place = content.position();
        content.fill(&mut buffer[..length]);
        stream.write_all(&buffer[..length]).with_context(|| format!("write at {place}"))?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    // The receiver's end of stream says that it has read all, so the time is that of the whole transfer.
    let trailing = stream.read(&mut buffer).context("wait for the receiver")?;
    ensure!(trailing == 0, "the receiver answered");
    Ok(())
}

fn receive(listener: &TcpListener, seed: u64) -> Result<u64> {
    let (mut stream, _) = accept(listener, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut content = Content::new(seed);
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = stream.read(&mut buffer).with_context(|| format!("read at {}", content.position()))?;
        if length == 0 {
            return Ok(content.position());
        }
        content
            .check(&buffer[..length])
            .map_err(|place| anyhow!("byte {place} differs from what was sent"))?;
    }
}

/// Waits up to `timeout` for a connection.
pub fn accept(listener: &TcpListener, timeout: Duration) -> Result<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true)?;
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, source)) => {
                stream.set_nonblocking(false)?;
                return Ok((stream, source));
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if start.elapsed() > timeout {
                    bail!("no connection within {timeout:?}");
                }
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error).context("accept"),
        }
    }
}
