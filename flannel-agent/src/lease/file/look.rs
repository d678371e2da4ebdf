//! Looking at the file.
//!
//! It is read twice a second rather than watched: whatever way it is replaced (in place, by rename, by a link above it,
//! on a file system without notices), its content says so.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::sleep};
use tracing::{error, info, warn};

use super::{Cluster, Known};

/// Between two looks. New content counts when two looks in a row have found it, since somebody may be in the middle
/// of writing it.
const PERIOD: Duration = Duration::from_millis(500);
/// Longest file read, bytes: room for ten thousand nodes.
const LONGEST: u64 = 8 << 20;

/// What a look found: the text, or why there is none.
type Found = Result<String, String>;

/// Looks at `path` until nobody listens: its last good content, and what is wrong with it now.
pub(super) fn follow(path: PathBuf) -> (Known, watch::Receiver<Option<String>>) {
    let (tell, known) = watch::channel(None);
    let (complain, trouble) = watch::channel(None);
    tokio::spawn(async move {
        // The first look counts by itself: a start does not wait for what has long been there.
        let mut acted = look(&path).await;
        act(&path, &acted, &tell, &complain);
        let mut candidate = None;
        loop {
            tokio::select! {
                () = sleep(PERIOD) => {}
                () = tell.closed() => return,
            }
            let found = look(&path).await;
            if acted == found {
                candidate = None;
            } else if candidate.as_ref() == Some(&found) {
                candidate = None;
                act(&path, &found, &tell, &complain);
                acted = found;
            } else {
                candidate = Some(found);
            }
        }
    });
    (known, trouble)
}

fn act(
    path: &Path,
    found: &Found,
    tell: &watch::Sender<Option<Arc<Cluster>>>,
    complain: &watch::Sender<Option<String>>,
) {
    let file = path.display();
    let outcome = found.clone().and_then(|text| Cluster::parse(&text).map_err(|error| error.to_string()));
    match outcome {
        Ok(cluster) => {
            info!(%file, nodes = cluster.nodes.len(), "lease file read");
            complain.send_replace(None);
            tell.send_replace(Some(Arc::new(cluster)));
        }
        Err(problem) => {
            if tell.borrow().is_some() {
                warn!(%file, problem, "the lease file cannot be used: what it said before stays in force");
            } else {
                error!(%file, problem, "the lease file cannot be used: waiting for one that can");
            }
            complain.send_replace(Some(format!("--lease-file {file}: {problem}")));
        }
    }
}

async fn look(path: &Path) -> Found {
    let path = path.to_owned();
    let look = tokio::task::spawn_blocking(move || read(&path)).await;
    look.unwrap_or_else(|error| Err(error.to_string()))
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
    String::from_utf8(bytes).map_err(|error| format!("not UTF-8: {error}"))
}
