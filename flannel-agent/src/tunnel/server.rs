//! The two threads that serve the device.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, PoisonError, RwLock, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use tracing::{error, warn};

use super::{
    answers::Answers, counters::Counters, device::Device, inward::Inward, outward::Outward, peers::Peers,
};

/// After an error that may last.
const PAUSE: Duration = Duration::from_millis(100);

/// A device that is served.
#[derive(Debug)]
pub struct Tunnel {
    device: Arc<Device>,
    socket: Arc<UdpSocket>,
    shared: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

/// What both threads have in common.
#[derive(Debug)]
struct State {
    peers: RwLock<Peers>,
    counters: Arc<Counters>,
    /// Source of answers, as a number.
    address: AtomicU32,
    /// Readable once the threads are to end.
    stop: EventFd,
    /// The device is gone.
    ended: AtomicBool,
}

/// The tunnel cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// No thread or no descriptor.
    #[error("cannot start the threads of the udp backend's tunnel: {0}")]
    Threads(#[source] io::Error),
}

impl Tunnel {
    /// Serves `device` by `socket` between this node, which is `address` in the tunnel, and `peers`.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(
        device: Device,
        socket: Arc<UdpSocket>,
        address: Ipv4Addr,
        peers: Peers,
    ) -> Result<Self, TunnelError> {
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| TunnelError::Threads(errno.into()))?;
        let shared = Arc::new(State {
            peers: RwLock::new(peers),
            counters: Arc::new(Counters::new()),
            address: AtomicU32::new(address.into()),
            stop,
            ended: AtomicBool::new(false),
        });
        let mut tunnel = Self { device: Arc::new(device), socket, shared, threads: Vec::new() };
        tunnel.serve()?;
        Ok(tunnel)
    }

    fn serve(&mut self) -> Result<(), TunnelError> {
        self.spawn("udp-outward", outward)?;
        self.spawn("udp-inward", inward)
    }

    /// Serves the same device by another socket. What comes meanwhile waits.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn restart(&mut self, socket: Arc<UdpSocket>) -> Result<(), TunnelError> {
        self.stop();
        self.socket = socket;
        self.serve()
    }

    fn stop(&mut self) {
        let _ = self.shared.stop.write(1);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let _ = self.shared.stop.read();
    }

    /// Answers as the node at `address` in the tunnel.
    pub fn set_address(&self, address: Ipv4Addr) {
        self.shared.address.store(address.into(), Ordering::Relaxed);
    }

    fn spawn(
        &mut self,
        name: &str,
        serve: fn(&Device, &UdpSocket, &State) -> Result<(), Errno>,
    ) -> Result<(), TunnelError> {
        let (device, socket, state) = (self.device.clone(), self.socket.clone(), self.shared.clone());
        let run = move || {
            if let Err(errno) = serve(&device, &socket, &state) {
                let device = device.name();
                match errno {
                    Errno::EBADFD => warn!(device, "the TUN device is gone"),
                    errno => error!(device, %errno, "the udp tunnel has ended"),
                }
                state.ended.store(true, Ordering::Relaxed);
            }
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(run).map_err(TunnelError::Threads)?;
        self.threads.push(thread);
        Ok(())
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether it is still served: not so once the device was deleted.
    pub fn is_served(&self) -> bool {
        !self.shared.ended.load(Ordering::Relaxed)
    }

    /// The peers, to look at or to change: from the next batch on they are as they are left.
    pub fn peers(&self) -> RwLockWriteGuard<'_, Peers> {
        self.shared.peers.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was carried, and what not.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop();
    }
}

impl State {
    /// Waits until something can be read: whether that is not the sign to stop.
    fn wait(&self, source: BorrowedFd<'_>) -> bool {
        let mut fds =
            [PollFd::new(source, PollFlags::POLLIN), PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                Err(_) => thread::sleep(PAUSE),
                Ok(_) => return fds[1].revents().is_none_or(|events| events.is_empty()),
            }
        }
    }
}

fn outward(device: &Device, socket: &UdpSocket, state: &State) -> Result<(), Errno> {
    let mut batch = Outward::new();
    let mut answers = Answers::new();
    while state.wait(device.as_fd()) {
        answers.from = Ipv4Addr::from(state.address.load(Ordering::Relaxed)).octets();
        while batch.turn(device, socket, &state.peers, &mut answers, &state.counters)? {
            if state.ended.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn inward(device: &Device, socket: &UdpSocket, state: &State) -> Result<(), Errno> {
    let mut batch = Inward::new(device);
    while state.wait(socket.as_fd()) && !state.ended.load(Ordering::Relaxed) {
        match batch.turn(device, socket, &state.peers, &state.counters) {
            Ok(_) => {}
            Err(Errno::EBADFD) => return Err(Errno::EBADFD),
            Err(errno) => {
                warn!(%errno, "cannot receive from other nodes");
                thread::sleep(PAUSE);
            }
        }
    }
    Ok(())
}
