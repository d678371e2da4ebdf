//! One daemon for one subnet file: a lock beside it, `<subnet-file>.lock`, held as long as the process lives.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tracing::info;

use crate::host::holder::{describe, of_lock};

/// Between attempts.
const RETRY: Duration = Duration::from_millis(50);

/// The lock; given up when dropped, and by the kernel when the process ends in whatever way.
#[derive(Debug)]
pub struct SubnetFileLock {
    _file: File,
}

/// The lock cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon has it.
    #[error(
        "{holder} already serves this subnet file, and holds {path}: stop it, or give this daemon a --subnet-file and \
         an --etcd-prefix of its own. A script that starts the daemon without exec leaves it running when it ends itself"
    )]
    Held {
        /// Its process, and its command line if that can be read.
        holder: String,
        /// The lock.
        path: PathBuf,
    },
    /// The file system refuses.
    #[error(
        "--subnet-file: cannot make or lock {path}: {error}; name a file whose directory can be written to"
    )]
    Unusable {
        /// The lock.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl LockError {
    /// Whether the file system takes nothing now, whatever it is asked for: another place would not be a better one, and the
    /// subnet file is written once it takes something again.
    pub fn may_pass(&self) -> bool {
        let Self::Unusable { error, .. } = self else { return false };
        matches!(
            error.kind(),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem
        )
    }
}

impl SubnetFileLock {
    /// Takes the lock beside `subnet_file`. Where another process holds it, that may be one that is about to
    /// end: it is waited for up to `patience`. Makes the directory, mode 0755, if there is none.
    pub async fn take(subnet_file: &Path, patience: Duration) -> Result<Self, LockError> {
        let mut path = subnet_file.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let unusable = |error| LockError::Unusable { path: path.clone(), error };
        let mut file = open(&path).map_err(unusable)?;
        let start = Instant::now();
        let mut said = false;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(unusable(error)),
                Err(TryLockError::WouldBlock) if start.elapsed() >= patience => {
                    return Err(LockError::Held { holder: holder(&mut file), path });
                }
                Err(TryLockError::WouldBlock) if !said => {
                    said = true;
                    info!(holder = holder(&mut file), lock = %path.display(), "waiting for another daemon to end");
                }
                Err(TryLockError::WouldBlock) => {}
            }
            sleep(RETRY).await;
        }
        sign(&mut file).map_err(unusable)?;
        Ok(Self { _file: file })
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    // Whoever may read a file may lock it: for nobody else.
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Writes who we are, for the message to whoever comes second.
fn sign(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

/// Who has the lock: as the kernel says, else as it says itself, which across PID namespaces is another's number.
fn holder(file: &mut File) -> String {
    if let Some(pid) = of_lock(file) {
        return describe(pid);
    }
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(32).read_to_string(&mut text));
    match (read, text.trim().parse::<u32>()) {
        (Ok(_), Ok(pid)) => format!("process {pid} of a container"),
        _ => "another process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn the_second_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("run/flannel/subnet.env");
        let first = SubnetFileLock::take(&file, SHORT).await.unwrap();
        let error = SubnetFileLock::take(&file, SHORT).await.unwrap_err().to_string();
        for part in
            [&*format!("process {} ", std::process::id()), "subnet.env.lock", "stop it", "--etcd-prefix"]
        {
            assert!(error.contains(part), "{error}");
        }
        let other = SubnetFileLock::take(&dir.path().join("run/flannel/other.env"), SHORT).await;
        assert!(other.is_ok(), "another subnet file is another daemon's");
        let waiting = tokio::spawn(async move { SubnetFileLock::take(&file, Duration::from_secs(30)).await });
        sleep(SHORT).await;
        assert!(!waiting.is_finished());
        drop(first);
        waiting.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_was_in_the_file_does_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join("subnet.env.lock");
        for content in [&b"4194305\n"[..], b"\xff\xff", b"", &[b'9'; 1000]] {
            fs::write(&lock, content).unwrap();
            let _held = SubnetFileLock::take(&dir.path().join("subnet.env"), SHORT).await.unwrap();
            assert_eq!(fs::read_to_string(&lock).unwrap(), format!("{}\n", std::process::id()));
            fs::write(&lock, content).unwrap();
            let error =
                SubnetFileLock::take(&dir.path().join("subnet.env"), Duration::ZERO).await.unwrap_err();
            let holder = format!("process {} (", std::process::id());
            assert!(error.to_string().starts_with(&holder), "{error}");
        }
    }

    #[tokio::test]
    async fn a_place_that_cannot_be_written_to_is_named() {
        let error =
            SubnetFileLock::take(Path::new("/proc/nowhere/subnet.env"), SHORT).await.unwrap_err().to_string();
        assert!(
            error.contains("--subnet-file") && error.contains("/proc/nowhere/subnet.env.lock"),
            "{error}"
        );
    }

    #[test]
    fn a_file_system_that_takes_nothing_now_is_no_wrong_place() {
        let of =
            |number| LockError::Unusable { path: "it".into(), error: io::Error::from_raw_os_error(number) };
        // ENOSPC, EROFS and EDQUOT; ENOENT, EACCES and ENOTDIR.
        assert!([28, 30, 122].into_iter().all(|number| of(number).may_pass()));
        assert!(![2, 13, 20].into_iter().any(|number| of(number).may_pass()));
    }
}
