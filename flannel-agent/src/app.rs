//! The composition root: builds every part in order, and ends them in order.

use std::{fs, ops::Range, path::Path, time::Duration};

use anyhow::{Context as _, anyhow};
use flannel_common::layout::FastPath;
use ipnetwork::Ipv4Network;
use tokio::{
    select,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing::{debug, info, warn};

use crate::{
    bpf::{Pins, Programs},
    cli::RunOptions,
    config::{NetworkConfig, VxlanOptions},
    datapath::{ebpf::EbpfDatapath, kernel::KernelDatapath},
    lease::{
        LeaseAttrs,
        etcd::{EtcdOptions, EtcdStore, LeaseKeeper, LeaseTiming, OwnLeaseReport},
        wire::VxlanData,
    },
    mac::Mac,
    masq::{MasqOptions, RuleOptions, Rules},
    netlink::{ExternalInterface, InterfaceChoice, Netlink},
    plan::{Local, VxlanDevice},
    reconcile::{KernelHost, Reconciler, Summary},
    subnet_file::{Previous, SubnetFile},
};

/// What VXLAN over IPv4 takes of the underlay's MTU, bytes.
const OVERHEAD: u32 = 50;
/// UDP port of the kernel's VXLAN when none is configured (drivers/net/vxlan, `vxlan_port`).
const KERNEL_PORT: u16 = 8472;

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
        let (pool, vxlan) = config.vxlan_over_ipv4().context("the network config in etcd")?;
        let network = pool.network;

        let mut netlink = Netlink::open()?;
        let external = external_interface(&mut netlink, &options).await?;
        let public_ip = options.public_ip.unwrap_or(external.address);
        let device = device(&mut netlink, vxlan, &external).await?;
        warn_without_bridge_filter(&config);

        let attrs =
            LeaseAttrs::vxlan_v4(public_ip, VxlanData { vni: device.vni, vtep_mac: Some(device.mac) });
        let previous = Previous::read(&options.subnet_file);
        for reason in &previous.ignored {
            warn!(file = %options.subnet_file.display(), reason, "ignored a line of the subnet file");
        }
        let acquired = store.acquire(&config, &attrs, previous.subnet_v4);
        let Some(own) = self.unless_stopped(acquired).await else { return Ok(()) };
        let own = own.context("no subnet for this node")?;
        let subnet = own.subnet.v4.ok_or_else(|| anyhow!("our lease {} has no IPv4 subnet", own.subnet))?;

        let (fast_path, loaded) = load(&options);
        let marks = matches!(loaded, Loaded::Programs(..));
        let rules = Rules::start(masq(&options, &config, (network, subnet), &previous, marks)).await?;
        let local = Local {
            network,
            subnet,
            public_ip,
            device: device.clone(),
            fast_path,
            source_ports: source_ports(),
        };
        let kernel = KernelDatapath::new(netlink, device.name.clone(), network);
        let datapath = match loaded {
            Loaded::Programs(pins, programs) => EbpfDatapath::with_programs(kernel, pins, programs)?,
            Loaded::Nothing(pins) => EbpfDatapath::without_programs(kernel, pins),
        };
        let host = KernelHost::open(local.clone())?;
        let watch = store.watch(own.subnet);
        let keeper = store.keep(own);
        let (reconciler, summary) = Reconciler::new(local, datapath, host, watch);

        let file =
            SubnetFile { v4: Some((network, subnet)), v6: None, mtu: device.mtu, ip_masq: options.ip_masq };
        let mut stopped = self.stopped.clone();
        select! {
            _ = reconciler.run(async move { let _ = stopped.wait_for(|stop| *stop).await; }) => Ok(()),
            error = announce(summary, &rules, &file, &options.subnet_file) => Err(error),
            error = keep(keeper) => Err(error),
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
    options: &RunOptions,
) -> anyhow::Result<ExternalInterface> {
    let choice = InterfaceChoice { iface: options.iface.clone(), public_ip: options.public_ip };
    let external = netlink.external_interface(&choice).await?;
    let because = match (options.iface.is_empty(), options.public_ip) {
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

/// The VXLAN device we want. One that is there already, ours or stock flannel's, keeps its MAC, so that
/// peers need not learn a new one.
async fn device(
    netlink: &mut Netlink,
    options: &VxlanOptions,
    external: &ExternalInterface,
) -> anyhow::Result<VxlanDevice> {
    let underlay_mtu = options.mtu.unwrap_or(external.mtu);
    let mut device = VxlanDevice {
        name: format!("flannel.{}", options.vni),
        vni: options.vni,
        port: options.port.unwrap_or(KERNEL_PORT),
        underlay_ifindex: external.index,
        local: external.address,
        mac: Mac::random(),
        mtu: underlay_mtu.saturating_sub(OVERHEAD),
    };
    let found = netlink.link(&device.name).await?.and_then(|link| link.as_vxlan_device());
    match found {
        Some(found) if device.is_compatible(&found) => {
            device.mac = found.mac;
            info!(device = device.name, mac = %device.mac, "adopting the VXLAN device there is");
        }
        _ => info!(device = device.name, mac = %device.mac, "a VXLAN device will be created"),
    }
    Ok(device)
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

/// Loads the programs, if they are wanted and the kernel takes them; says which it is, and why, once.
fn load(options: &RunOptions) -> (FastPath, Loaded) {
    let wanted = options.fast_path.0;
    let pins = Pins::under(&options.bpffs);
    if wanted == FastPath::Off {
        info!(fast_path = "off", because = "--fast-path=off", "the kernel moves every packet");
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

/// What the rules follow from. `marks`: the programs mark what is exempt from masquerading.
fn masq(
    options: &RunOptions,
    config: &NetworkConfig,
    (network, subnet): (Ipv4Network, Ipv4Network),
    previous: &Previous,
    marks: bool,
) -> MasqOptions {
    MasqOptions {
        rules: RuleOptions {
            network: network.into(),
            subnet: subnet.into(),
            ip_masq: options.ip_masq,
            forward: options.iptables_forward_rules,
            random_fully: !options.ip_masq_fully_random_disable,
            exempt_mark: marks,
        },
        nftables: config.enable_nftables,
        earlier: [previous.network_v4.map(Into::into), previous.network_v6.map(Into::into)]
            .into_iter()
            .flatten()
            .collect(),
        resync: Duration::from_secs(options.iptables_resync.into()),
        blackhole: options.ip_blackhole_route.then_some(subnet),
    }
}

/// Writes the subnet file once pods can be reached and the rules are in place; returns only an error.
async fn announce(
    mut summary: watch::Receiver<Summary>,
    rules: &Rules,
    file: &SubnetFile,
    path: &Path,
) -> anyhow::Error {
    rules.applied().await;
    if let Ok(now) = summary.wait_for(|summary| summary.synced && summary.passes > 0).await {
        let (peers, pending) = (now.peers, now.pending);
        drop(now);
        if let Err(error) = file.write(path) {
            return error.into();
        }
        let (network, subnet): (Ipv4Network, Ipv4Network) = match file.v4 {
            Some(v4) => v4,
            None => return std::future::pending().await,
        };
        info!(%network, %subnet, mtu = file.mtu, peers, pending, file = %path.display(), "ready");
    }
    std::future::pending().await
}

/// Follows what becomes of our lease; returns when it is another node's.
async fn keep(mut keeper: LeaseKeeper) -> anyhow::Error {
    loop {
        match keeper.report().await {
            OwnLeaseReport::Renewed { .. } | OwnLeaseReport::Retaken { .. } => {}
            OwnLeaseReport::Lost(lost) => return lost.into(),
        }
    }
}
