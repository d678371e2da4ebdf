//! The file of exempt destinations, read again when it changes.
//!
//! It is read twice a second rather than watched: whatever way it is replaced (in place, by rename, by a
//! symbolic link above it, on a file system without notices), its content says so, and nothing is missed.

use std::{collections::BTreeSet, fs::File, io::Read as _, path::PathBuf, time::Duration};

use flannel_common::map::MAX_EXEMPT;
use ipnetwork::Ipv4Network;
use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

use super::prefix;
use crate::plan::Exemptions;

/// Between two looks. New content counts when two looks in a row have found it, since an editor may be
/// in the middle of writing it.
const PERIOD: Duration = Duration::from_millis(500);
/// Longest file read, bytes: room for all prefixes the map holds, with a comment each.
const LONGEST: u64 = 8 << 20;

/// A line that is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {value:?}: {reason}")]
pub struct BadLine {
    /// Its number, from 1.
    pub line: usize,
    /// What stands there.
    pub value: String,
    /// What is wrong with it, and what to write.
    pub reason: String,
}

/// The networks in `text`: one a line, `#` starts a comment, empty lines count for nothing.
///
/// # Errors
/// The first line that is no network.
pub fn parse(text: &str) -> Result<BTreeSet<Ipv4Network>, BadLine> {
    const SHOWN: usize = 60;
    let mut networks = BTreeSet::new();
    for (line, content) in text.lines().enumerate() {
        let value = content.split('#').next().unwrap_or_default().trim();
        if value.is_empty() {
            continue;
        }
        let network = prefix(value).map_err(|reason| BadLine {
            line: line + 1,
            value: value.chars().take(SHOWN).collect(),
            reason,
        })?;
        networks.insert(network);
    }
    Ok(networks)
}

/// What a look at the file found: its text, or why there is none.
type Found = Result<String, String>;

/// Follows one file.
pub(super) struct Follower {
    path: PathBuf,
    /// Those of the command line.
    flags: BTreeSet<Ipv4Network>,
    tell: watch::Sender<Exemptions>,
    /// What was acted upon last.
    acted: Option<Found>,
    /// What the last look found, if it was something else.
    candidate: Option<Found>,
}

impl Follower {
    pub(super) fn new(path: PathBuf, flags: BTreeSet<Ipv4Network>, tell: watch::Sender<Exemptions>) -> Self {
        Self { path, flags, tell, acted: None, candidate: None }
    }

    /// Takes the file as it is.
    pub(super) async fn first_look(&mut self) {
        let found = self.look().await;
        self.act(found);
    }

    /// Looks again and again, until nobody listens.
    pub(super) async fn run(mut self) {
        while !self.tell.is_closed() {
            sleep(PERIOD).await;
            let found = self.look().await;
            if self.acted.as_ref() == Some(&found) {
                self.candidate = None;
            } else if self.candidate.as_ref() == Some(&found) {
                self.candidate = None;
                self.act(found);
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

    fn act(&mut self, found: Found) {
        let file = self.path.display();
        let kept = self.tell.borrow().prefixes.difference(&self.flags).count();
        match &found {
            Ok(text) => match parse(text) {
                Ok(networks) if networks.len() >= MAX_EXEMPT as usize => warn!(
                    %file, prefixes = networks.len(), kept,
                    "names more destinations than the {MAX_EXEMPT} that the map holds: join some of them; \
                     what was read before stays exempt"
                ),
                Ok(networks) => {
                    info!(%file, prefixes = networks.len(), "destinations exempt from masquerading read");
                    let all: BTreeSet<_> = self.flags.union(&networks).copied().collect();
                    self.tell.send_if_modified(|now| {
                        let modified = now.prefixes != all;
                        now.prefixes = all;
                        modified
                    });
                }
                Err(error) => warn!(%file, %error, kept, "not used; what was read before stays exempt"),
            },
            Err(error) => warn!(
                %file, %error, kept,
                "--snat-exempt-file cannot be read; it is used as soon as it can be, and what was read before \
                 stays exempt (an empty file exempts nothing)"
            ),
        }
        self.acted = Some(found);
    }
}

fn read(path: &std::path::Path) -> Found {
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
    // A byte that is no text makes its line a bad one.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
