//! The composition root: builds every part in order, and ends them in order.

use std::{cell::Cell, convert::Infallible, env, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow, ensure};
use flannel_common::layout::FastPath;
use tokio::{select, sync::watch, time::sleep};
use tracing::{error, info, warn};

use crate::{
    bpf::{PinsClaim, hold},
    cli::RunOptions,
    datapath::{Datapath as _, ebpf::EbpfDatapath},
    host::{
        conntrack,
        privileges::{Privileges, raise_file_limit, refuse_core_dumps},
    },
    lease::{
        KeptLease, LeaseAttrs, LeaseEnd, LeaseStore, LeaseSubnet, Notice, OwnedLease as _, Peers, Unwatched,
        alloc::Identity, etcd::EtcdStore, file::FileStore, kubernetes::KubeStore, wire::NodeAddress,
    },
    masq::Rules,
    netlink::Netlink,
    node::{Node, backend, interface::ExternalInterface, published, stacks, underlay::UnderlayWatch},
    plan::{FlowRefresh, Local, inherited},
    reconcile::{KernelHost, Reconciler, Summary},
    subnet_file::{Others, Previous, SubnetFile, lock::SubnetFileLock},
    telemetry::{Said, health::Readiness, http::HealthServer, systemd::ServiceManager},
};

mod load;
mod settings;
mod signals;

use load::{Loaded, load, xdp};
use settings::{
    etcd_options, exemptions, follow_source_ports, interface_choice, kube_options, masq, shares,
    source_ports, warn_without_bridge_filter,
};
use signals::on_signal;

/// Between attempts to write the subnet file.
const WRITE_AGAIN: Duration = Duration::from_secs(2);

/// How often it is looked for.
const LOOK_FOR_FILE: Duration = Duration::from_secs(2);

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
    let mut agent =
        Agent { options, stopped, service, readiness: readiness.clone(), announced: Cell::new(false) };
    let lock = SubnetFileLock::take(&agent.options.subnet_file, LOCK_PATIENCE);
    let lock = select! {
        lock = lock => lock?,
        _ = agent.stopped.wait_for(|stop| *stop) => return Ok(()),
    };
    let health = match agent.options.healthz_port {
        0 => None,
        port => Some(HealthServer::start(SocketAddr::new(agent.options.healthz_ip, port), readiness).await?),
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
    drop(lock);
    result
}

struct Agent<'a> {
    options: RunOptions,
    stopped: watch::Receiver<bool>,
    service: &'a ServiceManager,
    readiness: Readiness,
    /// This process has written the subnet file.
    announced: Cell<bool>,
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

    async fn run_from(&mut self, store: impl LeaseStore, claim: &PinsClaim) -> anyhow::Result<()> {
        let end = loop {
            match self.run_once(&store, claim).await {
                Ok(End::Again) => {}
                Ok(End::Stopped) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        store.told().await;
        end
    }

    /// From the network config to a signal, or to another subnet: then everything but lock, health server and
    /// connections is made anew, as after a restart.
    async fn run_once<S: LeaseStore>(&mut self, store: &S, claim: &PinsClaim) -> anyhow::Result<End> {
        let mut options = self.options.clone();
        let config =
            self.unless_stopped("waiting for the network config", store, store.network_config()).await;
        let Some(config) = config else { return Ok(End::Stopped) };
        let config = config.with_context(|| format!("the network config in {}", S::SERVER))?;
        let built = config.built().inspect_err(|problem| {
            store.tell(Notice { reason: "NetworkConfigRefused", text: problem.to_string() });
        });
        let configured = built.with_context(|| format!("the network config in {}", S::SERVER))?;
        let this_node = self.unless_stopped("looking this node up", store, store.this_node()).await;
        let Some(this_node) = this_node else { return Ok(End::Stopped) };
        let this_node = this_node.with_context(|| format!("this node in {}", S::SERVER))?;
        options.public_ip = this_node.public_ip.or(options.public_ip);
        options.public_ipv6 = this_node.public_ipv6.or(options.public_ipv6);

        let mut netlink = Netlink::open()?;
        let choice = interface_choice(&options, &config);
        let external = ExternalInterface::choose(&mut netlink, &choice).await?;
        let fixed = NodeAddress { v4: options.public_ip, v6: options.public_ipv6 };
        let public = published(fixed, &external);
        let backend = backend::adopt(configured, &external, &this_node, &mut netlink).await?;
        backend.check(&external, public)?;
        warn_without_bridge_filter(&config);

        let attrs = backend.attrs(public);
        let previous = Previous::read(&options.subnet_file);
        for reason in &previous.ignored {
            warn!(file = %options.subnet_file.display(), reason, "ignored a line of the subnet file");
        }
        let addresses = external.rival_addresses(&mut netlink, &choice).await?;
        let identity = Identity { previous: previous.lease(), addresses };
        let acquired = store.acquire(&config, &attrs, identity);
        let acquired = self.unless_stopped("acquiring a subnet", store, acquired).await;
        let Some(own) = acquired else { return Ok(End::Stopped) };
        let own = own.context("no subnet for this node")?;
        let leased = own.subnet();
        let shares = shares(&config, &leased)?;
        let networks = shares.iter().map(|(pool, subnet)| (pool.network(), *subnet));
        let stacks = stacks(&*backend, &external, public, networks);

        let kernel_only = backend.kernel_only();
        let families = (config.network_v4().is_some(), config.network_v6().is_some());
        let (fast_path, loaded) = load(&options, claim, kernel_only, families, |notice| store.tell(notice));
        let exemptions = exemptions(&options, fast_path).await;
        let rules = Rules::start(masq(&options, &config, &stacks, &previous, fast_path)).await?;
        let (fast_paths, fast_path_now) = watch::channel(fast_path);
        let (refreshes, refresh_now) = watch::channel(conntrack::refresh(options.flow_refresh()));
        let (ports, ports_now) = watch::channel(source_ports());
        let flows = keep_flows(&rules, options.flow_refresh(), &fast_paths, &refreshes);
        let xdp = xdp(&loaded, options.xdp());
        let local = Local {
            stacks,
            underlay_ifindex: external.index,
            backend: backend.planned(),
            direct_routing: backend.direct_routing(),
            fast_path,
            xdp: xdp.on(&external.name),
            flow_refresh: *refresh_now.borrow(),
            source_ports: ports_now.borrow().clone(),
        };
        let mut kernel = backend.kernel_datapath(netlink, &external, &shares, &previous.networks());
        let inherited = match kernel.observe().await {
            Ok(observed) => inherited(&local, &observed),
            Err(error) => {
                warn!(%error, "cannot read what an earlier daemon left: what etcd has no lease of is not kept");
                Vec::new()
            }
        };
        let datapath = match loaded {
            Loaded::Programs(pins, programs, tables) => {
                EbpfDatapath::with_programs(kernel, pins, *programs, *tables)
            }
            Loaded::Nothing(pins) => EbpfDatapath::without_programs(kernel, pins),
        };
        let file = SubnetFile {
            v4: config.network_v4().zip(leased.v4),
            v6: config.network_v6().zip(leased.v6),
            mtu: backend.pod_mtu(&external),
            ip_masq: options.ip_masq,
        };
        let (underlay, externals) = UnderlayWatch::open(choice, external)?;
        let (node, views) = Node::new(backend, fixed, xdp, local, attrs, file.mtu);
        let host = KernelHost::open()?;
        let peers = match node.backend.follows_peers() {
            true => Peers::Watched(store.watch(&own, inherited)),
            false => Peers::Unwatched(Unwatched::default()),
        };
        let keeper = store.keep(own);
        let (reconciler, summary) = Reconciler::new(views.local, datapath, host, peers);
        let reconciler = reconciler.exempting(exemptions);

        let mut stopped = self.stopped.clone();
        let following = self.service.follow(reconciler.pulse(), summary.clone(), S::SERVER, store.trouble());
        select! {
            _ = reconciler.run(async move { let _ = stopped.wait_for(|stop| *stop).await; }) => Ok(End::Stopped),
            never = self.announce(store, summary, &rules, file, views.pod_mtu) => match never {},
            end = keep(keeper, views.attrs) => match end {
                LeaseEnd::Lost(lost) => Err(anyhow!(lost)),
                LeaseEnd::Replaced { old, new } if old == new => {
                    info!("{} says something else of this node: starting over with it", S::SERVER);
                    Ok(End::Again)
                }
                LeaseEnd::Replaced { old, new } => {
                    warn!(
                        %old, %new,
                        "this node has another subnet now: starting over with it. Pods that run keep addresses of the \
                         old one, which no other node sends to us any more: restart them"
                    );
                    Ok(End::Again)
                }
            },
            never = underlay.run() => match never {},
            never = node.follow(externals, fast_path_now, refresh_now, ports_now) => match never {},
            never = follow_source_ports(&ports) => match never {},
            () = following => Ok(End::Stopped),
            never = store.report_config_changes(config) => match never {},
            never = flows => match never {},
        }
    }

    /// Waits for `work`, but not past a signal to stop; the service manager is told what we are `doing`.
    async fn unless_stopped<T>(
        &mut self,
        doing: &str,
        store: &impl LeaseStore,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        select! {
            result = work => Some(result),
            _ = self.stopped.wait_for(|stop| *stop) => None,
            () = self.service.accompany(doing, store.trouble()) => None,
        }
    }

    /// Writes the subnet file once pods can be reached and the rules are in place.
    async fn announce(
        &self,
        store: &impl LeaseStore,
        mut summary: watch::Receiver<Summary>,
        rules: &Rules,
        mut file: SubnetFile,
        mut mtu: watch::Receiver<u32>,
    ) -> Infallible {
        rules.applied().await;
        let looked = |summary: &Summary| summary.synced && summary.passes > 0;
        let blocked = match summary.wait_for(|summary| looked(summary)).await {
            Ok(now) => now.without_device.clone(),
            Err(_) => None,
        };
        if let Some(because) = blocked {
            error!(
                because,
                file = %self.options.subnet_file.display(),
                "not ready: no pod of this node would reach another, so that the subnet file is not written until this \
                 is mended"
            );
            store.tell(Notice {
                reason: "NoDevice",
                text: format!("pods cannot start on this node: {because}"),
            });
        }
        let first = summary.wait_for(|summary| looked(summary) && summary.without_device.is_none()).await;
        let Ok((peers, pending)) = first.map(|now| (now.peers, now.pending)) else {
            return std::future::pending().await;
        };
        let path = &self.options.subnet_file;
        file.mtu = *mtu.borrow_and_update();
        // At the start alone it is replaced as by stock flannel: what turns it into options for docker runs after that.
        let others = if self.announced.replace(true) { Others::Kept } else { Others::Replaced };
        write(&file, path, others).await;
        self.readiness.set();
        self.service.ready();
        let subnet = LeaseSubnet { v4: file.v4.map(|(_, own)| own), v6: file.v6.map(|(_, own)| own) };
        info!(%subnet, mtu = file.mtu, peers, pending, file = %path.display(), "ready");
        store.ready();
        loop {
            select! {
                Ok(()) = mtu.changed() => {}
                () = sleep(LOOK_FOR_FILE) => {
                    // Without it no pod starts on this node. What somebody else wrote there stays.
                    if let Ok(false) = path.try_exists() {
                        warn!(file = %path.display(), "the subnet file is gone: writing it again");
                        write(&file, path, Others::Kept).await;
                    }
                    continue;
                }
            }
            let old = file.mtu;
            file.mtu = *mtu.borrow_and_update();
            write(&file, path, Others::Kept).await;
            info!(
                old, mtu = file.mtu, file = %path.display(),
                "new pods get another MTU; those that run keep theirs until they are restarted"
            );
        }
    }
}

/// Writes the subnet file, as often as it takes: pods that start meanwhile fail, or get what an earlier file
/// says, but those that run need us.
async fn write(file: &SubnetFile, path: &Path, others: Others) {
    let mut said = Said::default();
    while let Err(error) = file.write(path, others) {
        if said.is_news(&error) {
            error!(%error, "trying again");
        }
        sleep(WRITE_AGAIN).await;
    }
}

/// Keeps up what flows need that skip the stack, where there are any. Where it cannot be had, everything goes as with
/// `overlay`; the log says so once.
async fn keep_flows(
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
                "no flow skips the host's stack: the rules that tell of established ones cannot be kept"
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

/// Publishes what our lease is to say, until it ends.
async fn keep(mut keeper: impl KeptLease, mut published: watch::Receiver<LeaseAttrs>) -> LeaseEnd {
    loop {
        select! {
            end = keeper.ended() => return end,
            Ok(()) = published.changed() => keeper.update(published.borrow_and_update().clone()),
        }
    }
}
