//! The agent from the network config to a signal, or to another subnet of this node.
//!
//! ```text
//! look_up() ─▶ Known ─ acquire() ─▶ Leased ─ keep_up() ─▶ End
//! ```

use std::{convert::Infallible, future::pending};

use anyhow::{Context as _, anyhow};
use ipnetwork::IpNetwork;
use tokio::{join, select, sync::watch, time::sleep};
use tracing::{info, warn};

use super::{
    Agent, End,
    flows::{keep_flows, keep_translations},
    load::{Loaded, load, xdp},
    probes, readiness,
    settings::{
        exemptions, follow_source_ports, interface_choice, masq, shares, source_ports,
        warn_without_bridge_filter,
    },
    standing, traffic,
};
use crate::{
    backend::{AnyBackend, Backend, Configured, ExternalInterface, Registered, Start},
    bpf::PinsClaim,
    cli::RunOptions,
    config::{NetworkConfig, Pool},
    datapath::{Datapath as _, Stray, ebpf::EbpfDatapath, kernel::KernelDatapath},
    host::conntrack,
    lease::{
        KeptLease, Lease, LeaseAttrs, LeaseEnd, LeaseStore, LeaseSubnet, Notice, OwnedLease as _, Peers,
        ThisNode, Unwatched, alloc::Identity, wire::NodeAddress,
    },
    masq::{RuleOptions, Rules},
    netlink::Netlink,
    node::{Node, interface::InterfaceChoice, published, stacks, underlay::UnderlayWatch},
    plan::{Local, inherited},
    reconcile::{KernelHost, Reconciler},
    subnet_file::{Previous, SubnetFile},
    telemetry::LastMessage,
    values::Family,
};

/// What the store says before this node has a lease.
struct Known {
    /// Those of the command line, with what the store says of this node.
    options: RunOptions,
    config: NetworkConfig,
    this_node: ThisNode,
}

/// This node with a lease.
struct Leased<O> {
    options: RunOptions,
    config: NetworkConfig,
    netlink: Netlink,
    choice: InterfaceChoice,
    external: ExternalInterface,
    /// `--public-ip`, `--public-ipv6`.
    fixed: NodeAddress,
    /// What others know this node by.
    public: NodeAddress,
    backend: AnyBackend,
    attrs: LeaseAttrs,
    previous: Previous,
    own: O,
    subnet: LeaseSubnet,
    /// Our subnet of each pool.
    shares: Vec<(Pool, IpNetwork)>,
}

impl Agent<'_> {
    /// From the network config to a signal, or to another subnet: then everything but lock, health server and
    /// connections is made anew, as after a restart.
    pub(super) async fn run_once<S: LeaseStore>(
        &mut self,
        store: &S,
        claim: &PinsClaim,
    ) -> anyhow::Result<End> {
        self.standing.begin();
        let Some(known) = self.look_up(store).await? else { return Ok(End::Stopped) };
        let Some(leased) = self.acquire(store, known).await? else { return Ok(End::Stopped) };
        self.keep_up(store, leased, claim).await
    }

    /// Asks the store for the network config and for this node; `None` after a signal to stop.
    async fn look_up<S: LeaseStore>(&mut self, store: &S) -> anyhow::Result<Option<Known>> {
        let config =
            self.unless_stopped("waiting for the network config", store, store.network_config()).await;
        let Some(config) = config else { return Ok(None) };
        let config = config.with_context(|| format!("the network config in {}", S::SERVER))?;
        let built = config.built().inspect_err(|problem| {
            store.tell(Notice { reason: "NetworkConfigRefused", text: problem.to_string() });
        });
        built.with_context(|| format!("the network config in {}", S::SERVER))?;
        let this_node = self.unless_stopped("looking this node up", store, store.this_node()).await;
        let Some(this_node) = this_node else { return Ok(None) };
        let this_node = this_node.with_context(|| format!("this node in {}", S::SERVER))?;
        let mut options = self.options.clone();
        options.public_ip = this_node.public_ip.or(options.public_ip);
        options.public_ipv6 = this_node.public_ipv6.or(options.public_ipv6);
        Ok(Some(Known { options, config, this_node }))
    }

    /// Chooses the external interface and acquires a subnet; `None` after a signal to stop.
    async fn acquire<S: LeaseStore>(
        &mut self,
        store: &S,
        Known { options, config, this_node }: Known,
    ) -> anyhow::Result<Option<Leased<S::Own>>> {
        let mut netlink = Netlink::open()?;
        let choice = interface_choice(&options, &config);
        let external = ExternalInterface::choose(&mut netlink, &choice).await?;
        let fixed = NodeAddress { v4: options.public_ip, v6: options.public_ipv6 };
        let public = published(fixed, &external);
        let Configured(configured) = config.built()?;
        let start = Start {
            external: &external,
            published: this_node.published.as_ref(),
            settled: this_node.settled,
            networks: config.pools().values().map(Pool::network).collect(),
            netlink: &mut netlink,
        };
        let adopted = self.unless_stopped("preparing the backend", store, configured.adopt(start)).await;
        let Some(backend) = adopted.transpose()? else { return Ok(None) };
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
        let Some(own) = acquired else { return Ok(None) };
        let own = own.context("no subnet for this node")?;
        let subnet = own.subnet();
        let shares = shares(&config, &subnet)?;
        let subnets = shares.iter().map(|(pool, subnet)| (pool.network(), *subnet)).collect();
        let registered = Registered { external: external.clone(), public, subnets };
        let registering = backend.register(&registered);
        let done = self.unless_stopped("preparing the network beyond this node", store, registering).await;
        let Some(()) = done.transpose()? else { return Ok(None) };
        Ok(Some(Leased {
            options,
            config,
            netlink,
            choice,
            external,
            fixed,
            public,
            backend,
            attrs,
            previous,
            own,
            subnet,
            shares,
        }))
    }

    /// Keeps dataplane, rules, lease and subnet file as they should be, until a signal or the end of the lease.
    async fn keep_up<S: LeaseStore>(
        &self,
        store: &S,
        leased: Leased<S::Own>,
        claim: &PinsClaim,
    ) -> anyhow::Result<End> {
        let Leased {
            options,
            config,
            netlink,
            choice,
            external,
            fixed,
            public,
            backend,
            attrs,
            previous,
            own,
            subnet,
            shares,
        } = leased;
        let networks = shares.iter().map(|(pool, subnet)| (pool.network(), *subnet));
        let stacks = stacks(&*backend, &external, public, networks.clone());
        let objects = backend.objects(&external, &stacks);
        let registered = Registered { external: external.clone(), public, subnets: networks.collect() };
        let families = (config.network_v4().is_some(), config.network_v6().is_some());
        let tell = |notice| store.tell(notice);
        let (fast_path, mut loaded) =
            load(&options, claim, backend.kernel_only(), backend.carrier(), families, tell, &self.standing);
        let exemptions = exemptions(&options, fast_path).await;
        let masq = masq(&options, &config, &stacks, &previous, fast_path);
        self.standing.tell(|told| told.rule_settings = masq.rules.iter().map(RuleOptions::told).collect());
        let rules = Rules::start(masq, &self.standing).await?;
        let (fast_paths, fast_path_now) = watch::channel(fast_path);
        let (refreshes, refresh_now) = watch::channel(conntrack::refresh(options.flow_refresh()));
        let (ports, ports_now) = watch::channel(source_ports());
        let flows = keep_flows(&rules, options.flow_refresh(), &fast_paths, &refreshes, &self.standing);
        let translated = keep_translations(&mut loaded, fast_path, &stacks);
        let xdp = xdp(&loaded, options.xdp());
        let local = Local {
            stacks,
            underlay_ifindex: external.index,
            backend: backend.clone(),
            objects,
            direct_routing: backend.direct_routing(),
            fast_path,
            xdp: xdp.on(&external.name),
            flow_refresh: *refresh_now.borrow(),
            source_ports: ports_now.borrow().clone(),
        };
        let driver = backend.driver(&registered)?;
        let mut kernel = kernel_datapath(&*backend, netlink, external.index, &shares, &previous.networks())
            .with_driver(driver);
        let inherited = left_by_earlier(&mut kernel, &local).await;
        let datapath = match loaded {
            Loaded::Programs(pins, programs, tables) => {
                EbpfDatapath::with_programs(kernel, pins, *programs, *tables)
            }
            Loaded::Nothing(pins) => EbpfDatapath::without_programs(kernel, pins),
        };
        let file = SubnetFile {
            v4: config.network_v4().zip(subnet.v4),
            v6: config.network_v6().zip(subnet.v6),
            mtu: backend.pod_mtu(&external),
            ip_masq: options.ip_masq,
        };
        let (underlay, externals) = UnderlayWatch::open(choice, external)?;
        let peers = match backend.follows_peers() {
            true => Peers::Watched(store.watch(&own, inherited)),
            false => Peers::Unwatched(Unwatched::default()),
        };
        let (node, views) = Node::new(backend.clone(), fixed, xdp, local, attrs, file.mtu);
        let keeper = store.keep(own);
        let kind = config.backend_kind();
        let lasting = standing::follow_lease(&self.standing, store.expiration(), store.mended());
        let probing = probes::follow(&self.standing, options.peer_probes);
        let counting = traffic::follow(&self.standing, &options.bpffs);
        let (reconciler, summary) =
            Reconciler::new(views.local.clone(), datapath, KernelHost::open()?, peers);
        self.standing.reconciled_by(reconciler.questions());
        let standing = standing::follow_node(
            &self.standing,
            kind,
            externals.clone(),
            views.local,
            views.pod_mtu.clone(),
            summary.clone(),
        );
        let ready =
            readiness::follow(&self.readiness, &self.standing, summary.clone(), |notice| store.tell(notice));
        let reconciler = reconciler.exempting(exemptions);

        let mut stopped = self.stopped.clone();
        let stop = async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        let following = self.service.follow(reconciler.pulse(), summary.clone(), S::SERVER, store.trouble());
        // Goes on until one of the others ends.
        let beside = async {
            join!(
                self.announce(store, summary, &rules, file, views.pod_mtu),
                underlay.run(),
                node.follow(externals, fast_path_now, refresh_now, ports_now),
                follow_source_ports(&ports),
                store.report_config_changes(config),
                register_again(&*backend, &registered),
                flows,
                standing,
                lasting,
                probing,
                ready,
                counting,
                translated,
            )
        };
        select! {
            _ = reconciler.run(stop) => Ok(End::Stopped),
            end = keep(keeper, views.attrs) => after(end, S::SERVER),
            () = following => Ok(End::Stopped),
            (never, ..) = beside => match never {},
        }
    }
}

/// The kernel's objects of a backend. With each pool comes our subnet of it; what is left of `earlier` networks is ours,
/// too.
fn kernel_datapath(
    backend: &dyn Backend,
    netlink: Netlink,
    ifindex: u32,
    pools: &[(Pool, IpNetwork)],
    earlier: &[IpNetwork],
) -> KernelDatapath {
    let mut datapath = KernelDatapath::new(netlink).keeping_ipip(backend.options().kind() == "ipip");
    if !backend.follows_peers() {
        return datapath;
    }
    // A route past the tunnel that host-gw has left would win over one route for all.
    let past = backend.has_objects() && backend.replaces_routes();
    let direct = backend.is_without_tunnel() || backend.direct_routing() || past;
    for network in pools.iter().map(|(pool, _)| pool.network()).chain(earlier.iter().copied()) {
        datapath = datapath.giving_up(network);
    }
    for (pool, own) in pools {
        if let Some(name) = backend.device_name(Family::of_network(pool.network())) {
            datapath = datapath.with_device(name, pool.network());
        }
        if direct {
            datapath = datapath.with_direct_routes(Stray { ifindex, pool: *pool, own: *own });
        }
    }
    datapath.with_earlier(earlier)
}

/// Does again, from time to time, what the backend has done beyond this node.
async fn register_again(backend: &dyn Backend, node: &Registered) -> Infallible {
    let Some(pause) = backend.register_again() else { return pending().await };
    let mut said = LastMessage::default();
    loop {
        sleep(pause).await;
        match backend.register(node).await {
            Ok(()) if said.is_over() => info!("the backend can again do what it does beyond this node"),
            Ok(()) => {}
            Err(error) if said.is_news(&error) => {
                warn!(%error, "what the backend does beyond this node failed, and will be tried again");
            }
            Err(_) => {}
        }
    }
}

/// The leases that what is in the kernel stands for.
async fn left_by_earlier(kernel: &mut KernelDatapath, local: &Local) -> Vec<Lease> {
    match kernel.observe().await {
        Ok(observed) => inherited(local, &observed),
        Err(error) => {
            warn!(%error, "cannot read what an earlier daemon left: peers without a lease in etcd are not kept");
            Vec::new()
        }
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

/// What becomes of the agent after the end of its lease, which is kept in `server`.
fn after(end: LeaseEnd, server: &str) -> anyhow::Result<End> {
    match end {
        LeaseEnd::Lost(lost) => Err(anyhow!(lost)),
        LeaseEnd::Replaced { old, new } if old == new => {
            info!("{server} has changed this node: restarting with it");
            Ok(End::Again)
        }
        LeaseEnd::Replaced { old, new } => {
            warn!(
                %old, %new,
                "this node has another subnet now: restarting with it. Running pods keep addresses of the old subnet, \
                which other nodes no longer send to us: restart these pods"
            );
            Ok(End::Again)
        }
    }
}
