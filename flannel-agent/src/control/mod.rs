//! What the agent tells those who ask at its control socket.
//!
//! ```text
//! app, masq, ... ─ tell ─▶ Standing ─▶ ControlServer ─ HTTP over a Unix socket, JSON ─▶ Client ─▶ cmd
//! reconcile ◀─ Question ─┘
//! ```
//!
//! The socket is beside the subnet file, `/run/flannel/subnet.env.sock`, and for root alone. Nothing is collected before
//! somebody asks.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

mod client;
mod ended;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod question;
mod server;
pub mod snapshot;
mod standing;

pub use client::{AskError, Client};
pub use ended::Ended;
pub use question::{Question, Questioned, Questions};
pub use server::ControlServer;
pub use snapshot::Snapshot;
pub use standing::Standing;

/// Version of what is answered: part of each path, and of each snapshot.
pub const VERSION: u32 = 1;

/// The control socket of the agent that writes `subnet_file`: its name with `.sock` behind it.
pub fn socket_beside(subnet_file: &Path) -> PathBuf {
    let mut path = OsString::from(subnet_file);
    path.push(".sock");
    path.into()
}
