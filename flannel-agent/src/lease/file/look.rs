//! Looking at the file.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::watch;
use tracing::{error, info, warn};

use super::{Cluster, Known};
use crate::host::steady_file::{Found, SteadyFile};

/// Looks at `path` until nobody listens: its last good content, and what is wrong with it now.
pub(super) fn follow(path: PathBuf) -> (Known, watch::Receiver<Option<String>>) {
    let (tell, known) = watch::channel(None);
    let (complain, trouble) = watch::channel(None);
    tokio::spawn(async move {
        let mut file = SteadyFile::at(path);
        let mut found = file.first_look().await;
        loop {
            act(file.path(), found, &tell, &complain);
            found = tokio::select! {
                found = file.changed() => found,
                () = tell.closed() => return,
            };
        }
    });
    (known, trouble)
}

fn act(
    path: &Path,
    found: Found,
    tell: &watch::Sender<Option<Arc<Cluster>>>,
    complain: &watch::Sender<Option<String>>,
) {
    let file = path.display();
    let text =
        found.and_then(|bytes| String::from_utf8(bytes).map_err(|error| format!("not UTF-8: {error}")));
    let outcome = text.and_then(|text| Cluster::parse(&text).map_err(|error| error.to_string()));
    match outcome {
        Ok(cluster) => {
            info!(%file, nodes = cluster.nodes.len(), "lease file read");
            complain.send_replace(None);
            tell.send_replace(Some(Arc::new(cluster)));
        }
        Err(problem) => {
            if tell.borrow().is_some() {
                warn!(%file, problem, "the lease file cannot be used: its previous content stays in force");
            } else {
                error!(%file, problem, "the lease file cannot be used: waiting for one that can");
            }
            complain.send_replace(Some(format!("--lease-file {file}: {problem}")));
        }
    }
}
