//! One connection that says something now and then, and is looked at in between.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, connect, recv, setsockopt, socket,
    sockopt::{Linger, ReuseAddr},
};

use super::{Endpoint, content::Content};

/// How long an answer may take unless a test says otherwise.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes that are written or read at once.
const CHUNK: usize = 1 << 20;

/// How long what has been closed may still be in use.
const FREED: Duration = Duration::from_secs(1);

/// A TCP connection with both ends at hand.
#[derive(Debug)]
pub struct Dialogue {
    /// The end that connected.
    pub client: TcpStream,
    /// The end that accepted.
    pub server: TcpStream,
    said: u64,
}

/// Whether it is by a refusal that a connection did not come about.
pub fn is_refused(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Binds or connects, perhaps to what has just been closed: a program that another thread starts at this moment has a copy
/// of each socket until it runs.
pub(super) fn once_free<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let start = Instant::now();
    loop {
        match bind() {
            Err(error)
                if matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable)
                    && start.elapsed() < FREED =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// Listens at `port` of `at`, 0 for any.
pub fn listen(at: &Endpoint, port: u16) -> Result<TcpListener> {
    let listener = at.netns().inside(|| {
        once_free(|| TcpListener::bind(at.socket_address(port)))
            .with_context(|| format!("listen at {}:{port}", at.name()))
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Dialogue {
    /// From any port of `from` to any port of `to`.
    pub fn open(from: &Endpoint, to: &Endpoint) -> Result<Self> {
        let listener = listen(to, 0)?;
        let port = listener.local_addr()?.port();
        Self::through(from, 0, to.socket_address(port), &[&listener])
    }

    /// From `port` of `from` (0 for any) to `destination`, behind which one of `listeners` accepts.
    pub fn through(
        from: &Endpoint,
        port: u16,
        destination: impl Into<SocketAddr>,
        listeners: &[&TcpListener],
    ) -> Result<Self> {
        let destination = destination.into();
        let family = if destination.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let client = from.netns().inside(|| {
            let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            setsockopt(&socket, ReuseAddr, &true)?;
            bind(socket.as_raw_fd(), &SockaddrStorage::from(from.socket_address(port)))
                .with_context(|| format!("bind to port {port}"))?;
            let stream = TcpStream::from(socket);
            // For a blocking connect, the time that a send may take is the time it may take.
            stream.set_write_timeout(Some(PATIENCE))?;
            once_free(|| Ok(connect(stream.as_raw_fd(), &SockaddrStorage::from(destination))?))
                .with_context(|| format!("connect to {destination} from {}", from.name()))?;
            Ok(stream)
        })?;
        let server = accept(listeners)?;
        for end in [&client, &server] {
            end.set_nodelay(true)?;
            end.set_read_timeout(Some(PATIENCE))?;
            end.set_write_timeout(Some(PATIENCE))?;
        }
        Ok(Self { client, server, said: 0 })
    }

    /// Says something and hears it answered, every byte checked; how long that took.
    pub fn exchange(&mut self) -> Result<Duration> {
        self.exchange_within(PATIENCE)
    }

    /// The same, but not longer than `patience` each way.
    pub fn exchange_within(&mut self, patience: Duration) -> Result<Duration> {
        let start = Instant::now();
        self.said += 1;
        let mut said = [0; 128];
        Content::new(self.said).fill(&mut said);
        for (mut from, mut to) in [(&self.client, &self.server), (&self.server, &self.client)] {
            let mut heard = [0; 128];
            from.write_all(&said).context("write")?;
            to.set_read_timeout(Some(patience))?;
            to.read_exact(&mut heard).context("read")?;
            ensure!(heard == said, "other bytes arrived than were sent");
        }
        Ok(start.elapsed())
    }

    /// Exchanges `times` in a row.
    pub fn exchanges(&mut self, times: u32) -> Result<()> {
        (0..times).try_for_each(|time| self.exchange().map(drop).with_context(|| format!("exchange {time}")))
    }

    /// The client sends `bytes` as fast as it can; the server counts them and looks at none.
    pub fn pour(&mut self, bytes: u64) -> Result<()> {
        let (mut client, server) = (&self.client, &self.server);
        std::thread::scope(|scope| {
            let sender = scope.spawn(move || -> Result<()> {
                let chunk = vec![0; CHUNK];
                let mut left = bytes;
                while left > 0 {
                    let length = left.min(CHUNK as u64);
                    client.write_all(&chunk[..length as usize]).context("write")?;
                    left -= length;
                }
                Ok(())
            });
            let mut chunk = vec![0; CHUNK];
            let mut left = bytes;
            while left > 0 {
                let room = left.min(CHUNK as u64) as usize;
                // TCP throws away what is read so.
                let length = recv(server.as_raw_fd(), &mut chunk[..room], MsgFlags::MSG_TRUNC)
                    .with_context(|| format!("read with {left} of {bytes} bytes to come"))?;
                ensure!(length > 0, "the end, with {left} of {bytes} bytes to come");
                left -= length as u64;
            }
            sender.join().unwrap_or_else(|_| bail!("the sender panicked"))
        })
    }

    /// The client has no more to say; the server hears that, and says `bytes` before it closes, too.
    pub fn half_close(mut self, bytes: u64) -> Result<()> {
        self.client.shutdown(Shutdown::Write)?;
        let heard = self.server.read(&mut [0; 1]).context("read the end")?;
        ensure!(heard == 0, "the server heard more after the end");
        let mut server = self.server;
        std::thread::scope(|scope| {
            let speaker = scope.spawn(move || -> Result<()> {
                let mut content = Content::new(bytes);
                let mut buffer = vec![0; 16 << 10];
                while content.position() < bytes {
                    content.fill(&mut buffer);
                    server.write_all(&buffer).context("write after the client's end")?;
                }
                Ok(())
            });
            let mut content = Content::new(bytes);
            let mut buffer = vec![0; 64 << 10];
            loop {
                let length = self.client.read(&mut buffer).context("read after our own end")?;
                if length == 0 {
                    break;
                }
                ensure!(content.check(&buffer[..length]).is_ok(), "other bytes arrived than were sent");
            }
            ensure!(content.position() >= bytes, "{} of {bytes} bytes arrived", content.position());
            speaker.join().unwrap_or_else(|_| bail!("the speaker panicked"))
        })
    }

    /// The server closes first, and so is the one that waits out stray segments.
    pub fn close_at_the_server(mut self) -> Result<()> {
        drop(self.server);
        let heard = self.client.read(&mut [0; 1]).context("read the end")?;
        ensure!(heard == 0, "the client heard more after the end");
        Ok(())
    }

    /// The client resets the connection, and the server sees that.
    pub fn reset(self) -> Result<()> {
        let Self { client, server, .. } = self;
        reset(client)?;
        is_reset(server)
    }

    /// The server resets the connection, and the client sees that.
    pub fn reset_at_the_server(self) -> Result<()> {
        let Self { client, server, .. } = self;
        reset(server)?;
        is_reset(client)
    }

    /// The client resets the connection and waits for nothing: the end of the server.
    pub fn reset_at_once(self) -> Result<TcpStream> {
        reset(self.client)?;
        Ok(self.server)
    }
}

fn reset(end: TcpStream) -> Result<()> {
    setsockopt(&end, Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    Ok(())
}

fn is_reset(mut end: TcpStream) -> Result<()> {
    match end.read(&mut [0; 1]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => bail!("the other end saw no reset: {other:?}"),
    }
}

fn accept(listeners: &[&TcpListener]) -> Result<TcpStream> {
    let start = Instant::now();
    loop {
        for listener in listeners {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("accept"),
            }
        }
        ensure!(start.elapsed() < PATIENCE, "nobody accepted within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
