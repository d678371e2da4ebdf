//! One small message to and fro. With both ends on one CPU no wake-up crosses CPUs, and what is left is
//! the cost of the path.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};

use super::surroundings::{Cpus, pin_thread};
use crate::traffic::Endpoint;

/// Bytes of each message.
const SIZE: usize = 64;

/// Round trips before the clock starts.
const WARM_UP: u32 = 2_000;

/// How long an answer may take before the measurement fails.
const PATIENCE: Duration = Duration::from_secs(3);

/// Microseconds one way over TCP.
pub(super) fn tcp(client: &Endpoint, server: &Endpoint, seconds: u32, cpus: Cpus) -> Result<f64> {
    let listener = server.netns().inside(|| Ok(TcpListener::bind((server.address(), 0))?))?;
    let address = listener.local_addr()?;
    let ping =
        client.netns().inside(|| Ok(TcpStream::connect_timeout(&address, PATIENCE)?)).context("connect")?;
    let (pong, _) = listener.accept().context("accept")?;
    for stream in [&ping, &pong] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
    }
    between(Tcp(ping), Tcp(pong), seconds, cpus)
}

/// Microseconds one way over UDP. A lost message fails the measurement.
pub(super) fn udp(client: &Endpoint, server: &Endpoint, seconds: u32, cpus: Cpus) -> Result<f64> {
    let bind = |end: &Endpoint| end.netns().inside(|| Ok(UdpSocket::bind((end.address(), 0))?));
    let (ping, pong) = (bind(client)?, bind(server)?);
    ping.connect(pong.local_addr()?)?;
    pong.connect(ping.local_addr()?)?;
    for socket in [&ping, &pong] {
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    between(Udp(ping), Udp(pong), seconds, cpus)
}

/// One end. Messages have one size, so that a stream is a sequence of them.
trait End: Send {
    fn put(&mut self, message: &[u8; SIZE]) -> std::io::Result<()>;
    /// False when the other end has finished.
    fn take(&mut self, message: &mut [u8; SIZE]) -> std::io::Result<bool>;
    /// Tells the other end that this was all.
    fn finish(&mut self) -> std::io::Result<()>;
}

struct Tcp(TcpStream);

impl End for Tcp {
    fn put(&mut self, message: &[u8; SIZE]) -> std::io::Result<()> {
        self.0.write_all(message)
    }

    fn take(&mut self, message: &mut [u8; SIZE]) -> std::io::Result<bool> {
        match self.0.read_exact(message) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            outcome => outcome.map(|()| true),
        }
    }

    fn finish(&mut self) -> std::io::Result<()> {
        self.0.shutdown(std::net::Shutdown::Both)
    }
}

struct Udp(UdpSocket);

impl End for Udp {
    fn put(&mut self, message: &[u8; SIZE]) -> std::io::Result<()> {
        self.0.send(message).map(drop)
    }

    fn take(&mut self, message: &mut [u8; SIZE]) -> std::io::Result<bool> {
        Ok(self.0.recv(message)? == SIZE)
    }

    fn finish(&mut self) -> std::io::Result<()> {
        // A message of another size.
        self.0.send(&[]).map(drop)
    }
}

fn between(mut ping: impl End + 'static, mut pong: impl End, seconds: u32, cpus: Cpus) -> Result<f64> {
    thread::scope(|scope| {
        let answering = scope.spawn(move || -> Result<()> {
            pin_thread(cpus.first)?;
            let mut message = [0; SIZE];
            while pong.take(&mut message).context("wait for a message")? {
                pong.put(&message).context("answer")?;
            }
            Ok(())
        });
        let asking = scope.spawn(move || -> Result<f64> {
            pin_thread(cpus.first)?;
            let one_way = ask(&mut ping, Duration::from_secs(seconds.into()));
            ping.finish()?;
            one_way
        });
        let one_way = asking.join().map_err(|_| anyhow!("panicked"))?;
        let answered = answering.join().map_err(|_| anyhow!("panicked"))?;
        let one_way = one_way?;
        answered?;
        Ok(one_way)
    })
}

fn ask(end: &mut impl End, length: Duration) -> Result<f64> {
    let mut message = [7; SIZE];
    let mut round_trip = || -> Result<()> {
        end.put(&message).context("send")?;
        if !end.take(&mut message).context("wait for the answer")? {
            bail!("the other end has gone");
        }
        Ok(())
    };
    for _ in 0..WARM_UP {
        round_trip()?;
    }
    let start = Instant::now();
    let mut count = 0u32;
    while start.elapsed() < length {
        // The clock costs tens of nanoseconds: read once a batch it does not count.
        for _ in 0..64 {
            round_trip()?;
        }
        count += 64;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(count) / 2.0)
}
