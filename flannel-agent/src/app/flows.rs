//! What flows need that skip the host's stack.

use std::{convert::Infallible, time::Duration};

use flannel_common::layout::FastPath;
use tokio::{select, sync::watch};
use tracing::warn;

use crate::{host::conntrack, masq::Rules, values::FlowRefresh};

/// Keeps up what flows need that skip the stack, where there are any. Where it cannot be had, everything goes as with
/// `overlay`; the log says so once.
pub(super) async fn keep_flows(
    rules: &Rules,
    asked: Duration,
    fast_paths: &watch::Sender<FastPath>,
    refreshes: &watch::Sender<FlowRefresh>,
) -> Infallible {
    if *fast_paths.borrow() != FastPath::Flow {
        return std::future::pending().await;
    }
    select! {
        because = rules.flows_unmarked() => {
            warn!(
                fast_path = "overlay",
                because,
                "no flow skips the host's stack: the rules that mark established flows cannot be kept"
            );
            fast_paths.send_replace(FastPath::Overlay);
            std::future::pending().await
        }
        never = conntrack::tolerate_gaps(|tolerant| {
            fast_paths.send_replace(if tolerant { FastPath::Flow } else { FastPath::Overlay });
        }) => never,
        never = conntrack::follow_timeouts(asked, refreshes) => never,
    }
}
