//! What flows need that skip the host's stack.

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use flannel_common::layout::FastPath;
use tokio::{select, sync::watch};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::load::Loaded;
use crate::{
    control::Standing,
    host::conntrack,
    masq::Rules,
    plan::LocalStack,
    translate::Translator,
    values::{Family, FlowRefresh},
};

/// Why flows do not skip the stack, where connection tracking would not bear it.
const INTOLERANT: &str = "net.netfilter.nf_conntrack_tcp_be_liberal cannot be set to 1, see the log";

/// Keeps up what flows need that skip the stack, where there are any. Where it cannot be had, everything goes as with
/// `overlay`; the log says so once.
pub(super) async fn keep_flows(
    rules: &Rules,
    asked: Duration,
    fast_paths: &watch::Sender<FastPath>,
    refreshes: &watch::Sender<FlowRefresh>,
    standing: &Standing,
) -> Infallible {
    if *fast_paths.borrow() != FastPath::Flow {
        return std::future::pending().await;
    }
    let set = |fast_path: FastPath, limit: Option<String>| {
        standing.tell(|told| {
            if let Some(told) = &mut told.fast_path {
                told.granted = fast_path.label().to_owned();
                told.limit = limit;
            }
        });
        fast_paths.send_replace(fast_path);
    };
    select! {
        because = rules.flows_unmarked() => {
            warn!(
                fast_path = "overlay",
                because,
                "no flow skips the host's stack: the rules that mark established flows cannot be kept"
            );
            set(FastPath::Overlay, Some(format!("the rules that mark established flows cannot be kept: {because}")));
            std::future::pending().await
        }
        never = conntrack::tolerate_gaps(|tolerant| {
            match tolerant {
                true => set(FastPath::Flow, None),
                false => set(FastPath::Overlay, Some(INTOLERANT.to_owned())),
            }
        }) => never,
        never = conntrack::follow_timeouts(asked, refreshes) => never,
    }
}

/// Tells the programs how netfilter translates flows, where any flow skips the stack. Where connection tracking cannot be
/// asked, translated flows stay on the kernel path; the log says so once.
pub(super) fn keep_translations(
    loaded: &mut Loaded,
    fast_path: FastPath,
    stacks: &BTreeMap<Family, LocalStack>,
) -> impl Future<Output = Infallible> + use<> {
    let translator = match loaded {
        Loaded::Programs(pins, programs, _) if fast_path == FastPath::Flow => {
            let shares =
                stacks.iter().map(|(family, stack)| (*family, (stack.network, stack.subnet))).collect();
            let started = programs.asked().map_err(anyhow::Error::from).and_then(|asked| {
                let (broken_off, sockets) = (programs.broken_off()?, programs.pod_sockets()?);
                let forgotten = programs.forgotten_flows()?;
                Ok(Translator::start(asked, broken_off, sockets, forgotten, pins, &shares)?)
            });
            started.inspect_err(|error| warn!(%error, "flows to Services stay on the kernel path")).ok()
        }
        _ => None,
    };
    // A task of its own: a flow that ends must not wait for what the rest of the agent does.
    let task = translator.map(|translator| AbortOnDropHandle::new(tokio::spawn(translator.run())));
    async {
        if let Some(task) = task {
            match task.await {
                Ok(never) => match never {},
                Err(error) => warn!(%error, "flows to Services stay on the kernel path"),
            }
        }
        std::future::pending().await
    }
}
