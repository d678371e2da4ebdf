//! The TUN device.
#![expect(
    unsafe_code,
    reason = "a TUN device is made and configured by ioctl(2) with a structure of the kernel's"
)]

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
};

use nix::{errno::Errno, libc, sys::uio::writev, unistd::read};

use super::vnet;
#[cfg(doc)]
use super::vnet::Offload;

/// Where the kernel makes such devices.
const CLONE: &str = "/dev/net/tun";
/// Highest number in a name that is tried.
const MOST: u32 = 31;

/// From include/uapi/linux/if_tun.h: packets of IP without a header of the device's own, but with that of [`vnet`].
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
/// What the process takes and gives: checksums and aggregates.
const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO_ECN: libc::c_ulong = 0x08;
const TUN_F_USO4: libc::c_ulong = 0x20;
const TUN_F_USO6: libc::c_ulong = 0x40;

/// Length of `struct ifreq`, and of the name in it.
const IFREQ: usize = 40;
const NAME: usize = 16;

nix::ioctl_write_int_bad!(tun_set_offload, nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>()));
nix::ioctl_write_ptr_bad!(
    tun_set_interface,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    [u8; IFREQ]
);
/// A TUN device, which is there as long as this is.
#[derive(Debug)]
pub struct Device {
    file: OwnedFd,
    name: String,
    tcp: bool,
    udp: bool,
}

/// There is no device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The way to make one.
    #[error(
        "cannot open {CLONE}: {0}: load the module tun, and give the agent the device: in a container mount {CLONE}, in a \
         systemd unit add DeviceAllow={CLONE} rw"
    )]
    NoClone(#[source] io::Error),
    /// It was refused.
    #[error("cannot make the TUN device {name}: {errno}: the agent needs CAP_NET_ADMIN")]
    Refused {
        /// Its name.
        name: String,
        /// What the kernel says.
        errno: Errno,
    },
    /// All names are taken.
    #[error(
        "cannot make a TUN device: flannel0 to flannel{MOST} are all in use by other processes or as other devices"
    )]
    NoName,
    /// Its offloads.
    #[error("cannot set the offloads of the TUN device {name}: {errno}")]
    Offloads {
        /// Its name.
        name: String,
        /// What the kernel says.
        errno: Errno,
    },
}

impl Device {
    /// Makes the first of flannel0, flannel1, ... that is free, as stock flannel does: one for each daemon of this host.
    ///
    /// # Errors
    /// None can be made.
    pub fn create() -> Result<Self, DeviceError> {
        let open = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
            options.open(CLONE).map_err(DeviceError::NoClone)
        };
        for number in 0..=MOST {
            let name = format!("flannel{number}");
            let file = open()?;
            match set_interface(&file, &name) {
                Ok(()) => return Self::configured(file.into(), name),
                // Another process's, or a device of another kind.
                Err(Errno::EBUSY | Errno::EINVAL | Errno::EEXIST) => {}
                Err(errno) => return Err(DeviceError::Refused { name, errno }),
            }
        }
        Err(DeviceError::NoName)
    }

    fn configured(file: OwnedFd, name: String) -> Result<Self, DeviceError> {
        let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO_ECN;
        let choices = [(tcp | TUN_F_USO4 | TUN_F_USO6, true, true), (tcp, true, false), (0, false, false)];
        let mut last = Errno::EINVAL;
        for (offloads, tcp, udp) in choices {
            // SAFETY: the argument is a number.
            match unsafe { tun_set_offload(file.as_raw_fd(), offloads as libc::c_int) } {
                Ok(_) => return Ok(Self { file, name, tcp, udp }),
                Err(errno) => last = errno,
            }
        }
        Err(DeviceError::Offloads { name, errno: last })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it gives and takes aggregates of TCP.
    pub fn has_tcp_aggregates(&self) -> bool {
        self.tcp
    }

    /// Whether it gives and takes aggregates of UDP (Linux 6.2).
    pub fn has_udp_aggregates(&self) -> bool {
        self.udp
    }

    /// Reads a packet behind its [`Offload`] header: how many bytes both have. It does not wait.
    pub(super) fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        read(&self.file, buffer)
    }

    /// Gives the kernel a packet in pieces, the first of which is its [`Offload`] header.
    pub(super) fn write(&self, pieces: &[IoSlice<'_>]) -> Result<(), Errno> {
        writev(&self.file, pieces).map(drop)
    }

    /// Gives the kernel one packet as it is.
    pub(super) fn write_one(&self, packet: &[u8]) -> Result<(), Errno> {
        self.write(&[IoSlice::new(&[0; vnet::LEN]), IoSlice::new(packet)])
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn set_interface(file: &File, name: &str) -> Result<(), Errno> {
    let mut request = [0; IFREQ];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[NAME..NAME + 2].copy_from_slice(&(IFF_TUN | IFF_NO_PI | IFF_VNET_HDR).to_ne_bytes());
    // SAFETY: the structure is as long as the kernel reads, and the name, shorter than its field, ends with 0.
    unsafe { tun_set_interface(file.as_raw_fd(), &request) }.map(drop)
}
