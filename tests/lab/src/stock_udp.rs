//! A node as stock flannel's udp backend makes one: a TUN device, and a loop that moves one packet by two system calls.
//!
//! The loop is that of upstream's proxy (pkg/backend/udp/proxy_amd64.c): one read and one sendto, one recvfrom and one
//! write, the TTL counted down on each way, ICMP for what nobody has. Nothing of it is the agent's.
#![expect(unsafe_code, reason = "a TUN device is made by ioctl(2) with a structure of the kernel's")]

use std::{
    fs::OpenOptions,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};
use ipnetwork::Ipv4Network;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::{read, write},
};

use super::{Etcd, Netns, Node, SubnetEnv};

/// Its port on every node.
const PORT: u16 = 8285;
/// IP and UDP headers.
const OVERHEAD: u32 = 28;
/// include/uapi/linux/if_tun.h.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca_u32 as libc::Ioctl;
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;

/// Another node's pods, and its address on the underlay.
type Routes = Vec<(Ipv4Network, Ipv4Addr)>;

/// The udp backend of one node. Its device goes with it.
#[derive(Debug)]
pub struct StockUdp {
    subnet: Ipv4Network,
    public_ip: Ipv4Addr,
    routes: Arc<RwLock<Routes>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl StockUdp {
    pub(super) fn create(node: &Node) -> Result<Self> {
        // Beyond the first hundred subnets, of which agents take theirs at random.
        let third = node.number().checked_add(200).context("a lab has room for 55 stock nodes")?;
        Self::start(node, Ipv4Network::new(Ipv4Addr::new(10, 244, third, 0), 24)?)
    }

    pub(super) fn start(node: &Node, subnet: Ipv4Network) -> Result<Self> {
        let network = Ipv4Network::new(Ipv4Addr::new(10, 244, 0, 0), 16)?;
        let mtu = 1500 - OVERHEAD;
        let public_ip = node.address();
        let (tun, socket) = node.netns().inside(|| {
            let tun = open_tun("flannel0")?;
            let socket = UdpSocket::bind(SocketAddrV4::new(public_ip, PORT))?;
            socket.set_nonblocking(true)?;
            Ok((tun, socket))
        })?;
        configure(node.netns(), subnet, network, mtu)?;
        SubnetEnv { network, subnet, mtu, ip_masq: false }.write(&node.subnet_file())?;
        let (routes, stop) = (Arc::new(RwLock::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let own = subnet.network();
        let thread = {
            let (routes, stop) = (routes.clone(), stop.clone());
            thread::Builder::new()
                .name("stock-udp".to_owned())
                .spawn(move || proxy(&tun, &socket, own, &routes, &stop))?
        };
        Ok(Self { subnet, public_ip, routes, stop, thread: Some(thread) })
    }

    /// Its pods' subnet.
    pub fn subnet(&self) -> Ipv4Network {
        self.subnet
    }

    /// Writes its lease: no more than its address.
    pub fn publish(&self, etcd: &Etcd) -> Result<()> {
        let lease = format!(r#"{{"PublicIP":"{}","PublicIPv6":null}}"#, self.public_ip);
        etcd.put_lease(self.subnet, &lease)
    }

    /// Does once what stock flannel's watch does: routes to all other leases, whatever their kind.
    pub fn sync(&self, etcd: &Etcd) -> Result<()> {
        let mut routes = Vec::new();
        for (subnet, lease) in etcd.leases()? {
            if subnet != self.subnet {
                let address = lease["PublicIP"].as_str().context("a lease without PublicIP")?;
                routes.push((subnet, address.parse().context("PublicIP")?));
            }
        }
        self.set_routes(routes);
        Ok(())
    }

    fn set_routes(&self, routes: Routes) {
        *self.routes.write().unwrap_or_else(PoisonError::into_inner) = routes;
    }

    /// Makes both peers of each other, without etcd.
    pub fn join(a: &Self, b: &Self) {
        a.set_routes(vec![(b.subnet, b.public_ip)]);
        b.set_routes(vec![(a.subnet, a.public_ip)]);
    }
}

impl Drop for StockUdp {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open_tun(name: &str) -> Result<OwnedFd> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&(IFF_TUN | IFF_NO_PI).to_ne_bytes());
    // SAFETY: the structure is as long as the kernel reads and writes.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
    nix::errno::Errno::result(result).with_context(|| format!("make {name}"))?;
    Ok(file.into())
}

fn configure(netns: &Netns, subnet: Ipv4Network, network: Ipv4Network, mtu: u32) -> Result<()> {
    netns.ip_batch(&format!(
        "addr add {}/32 dev flannel0\nlink set flannel0 mtu {mtu}\nlink set flannel0 up\nroute add {network} dev flannel0\n",
        subnet.network()
    ))
}

/// Upstream's loop.
fn proxy(tun: &OwnedFd, socket: &UdpSocket, own: Ipv4Addr, routes: &RwLock<Routes>, stop: &AtomicBool) {
    let mut buffer = [0; 65536];
    while !stop.load(Ordering::Relaxed) {
        let mut fds =
            [PollFd::new(tun.as_fd(), PollFlags::POLLIN), PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::from(200u8));
        let mut active = true;
        while active && !stop.load(Ordering::Relaxed) {
            let outward = tun_to_udp(tun, socket, own, routes, &mut buffer);
            let inward = udp_to_tun(tun, socket, &mut buffer);
            active = outward || inward;
        }
    }
}

fn tun_to_udp(
    tun: &OwnedFd,
    socket: &UdpSocket,
    own: Ipv4Addr,
    routes: &RwLock<Routes>,
    buffer: &mut [u8],
) -> bool {
    let Ok(len) = read(tun, buffer) else { return false };
    let packet = &mut buffer[..len];
    if len < 20 {
        return true;
    }
    let destination = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]);
    let to = {
        let routes = routes.read().unwrap_or_else(PoisonError::into_inner);
        routes.iter().find(|(subnet, _)| subnet.contains(destination)).map(|(_, to)| *to)
    };
    match to {
        None => drop(write(tun, &net_unreachable(packet, own))),
        Some(to) => {
            if decrement_ttl(packet) {
                let _ = socket.send_to(packet, SocketAddrV4::new(to, PORT));
            }
        }
    }
    true
}

fn udp_to_tun(tun: &OwnedFd, socket: &UdpSocket, buffer: &mut [u8]) -> bool {
    let Ok((len, _)) = socket.recv_from(buffer) else { return false };
    let packet = &mut buffer[..len];
    if len >= 20 && decrement_ttl(packet) {
        let _ = write(tun, packet);
    }
    true
}

/// As upstream's: the checksum goes up by what the TTL goes down.
fn decrement_ttl(packet: &mut [u8]) -> bool {
    packet[8] = packet[8].wrapping_sub(1);
    if packet[8] == 0 {
        return false;
    }
    let sum = u32::from(u16::from_be_bytes([packet[10], packet[11]])) + 0x0100;
    packet[10..12].copy_from_slice(&(((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    true
}

fn net_unreachable(packet: &[u8], own: Ipv4Addr) -> Vec<u8> {
    let quoted = &packet[..packet.len().min(28)];
    let mut answer = vec![0x45, 0, 0, (28 + quoted.len()) as u8, 0, 0, 0, 0, 8, 1, 0, 0];
    answer.extend_from_slice(&own.octets());
    answer.extend_from_slice(&packet[12..16]);
    let checksum = checksum(&answer);
    answer[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut icmp = vec![3, 0, 0, 0, 0, 0, 0, 0];
    icmp.extend_from_slice(quoted);
    let sum = self::checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    answer.extend(icmp);
    answer
}

fn checksum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}
