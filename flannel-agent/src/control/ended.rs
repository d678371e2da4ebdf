//! Why the last agent of a node ended, kept beside its control socket for whoever asks there in vain. The log has it, too, but
//! is where a service manager or a container runtime puts it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::snapshot::now;

/// How an agent ended by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// When: seconds since 1970.
    pub at: u64,
    /// What ended it.
    pub error: String,
}

/// The file beside `socket`.
fn beside(socket: &Path) -> PathBuf {
    socket.with_extension("ended")
}

impl Ended {
    /// What the last agent with `socket` left; nothing where it was told to end, or killed.
    pub fn read(socket: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(beside(socket)).ok()?).ok()
    }

    /// Keeps what ends the agent with `socket`.
    pub(crate) fn keep(socket: &Path, error: &anyhow::Error) {
        let path = beside(socket);
        let ended = Self { at: now(), error: format!("{error:#}") };
        let kept =
            serde_json::to_vec(&ended).map_err(io::Error::from).and_then(|text| fs::write(&path, text));
        if let Err(error) = kept {
            let file = path.display();
            warn!(%file, %error, "cannot keep why this agent ends: only its log has it");
        }
    }

    /// An agent with `socket` runs again.
    pub(crate) fn forget(socket: &Path) {
        let path = beside(socket);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(file = %path.display(), %error, "cannot delete what an earlier agent left");
            }
            _ => {}
        }
    }
}
