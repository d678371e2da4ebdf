//! One message there and back, again and again: the low-noise measure of what a path costs.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{Subject, surroundings::Cpus};
use crate::samples::Samples;

/// Port of the server.
pub(super) const PORT: u16 = 11_111;
/// Bytes of a message.
const SIZE: usize = 64;
/// Before anything counts: caches fill, flows are learned.
const WARM_UP: Duration = Duration::from_millis(200);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// What the client says last.
const END: u8 = 0xff;

/// p50 and p99 over TCP, microseconds one way.
pub(super) fn tcp(subject: &Subject, seconds: u32, cpus: Cpus) -> Result<Vec<f64>> {
    let listener =
        subject.server().netns().inside(|| TcpListener::bind(subject.server_at(PORT)).context("listen"))?;
    let server = move || -> Result<()> {
        let (stream, _) = flannel_lab::traffic::tcp::accept(&listener, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        answer(Bytes(stream))
    };
    let client = |target: SocketAddr| -> Result<Bytes> {
        let stream = TcpStream::connect_timeout(&target, PATIENCE).context("connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Bytes(stream))
    };
    run(subject, seconds, cpus, server, client)
}

/// p50 and p99 over UDP, microseconds one way.
pub(super) fn udp(subject: &Subject, seconds: u32, cpus: Cpus) -> Result<Vec<f64>> {
    let socket =
        subject.server().netns().inside(|| UdpSocket::bind(subject.server_at(PORT)).context("bind"))?;
    let server = move || -> Result<()> {
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut first = [0; SIZE];
        let (_, client) = socket.recv_from(&mut first).context("the first message")?;
        socket.connect(client)?;
        socket.send(&first)?;
        answer(Datagrams(socket))
    };
    let client = |target: SocketAddr| -> Result<Datagrams> {
        let any: SocketAddr = if target.is_ipv6() { "[::]:0".parse()? } else { "0.0.0.0:0".parse()? };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(target).context("connect")?;
        Ok(Datagrams(socket))
    };
    run(subject, seconds, cpus, server, client)
}

/// One end of a conversation of messages.
trait Messages {
    fn send(&mut self, message: &[u8; SIZE]) -> std::io::Result<()>;
    fn receive(&mut self, message: &mut [u8; SIZE]) -> std::io::Result<()>;
}

struct Bytes(TcpStream);

impl Messages for Bytes {
    fn send(&mut self, message: &[u8; SIZE]) -> std::io::Result<()> {
        self.0.write_all(message)
    }

    fn receive(&mut self, message: &mut [u8; SIZE]) -> std::io::Result<()> {
        self.0.read_exact(message)
    }
}

struct Datagrams(UdpSocket);

impl Messages for Datagrams {
    fn send(&mut self, message: &[u8; SIZE]) -> std::io::Result<()> {
        self.0.send(message).map(drop)
    }

    fn receive(&mut self, message: &mut [u8; SIZE]) -> std::io::Result<()> {
        match self.0.recv(message)? {
            SIZE => Ok(()),
            _ => Err(ErrorKind::InvalidData.into()),
        }
    }
}

/// Sends back what comes, until the end is said.
fn answer(mut end: impl Messages) -> Result<()> {
    let mut message = [0; SIZE];
    loop {
        end.receive(&mut message).context("the server waits for a message")?;
        if message[0] == END {
            return Ok(());
        }
        end.send(&message).context("answer")?;
    }
}

fn run<M: Messages>(
    subject: &Subject,
    seconds: u32,
    cpus: Cpus,
    server: impl FnOnce() -> Result<()> + Send,
    client: impl FnOnce(SocketAddr) -> Result<M> + Send,
) -> Result<Vec<f64>> {
    let target = subject.target_at(PORT);
    let length = Duration::from_secs(seconds.into());
    let latencies = thread::scope(|scope| {
        let server = scope.spawn(|| {
            Cpus::pin(cpus.second)?;
            server()
        });
        let latencies = subject.client().netns().inside(|| {
            Cpus::pin(cpus.first)?;
            ask(client(target)?, length)
        })?;
        server.join().map_err(|_| anyhow!("the server panicked"))??;
        Ok::<_, anyhow::Error>(latencies)
    })?;
    Ok(vec![latencies.quantile(0.5), latencies.quantile(0.99)])
}

/// Half of each round trip over `length`, microseconds.
fn ask(mut end: impl Messages, length: Duration) -> Result<Samples> {
    let mut samples = Samples::default();
    let (sent, mut answered) = ([1; SIZE], [0; SIZE]);
    let begin = Instant::now();
    loop {
        let before = Instant::now();
        let at = before - begin;
        if at > WARM_UP + length {
            break;
        }
        end.send(&sent).context("send")?;
        end.receive(&mut answered).context("no answer")?;
        if at > WARM_UP {
            samples.push(before.elapsed().as_secs_f64() * 1e6 / 2.0);
        }
    }
    ensure!(answered == sent && !samples.is_empty(), "no answers");
    end.send(&[END; SIZE])?;
    Ok(samples)
}
