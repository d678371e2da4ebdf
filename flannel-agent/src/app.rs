//! The composition root: builds every part in order, and ends them in order.

use std::{fs, ops::Range, path::Path};

use anyhow::{Context as _, anyhow};
use flannel_common::layout::FastPath;
use ipnetwork::Ipv4Network;
use tokio::{
    select,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing::{debug, error, info, warn};

use crate::{
    backend::Backend,
    bpf::{Pins, Programs},
    cli::RunOptions,
    config::NetworkConfig,
    datapath::ebpf::EbpfDatapath,
    lease::{
        LeaseAttrs, Peers, Unwatched,
        etcd::{EtcdOptions, EtcdStore, LeaseKeeper, LeaseTiming, OwnLeaseReport},
    },
    netlink::{ExternalInterface, InterfaceChoice, Netlink},
    node::Node,
    plan::{Local, Underlay},
    reconcile::{KernelHost, Reconciler, Summary},
    subnet_file::{Previous, SubnetFile},
    underlay::Follower,
};

/// Runs the agent until a signal, or until it cannot go on. The dataplane stays as it is.
///
/// # Errors
/// What stopped it.
pub fn run(options: RunOptions) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (stop, stopped) = watch::channel(false);
        let signals = async move {
            let name = select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            info!(signal = name, "stopping; the dataplane goes on without the agent");
            let _ = stop.send(true);
        };
        // Ends with a signal, or with the runtime.
        tokio::spawn(signals);
        Agent { options, stopped }.run().await
    })
}

struct Agent {
    options: RunOptions,
    stopped: watch::Receiver<bool>,
}

impl Agent {
    async fn run(mut self) -> anyhow::Result<()> {
        let options = self.options.clone();
        info!(version = env!("CARGO_PKG_VERSION"), "starting");
        debug!(?options, "options");
        let store = EtcdStore::connect(&etcd_options(&options)?)?;
        let Some(config) = self.unless_stopped(store.network_config()).await else { return Ok(()) };
        let (&pool, configured) = config.over_ipv4().context("the network config in etcd")?;
        let network = pool.network;

        let mut netlink = Netlink::open()?;
        let choice = InterfaceChoice { iface: options.iface.clone(), public_ip: options.public_ip };
        let external = external_interface(&mut netlink, &choice).await?;
        let public_ip = options.public_ip.unwrap_or(external.address);
        let backend = Backend::adopt(configured, &external, &mut netlink).await?;
        backend.check(&external, public_ip)?;
        warn_without_bridge_filter(&config);

        let attrs = backend.attrs(public_ip);
        let previous = Previous::read(&options.subnet_file);
        for reason in &previous.ignored {
            warn!(file = %options.subnet_file.display(), reason, "ignored a line of the subnet file");
        }
        let acquired = store.acquire(&config, &attrs, previous.subnet_v4);
        let Some(own) = self.unless_stopped(acquired).await else { return Ok(()) };
        let own = own.context("no subnet for this node")?;
        let subnet = own.subnet.v4.ok_or_else(|| anyhow!("our lease {} has no IPv4 subnet", own.subnet))?;

        let (fast_path, loaded) = load(&options, backend.kernel_only());
        let local = Local {
            network,
            subnet,
            public_ip,
            underlay: Underlay { ifindex: external.index, address: external.address },
            backend: backend.over(&external),
            fast_path,
            source_ports: source_ports(),
        };
        let kernel = backend.kernel_datapath(netlink, &external, pool, subnet);
        let datapath = match loaded {
            Loaded::Programs(pins, programs) => EbpfDatapath::with_programs(kernel, pins, programs)?,
            Loaded::Nothing(pins) => EbpfDatapath::without_programs(kernel, pins),
        };
        let file = SubnetFile {
            v4: Some((network, subnet)),
            v6: None,
            mtu: backend.pod_mtu(&external),
            ip_masq: false,
        };
        let (follower, externals) = Follower::open(choice, external)?;
        let (node, locals, published, mtu) = Node::new(backend, options.public_ip, local, attrs, file.mtu);
        let host = KernelHost::open()?;
        let peers = match node.backend.follows_peers() {
            true => Peers::Watched(store.watch(own.subnet)),
            false => Peers::Unwatched(Unwatched::default()),
        };
        let keeper = store.keep(own);
        let (reconciler, summary) = Reconciler::new(locals, datapath, host, peers);

        let mut stopped = self.stopped.clone();
        select! {
            _ = reconciler.run(async move { let _ = stopped.wait_for(|stop| *stop).await; }) => Ok(()),
            error = announce(summary, file, mtu, &options.subnet_file) => Err(error),
            error = keep(keeper, published) => Err(error),
            never = follower.run() => match never {},
            never = node.follow(externals) => match never {},
        }
    }

    /// Waits for `work`, but not past a signal to stop.
    async fn unless_stopped<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        select! {
            result = work => Some(result),
            _ = self.stopped.wait_for(|stop| *stop) => None,
        }
    }
}

fn etcd_options(options: &RunOptions) -> anyhow::Result<EtcdOptions> {
    let etcd = options.etcd.clone();
    Ok(EtcdOptions {
        endpoints: etcd.etcd_endpoints.join(","),
        prefix: etcd.etcd_prefix,
        keyfile: etcd.etcd_keyfile,
        certfile: etcd.etcd_certfile,
        cafile: etcd.etcd_cafile,
        username: etcd.etcd_username,
        password: etcd.etcd_password,
        timing: LeaseTiming::with_margin_minutes(options.subnet_lease_renew_margin.into())?,
    })
}

async fn external_interface(
    netlink: &mut Netlink,
    choice: &InterfaceChoice,
) -> anyhow::Result<ExternalInterface> {
    let external = netlink.external_interface(choice).await?;
    let because = match (choice.iface.is_empty(), choice.public_ip) {
        (false, _) => "--iface names it",
        (true, Some(_)) => "it holds --public-ip",
        (true, None) => "the default route uses it",
    };
    info!(
        interface = external.name, address = %external.address, mtu = external.mtu, because,
        "external interface chosen"
    );
    Ok(external)
}

/// Bridged packets that netfilter does not see escape Services and policies. Upstream refuses to start
/// without; where no bridge is used there is nothing to refuse.
fn warn_without_bridge_filter(config: &NetworkConfig) {
    const SWITCH: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    if !config.enable_nftables && !Path::new(SWITCH).exists() {
        warn!(
            missing = SWITCH,
            "netfilter does not see packets between pods on one bridge: run `modprobe br_netfilter` if this \
             node has Services or policies"
        );
    }
}

enum Loaded {
    Programs(Pins, Programs),
    Nothing(Option<Pins>),
}

/// Loads the programs, if they are wanted, can do what is asked (or `kernel_only` says why not) and the kernel
/// takes them; says which it is, and why, once.
fn load(options: &RunOptions, kernel_only: Option<&'static str>) -> (FastPath, Loaded) {
    let wanted = options.fast_path.0;
    let pins = Pins::under(&options.bpffs);
    let off = if wanted == FastPath::Off { Some("--fast-path=off") } else { kernel_only };
    if let Some(because) = off {
        info!(fast_path = "off", because, "the kernel moves every packet");
        return (FastPath::Off, Loaded::Nothing(pins.ok()));
    }
    let left = pins.as_ref().ok().cloned();
    let loaded = pins.map_err(anyhow::Error::from).and_then(|pins| {
        let mut programs = Programs::load(pins.clone(), options.bpf_log)?;
        programs.forward_log(options.bpf_log);
        Ok((pins, programs))
    });
    match loaded {
        Ok((pins, programs)) => {
            info!(fast_path = wanted.label(), because = "--fast-path asks for it", "programs loaded");
            (wanted, Loaded::Programs(pins, programs))
        }
        Err(error) => {
            warn!(
                fast_path = "off",
                because = format!("{error:#}"),
                "eBPF cannot be used here: the kernel moves every packet, as with stock flannel"
            );
            (FastPath::Off, Loaded::Nothing(left))
        }
    }
}

/// The range the kernel takes source ports of VXLAN from: `net.ipv4.ip_local_port_range`.
fn source_ports() -> Range<u16> {
    const FILE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    const DEFAULT: Range<u16> = 32768..60999;
    let parse = |text: String| {
        let mut numbers = text.split_whitespace().map(str::parse::<u16>);
        let range = numbers.next()?.ok()?..numbers.next()?.ok()?;
        (!range.is_empty()).then_some(range)
    };
    fs::read_to_string(FILE).ok().and_then(parse).unwrap_or_else(|| {
        warn!(file = FILE, default = ?DEFAULT, "cannot be read: using the kernel's default");
        DEFAULT
    })
}

/// Writes the subnet file once pods can be reached, and again when the MTU of pods changes; returns only an
/// error.
async fn announce(
    mut summary: watch::Receiver<Summary>,
    mut file: SubnetFile,
    mut mtu: watch::Receiver<u32>,
    path: &Path,
) -> anyhow::Error {
    if let Ok(now) = summary.wait_for(|summary| summary.synced && summary.passes > 0).await {
        let (peers, pending) = (now.peers, now.pending);
        drop(now);
        file.mtu = *mtu.borrow_and_update();
        if let Err(error) = file.write(path) {
            return error.into();
        }
        let (network, subnet): (Ipv4Network, Ipv4Network) = match file.v4 {
            Some(v4) => v4,
            None => return std::future::pending().await,
        };
        info!(%network, %subnet, mtu = file.mtu, peers, pending, file = %path.display(), "ready");
    }
    while mtu.changed().await.is_ok() {
        let old = file.mtu;
        file.mtu = *mtu.borrow_and_update();
        match file.write(path) {
            Ok(()) => info!(
                old, mtu = file.mtu, file = %path.display(),
                "new pods get another MTU; those that run keep theirs until they are restarted"
            ),
            // Those that start meanwhile get the old MTU; that is no reason to end.
            Err(error) => error!(%error, "the MTU of new pods cannot be written"),
        }
    }
    std::future::pending().await
}

/// Publishes what our lease is to say, and follows what becomes of it; returns when it is another node's.
async fn keep(mut keeper: LeaseKeeper, mut published: watch::Receiver<LeaseAttrs>) -> anyhow::Error {
    loop {
        select! {
            report = keeper.report() => match report {
                OwnLeaseReport::Renewed { .. } | OwnLeaseReport::Retaken { .. } => {}
                OwnLeaseReport::Lost(lost) => return lost.into(),
            },
            Ok(()) = published.changed() => keeper.update(published.borrow_and_update().clone()),
        }
    }
}
