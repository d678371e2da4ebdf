//! One daemon for the programs under one bpffs. Several may run on a node, each with a network and a subnet
//! file of its own; the programs and their maps serve one network.

use std::{
    fs::{File, TryLockError},
    path::Path,
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::host::holder::{describe, of_lock};

/// How long a predecessor, of which the kernel frees one lock after the other, may hold the pins.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between attempts.
const RETRY: Duration = Duration::from_millis(50);

/// Whether the pins under a bpffs are this daemon's to change.
#[derive(Debug)]
pub enum PinsClaim {
    /// They are, until this is dropped or the process ends. Without a lock where the directory cannot be
    /// opened: then there are no pins either.
    Ours(Option<File>),
    /// A daemon that runs has them; its process and command line, where they can be found out.
    Anothers(Option<String>),
}

impl PinsClaim {
    /// Locks the directory that the bpffs is mounted at: it stays when the pins are removed.
    pub async fn of(bpffs: &Path) -> Self {
        let Ok(directory) = File::open(bpffs) else { return Self::Ours(None) };
        let start = Instant::now();
        loop {
            match directory.try_lock() {
                Ok(()) => return Self::Ours(Some(directory)),
                Err(TryLockError::Error(_)) => return Self::Ours(None),
                Err(TryLockError::WouldBlock) if start.elapsed() >= PATIENCE => {
                    return Self::Anothers(of_lock(&directory).map(describe));
                }
                Err(TryLockError::WouldBlock) => sleep(RETRY).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_has_them_until_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = PinsClaim::of(dir.path()).await;
        assert!(matches!(first, PinsClaim::Ours(Some(_))));
        assert!(matches!(PinsClaim::of(dir.path()).await, PinsClaim::Anothers(Some(_))));
        drop(first);
        assert!(matches!(PinsClaim::of(dir.path()).await, PinsClaim::Ours(Some(_))));
        assert!(matches!(PinsClaim::of(&dir.path().join("none")).await, PinsClaim::Ours(None)));
    }
}
