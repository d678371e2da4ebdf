//! The file of exempt destinations, read again when it changes.

use std::{collections::BTreeSet, path::PathBuf};

use flannel_common::map::MAX_EXEMPT;
use ipnetwork::IpNetwork;
use tokio::sync::watch;
use tracing::{info, warn};

use super::prefix;
use crate::{
    host::steady_file::{Found, SteadyFile},
    plan::Exemptions,
};

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
pub fn parse(text: &str) -> Result<BTreeSet<IpNetwork>, BadLine> {
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

/// Follows one file.
pub(super) struct ExemptFile {
    file: SteadyFile,
    /// Those of the command line.
    flags: BTreeSet<IpNetwork>,
    tell: watch::Sender<Exemptions>,
}

impl ExemptFile {
    pub(super) fn new(path: PathBuf, flags: BTreeSet<IpNetwork>, tell: watch::Sender<Exemptions>) -> Self {
        Self { file: SteadyFile::at(path), flags, tell }
    }

    /// Takes the file as it is.
    pub(super) async fn first_look(&mut self) {
        let found = self.file.first_look().await;
        self.act(found);
    }

    /// Looks again and again, until nobody listens.
    pub(super) async fn run(mut self) {
        loop {
            let found = tokio::select! {
                found = self.file.changed() => found,
                () = self.tell.closed() => return,
            };
            self.act(found);
        }
    }

    fn act(&self, found: Found) {
        let file = self.file.path().display();
        let kept = self.tell.borrow().prefixes.difference(&self.flags).count();
        match found {
            // A byte that is no text makes its line a bad one.
            Ok(bytes) => match parse(&String::from_utf8_lossy(&bytes)) {
                Ok(networks) if networks.len() >= MAX_EXEMPT as usize => warn!(
                    %file, prefixes = networks.len(), kept,
                    "names more destinations than the {MAX_EXEMPT} that a map holds: join some of them; the previous \
                    destinations stay exempt"
                ),
                Ok(networks) => {
                    info!(%file, prefixes = networks.len(), "read the destinations that are exempt from masquerading");
                    let all: BTreeSet<_> = self.flags.union(&networks).copied().collect();
                    self.tell.send_if_modified(|now| {
                        let modified = now.prefixes != all;
                        now.prefixes = all;
                        modified
                    });
                }
                Err(error) => warn!(%file, %error, kept, "not used; the previous destinations stay exempt"),
            },
            Err(error) => warn!(
                %file, %error, kept,
                "--snat-exempt-file cannot be read; trying again. The previous destinations stay exempt (an empty \
                file exempts nothing)"
            ),
        }
    }
}
