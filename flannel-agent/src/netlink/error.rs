//! What goes wrong with netlink.

use std::{fmt, io, time::Duration};

use nix::errno::Errno;

/// A request could not be made, or was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("cannot open a netlink socket: {}", .0.desc())]
    Open(Errno),
    /// The socket failed under a request; the next one opens another.
    #[error("netlink socket: {}", .0.desc())]
    Socket(Errno),
    /// The kernel answers at once or not at all.
    #[error("the kernel has not answered a netlink request for {0:?}")]
    Silent(Duration),
    /// The tables kept changing while they were read.
    #[error("the kernel's tables changed too fast to be read")]
    Unstable,
    /// An answer that is not netlink.
    #[error("cannot read the kernel's answer: {0}")]
    Malformed(String),
    /// The kernel said no.
    #[error(transparent)]
    Refused(#[from] KernelError),
    /// An attribute of the device that flannel needs is held by another.
    #[error("{0}")]
    Conflict(String),
}

impl NetlinkError {
    /// The kernel's verdict, if that is what this is.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused(refused) => Some(refused.errno),
            _ => None,
        }
    }
}

/// The kernel's refusal of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelError {
    /// The code.
    pub errno: Errno,
    /// What the kernel adds to it (NLMSGERR_ATTR_MSG), if anything.
    pub message: Option<String>,
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.message {
            Some(message) => write!(f, "{} ({message})", self.errno.desc()),
            None => f.write_str(self.errno.desc()),
        }
    }
}

impl std::error::Error for KernelError {}

/// The code of an I/O error; those without one count as EIO.
pub(super) fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
