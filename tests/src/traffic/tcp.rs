//! TCP in bulk, as any program sends it: the kernel cuts it into large GSO packets.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::{Endpoint, content::Content};

/// How long a connection may stand still before it counts as broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes per write: many segments, so that the stack sends the largest packets it can.
const CHUNK: usize = 256 << 10;

/// Sends `bytes` over one connection from `from` to `to`, every byte checked; how long it took.
pub fn bulk(from: &Endpoint, to: &Endpoint, bytes: u64) -> Result<Duration> {
    transfer(from, to, bytes).with_context(|| format!("TCP from {} to {}", from.name(), to.name()))
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
pub(super) fn accept(listener: &TcpListener, timeout: Duration) -> Result<(TcpStream, SocketAddr)> {
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
