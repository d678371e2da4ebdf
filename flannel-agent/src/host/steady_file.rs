//! A file that somebody edits while it is in use.
//!
//! It is read twice a second rather than watched: whatever way it is replaced (in place, by rename, by a symbolic
//! link above it, on a file system without notices), its content says so, and nothing is missed.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::sleep;

/// Between two looks. New content counts when two looks in a row have found it, since somebody may be in the middle
/// of writing it.
const PERIOD: Duration = Duration::from_millis(500);
/// Longest file read, bytes: room for ten thousand nodes, or for all prefixes that the map of exempt ones holds, with
/// a comment each.
const LONGEST: u64 = 8 << 20;

/// What a look found: the content, or why there is none.
pub(crate) type Found = Result<Vec<u8>, String>;

/// A file whose content is followed.
#[derive(Debug)]
pub(crate) struct SteadyFile {
    path: PathBuf,
    /// What was told last.
    told: Option<Found>,
    /// What the last look found, if it was something else.
    candidate: Option<Found>,
}

impl SteadyFile {
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path, told: None, candidate: None }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file as it is: a first look counts by itself, so that a start does not wait for what has long been there.
    pub(crate) async fn first_look(&mut self) -> Found {
        let found = self.look().await;
        self.told = Some(found.clone());
        found
    }

    /// Waits for something else than what was told last. Cancel safe.
    pub(crate) async fn changed(&mut self) -> Found {
        loop {
            sleep(PERIOD).await;
            let found = self.look().await;
            if self.told.as_ref() == Some(&found) {
                self.candidate = None;
            } else if self.candidate.as_ref() == Some(&found) {
                self.candidate = None;
                self.told = Some(found.clone());
                return found;
            } else {
                self.candidate = Some(found);
            }
        }
    }

    async fn look(&self) -> Found {
        let path = self.path.clone();
        let look = tokio::task::spawn_blocking(move || read(&path)).await;
        look.unwrap_or_else(|error| Err(error.to_string()))
    }
}

fn read(path: &Path) -> Found {
    let text = |error: std::io::Error| error.to_string();
    // Asked before it is opened: to open a pipe is to wait for its writer.
    if !std::fs::metadata(path).map_err(text)?.is_file() {
        return Err("not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    File::open(path).map_err(text)?.take(LONGEST + 1).read_to_end(&mut bytes).map_err(text)?;
    if bytes.len() as u64 > LONGEST {
        return Err(format!("longer than {LONGEST} bytes"));
    }
    Ok(bytes)
}
