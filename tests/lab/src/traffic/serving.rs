//! Pods behind a Service, and clients that know the Service's address only.

use std::{
    net::{SocketAddr, TcpListener, UdpSocket},
    time::{Duration, Instant},
};

use super::{
    Dialogue, Endpoint,
    content::Content,
    dialogue::{listen, once_free},
};
use anyhow::{Context as _, Result, ensure};

/// How long a question may take, one way.
const PATIENCE: Duration = Duration::from_secs(3);

fn udp_socket(at: &Endpoint, port: u16) -> Result<UdpSocket> {
    once_free(|| UdpSocket::bind(at.socket_address(port)))
        .with_context(|| format!("bind UDP at {}:{port}", at.name()))
}

/// Pods that answer TCP and UDP at one port.
#[derive(Debug)]
pub struct Serving {
    /// The pods.
    pub backends: Vec<Endpoint>,
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
}

impl Serving {
    /// Opens `port` of these pods.
    pub fn new(backends: &[Endpoint], port: u16) -> Result<Self> {
        let udp = |at: &Endpoint| -> Result<UdpSocket> {
            let socket = at.netns().inside(|| udp_socket(at, port))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        Ok(Self {
            backends: backends.to_vec(),
            tcp: backends.iter().map(|at| listen(at, port)).collect::<Result<_>>()?,
            udp: backends.iter().map(udp).collect::<Result<_>>()?,
        })
    }

    /// From `port` of `client` (0 for any) to `destination`, behind which these pods are.
    pub fn connect(
        &self,
        client: &Endpoint,
        port: u16,
        destination: impl Into<SocketAddr>,
    ) -> Result<Dialogue> {
        Dialogue::through(client, port, destination, &self.tcp.iter().collect::<Vec<_>>())
    }

    /// The number of the backend that serves a connection.
    pub fn backend(&self, dialogue: &Dialogue) -> Result<usize> {
        let address = dialogue.server.local_addr()?.ip();
        let place = self.backends.iter().position(|backend| backend.address() == address);
        place.with_context(|| format!("{address} is no backend"))
    }

    /// A socket of `client` that asks `destination` over and over, from a port of its own.
    pub fn asker(client: &Endpoint, destination: impl Into<SocketAddr>) -> Result<UdpSocket> {
        Self::asker_at(client, 0, destination)
    }

    /// The same from `port` (0 for any).
    pub fn asker_at(client: &Endpoint, port: u16, destination: impl Into<SocketAddr>) -> Result<UdpSocket> {
        let socket = client.netns().inside(|| udp_socket(client, port))?;
        socket.connect(destination.into())?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    }

    /// One question and its answer; the number of the backend that gave it, and whom it took for the client.
    pub fn ask(&self, asker: &UdpSocket, number: u64) -> Result<(usize, SocketAddr)> {
        self.ask_long(asker, number, 100)
    }

    /// The same with a question of `length` bytes, and so long an answer.
    pub fn ask_long(&self, asker: &UdpSocket, number: u64, length: usize) -> Result<(usize, SocketAddr)> {
        let (question, backend, from) = self.told(asker, number, length)?;
        let mut heard = vec![0; length + 1];
        self.udp[backend].send_to(&question, from)?;
        let length = asker.recv(&mut heard).with_context(|| format!("no answer to {number}"))?;
        ensure!(heard[..length] == question, "the answer arrived changed");
        Ok((backend, from))
    }

    /// A question that is not answered; the number of the backend that got it.
    pub fn tell(&self, asker: &UdpSocket, number: u64) -> Result<usize> {
        self.told(asker, number, 100).map(|(_, backend, _)| backend)
    }

    /// Sends a question; what was sent, which backend has got it, and whom that took for the client.
    fn told(&self, asker: &UdpSocket, number: u64, length: usize) -> Result<(Vec<u8>, usize, SocketAddr)> {
        let mut question = vec![0; length];
        Content::new(number).fill(&mut question);
        asker.send(&question)?;
        let mut heard = vec![0; length + 1];
        let start = Instant::now();
        let (backend, from) = loop {
            let arrived = self.udp.iter().enumerate().find_map(|(number, socket)| {
                socket.recv_from(&mut heard).ok().map(|(length, from)| (number, length, from))
            });
            if let Some((number, length, from)) = arrived {
                ensure!(heard[..length] == question, "the question arrived changed");
                break (number, from);
            }
            ensure!(start.elapsed() < PATIENCE, "question {number} did not arrive");
            std::thread::yield_now();
        };
        Ok((question, backend, from))
    }

    /// Long and short connections and questions of `client` to two backends behind `destination`, for longer
    /// than acceptance holds in these tests.
    pub fn be_used(&self, client: &Endpoint, destination: impl Into<SocketAddr>) -> Result<()> {
        let destination = destination.into();
        let mut long = Vec::new();
        let mut served = [0; 2];
        while served.contains(&0) || long.len() < 6 {
            ensure!(long.len() < 100, "{served:?} connections to the backends");
            let dialogue = self.connect(client, 0, destination)?;
            served[self.backend(&dialogue)?] += 1;
            long.push(dialogue);
        }
        let askers = (0..12).map(|_| Self::asker(client, destination)).collect::<Result<Vec<_>>>()?;
        let mut asked = [0; 2];
        for round in 0..12 {
            long.iter_mut().try_for_each(|dialogue| dialogue.exchanges(20))?;
            for _ in 0..5 {
                let mut short = self.connect(client, 0, destination)?;
                short.exchange()?;
                short.close_at_the_server()?;
            }
            for (number, asker) in askers.iter().enumerate() {
                asked[self.ask(asker, round * 100 + number as u64)?.0] += 1;
            }
            std::thread::sleep(Duration::from_millis(400));
        }
        ensure!(!asked.contains(&0), "{asked:?} questions to the backends");
        Ok(())
    }
}
