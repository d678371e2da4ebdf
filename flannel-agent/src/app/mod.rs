//! The composition root: builds every part in order, and ends them in order.

use std::{cell::Cell, env, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::ensure;
use tokio::{select, sync::watch};
use tracing::{error, info, warn};

use crate::{
    bpf::{PinsClaim, hold},
    cli::{EtcdMigrateOptions, RunOptions},
    cmd,
    control::{ControlServer, Ended, Standing, socket_beside},
    host::privileges::{Privileges, raise_file_limit, refuse_core_dumps},
    lease::{LeaseStore, etcd::EtcdStore, file::FileStore, kubernetes::KubeStore},
    subnet_file::lock::SubnetFileLock,
    telemetry::{health::Readiness, http::HealthServer, systemd::ServiceManager},
};

mod announce;
mod flows;
mod load;
mod metrics_page;
mod node_run;
mod probes;
mod readiness;
mod settings;
mod signals;
mod standing;
mod traffic;

use metrics_page::metrics_page;
use settings::{etcd_options, kube_options};
use signals::on_signal;

/// How long a daemon that is about to end may hold the lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Runs the agent until a signal, or until it cannot go on. The dataplane stays as it is.
///
/// # Errors
/// What stopped it.
pub fn run(options: RunOptions) -> anyhow::Result<()> {
    refuse_core_dumps();
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let service = Arc::new(ServiceManager::from_environment());
        let stopped = on_signal(service.clone())?;
        let result = serve(options, stopped, &service).await;
        service.stopping();
        service.flush();
        result
    })
}

/// `etcd-migrate`. Of `run` nothing is used but what is said of no subcommand.
///
/// # Errors
/// What cannot be done, with what to do about it.
pub fn etcd_migrate(options: EtcdMigrateOptions, run: RunOptions) -> anyhow::Result<()> {
    let task = options.task();
    let to = options.to_etcd_endpoints.clone();
    let options = etcd_options(&RunOptions { etcd: options.etcd, ..run })?;
    cmd::etcd_migrate::run(&options, to.as_deref(), task)
}

/// The agent between the things that begin before it and end after it: lock and health server.
async fn serve(
    options: RunOptions,
    stopped: watch::Receiver<bool>,
    service: &ServiceManager,
) -> anyhow::Result<()> {
    info!(version = env!("CARGO_PKG_VERSION"), "starting");
    if let Some(missing) = Privileges::read().and_then(Privileges::missing_for_network) {
        error!(
            missing,
            "without this capability neither devices nor routes nor rules can be set up: run as root, or give it to \
             the service"
        );
    }
    let readiness = Readiness::new();
    let standing = standing::of_process(&options);
    let mut agent = Agent {
        options,
        stopped,
        service,
        readiness: readiness.clone(),
        announced: Cell::new(false),
        standing,
    };
    let lock = SubnetFileLock::take(&agent.options.subnet_file, LOCK_PATIENCE);
    let lock = select! {
        lock = lock => match lock {
            Ok(lock) => Some(lock),
            // Packets of pods need no file.
            Err(error) if error.may_pass() => {
                warn!(%error, "going on without the lock beside the subnet file: another daemon would not be noticed");
                None
            }
            Err(error) => return Err(error.into()),
        },
        _ = agent.stopped.wait_for(|stop| *stop) => return Ok(()),
    };
    let socket = socket_beside(&agent.options.subnet_file);
    Ended::forget(&socket);
    let result = locked(&mut agent, &socket, readiness).await;
    if let Err(error) = &result {
        Ended::keep(&socket, error);
    }
    drop(lock);
    result
}

/// The same, of the only agent with this subnet file: control socket, health server and what the pins are kept by.
async fn locked(agent: &mut Agent<'_>, socket: &Path, readiness: Readiness) -> anyhow::Result<()> {
    let control = ControlServer::start(socket, agent.standing.clone())
        .inspect_err(|error| {
            let socket = socket.display();
            warn!(%socket, %error, "no control socket: `flannel-agent status` shows what it can see without the agent");
        })
        .ok();
    let health = match agent.options.healthz_port {
        0 => None,
        port => {
            let address = SocketAddr::new(agent.options.healthz_ip, port);
            let metrics = metrics_page(agent.standing.clone(), &agent.options);
            Some(HealthServer::start(address, readiness, Some(metrics)).await?)
        }
    };
    let (bpffs, hold) = (agent.options.bpffs.clone(), agent.options.hold());
    let claim = PinsClaim::of(&bpffs).await;
    let held = async {
        match &claim {
            PinsClaim::Ours(_) => hold::keep(&bpffs, hold).await,
            PinsClaim::Anothers(_) => std::future::pending().await,
        }
    };
    let result = select! {
        result = agent.run(&claim) => result,
        never = held => match never {},
    };
    if let Some(health) = health {
        health.end().await;
    }
    drop(control);
    result
}

struct Agent<'a> {
    options: RunOptions,
    stopped: watch::Receiver<bool>,
    service: &'a ServiceManager,
    readiness: Readiness,
    /// This process has written the subnet file.
    announced: Cell<bool>,
    /// What the control socket tells.
    standing: Standing,
}

/// How the agent ended without an error.
enum End {
    /// By a signal.
    Stopped,
    /// This node has another subnet now.
    Again,
}

impl Agent<'_> {
    async fn run(&mut self, claim: &PinsClaim) -> anyhow::Result<()> {
        if let Some(path) = self.options.lease_file.clone() {
            ensure!(
                !self.options.kube.kube_subnet_mgr,
                "--lease-file and --kube-subnet-mgr: leases are kept in one place; leave one of them out"
            );
            return self.run_from(FileStore::open(path, env::var("NODE_NAME").ok()), claim).await;
        }
        if self.options.kube.kube_subnet_mgr {
            let options = kube_options(&self.options.kube, |name| env::var(name).ok())?;
            return self.run_from(KubeStore::connect(&options).await?, claim).await;
        }
        let store = EtcdStore::connect(&etcd_options(&self.options)?)?;
        self.run_from(store, claim).await
    }

    async fn run_from<S: LeaseStore>(&mut self, store: S, claim: &PinsClaim) -> anyhow::Result<()> {
        let standing = self.standing.clone();
        let run = async {
            loop {
                // On the heap: a future of its depth is more than the compiler lays out in one.
                match Box::pin(self.run_once(&store, claim)).await {
                    Ok(End::Again) => {}
                    Ok(End::Stopped) => break Ok(()),
                    Err(error) => break Err(error),
                }
            }
        };
        let end = select! {
            end = run => end,
            never = standing::follow_store(&standing, &store) => match never {},
        };
        store.told().await;
        end
    }

    /// Waits for `work`, but not past a signal to stop; the service manager is told what we are `doing`.
    async fn unless_stopped<T>(
        &mut self,
        doing: &str,
        store: &impl LeaseStore,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        self.standing.tell(|told| doing.clone_into(&mut told.agent.doing));
        select! {
            result = work => Some(result),
            _ = self.stopped.wait_for(|stop| *stop) => None,
            () = self.service.accompany(doing, store.trouble()) => None,
        }
    }
}
