//! What flags, configuration and host say to each part.

use std::{collections::BTreeMap, convert::Infallible, fs, ops::Range, path::Path, time::Duration};

use anyhow::Context as _;
use flannel_common::layout::FastPath;
use ipnetwork::IpNetwork;
use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

use crate::{
    bpf,
    cli::{self, KubeFlags, RunOptions},
    config::{NetworkConfig, Pool},
    exempt,
    lease::{
        LeaseSubnet,
        etcd::{EtcdApi, EtcdOptions, LeaseTiming},
        kubernetes::{AnnotationPrefix, Identity, KubeError, KubeOptions},
    },
    masq::{MasqOptions, RuleOptions},
    node::interface::{InterfaceChoice, Stack},
    plan::{Exemptions, LocalStack},
    subnet_file::Previous,
    values::Family,
};

pub(super) fn etcd_options(options: &RunOptions) -> anyhow::Result<EtcdOptions> {
    let etcd = options.etcd.clone();
    Ok(EtcdOptions {
        endpoints: etcd.etcd_endpoints,
        prefix: etcd.etcd_prefix,
        keyfile: etcd.etcd_keyfile,
        certfile: etcd.etcd_certfile,
        cafile: etcd.etcd_cafile,
        username: etcd.etcd_username,
        password: etcd.etcd_password,
        api: match etcd.etcd_api {
            cli::EtcdApi::Auto => EtcdApi::Auto,
            cli::EtcdApi::V3 => EtcdApi::V3,
            cli::EtcdApi::V2 => EtcdApi::V2,
        },
        timing: LeaseTiming::with_margin_minutes(options.subnet_lease_renew_margin.into())?,
    })
}

/// From the flags and the environment. `EVENT_QUEUE_DEPTH` of upstream's is not read: what waits here makes the API
/// server wait, and is never dropped.
pub(super) fn kube_options(
    flags: &KubeFlags,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<KubeOptions, KubeError> {
    Ok(KubeOptions {
        api_url: flags.kube_api_url.clone(),
        kubeconfig: flags.kubeconfig_file.clone(),
        prefix: AnnotationPrefix::new(&flags.kube_annotation_prefix)?,
        net_config: flags.net_config_path.clone(),
        set_condition: flags.set_node_network_unavailable,
        // As upstream reads it: nothing but this word is yes.
        patient: variable("CONT_WHEN_CACHE_NOT_READY").as_deref() == Some("true"),
        identity: Identity::read(variable)?,
    })
}

pub(super) fn interface_choice(options: &RunOptions, config: &NetworkConfig) -> InterfaceChoice {
    InterfaceChoice {
        iface: options.iface.clone(),
        iface_regex: options.iface_regex.clone(),
        can_reach: options.iface_can_reach,
        public_ip: options.public_ip,
        public_ipv6: options.public_ipv6,
        stack: Stack::of(config),
        networks: config.pools().values().map(Pool::network).collect(),
    }
}

/// Bridged packets that netfilter does not see escape Services and policies. Upstream refuses to start
/// without; where no bridge is used there is nothing to refuse.
pub(super) fn warn_without_bridge_filter(config: &NetworkConfig) {
    const DIRECTORY: &str = "/proc/sys/net/bridge";
    if config.enable_nftables {
        return;
    }
    let switches = [
        ("bridge-nf-call-iptables", config.ipv4.is_some()),
        ("bridge-nf-call-ip6tables", config.ipv6.is_some()),
    ];
    for (switch, _) in switches.into_iter().filter(|(_, needed)| *needed) {
        let missing = Path::new(DIRECTORY).join(switch);
        if !missing.exists() {
            warn!(
                missing = %missing.display(),
                "netfilter does not see packets between pods on one bridge: run `modprobe br_netfilter` if this \
                 node has Services or policies"
            );
        }
    }
}

/// Our subnet of each pool.
pub(super) fn shares(config: &NetworkConfig, own: &LeaseSubnet) -> anyhow::Result<Vec<(Pool, IpNetwork)>> {
    let share = |(family, pool)| {
        let subnet = own.of(family);
        let subnet = subnet.with_context(|| format!("our lease {own} has no {family} subnet"))?;
        Ok((pool, subnet))
    };
    config.pools().into_iter().map(share).collect()
}

/// What the operator exempts from masquerading. Without eBPF nothing marks the packets: said once.
pub(super) async fn exemptions(options: &RunOptions, fast_path: FastPath) -> watch::Receiver<Exemptions> {
    let flags = exempt::Flags {
        prefixes: options.snat_exempt_cidr.iter().copied().collect(),
        file: options.snat_exempt_file.clone(),
        nodes: options.snat_exempt_nodes,
    };
    if fast_path != FastPath::Off {
        return flags.follow().await;
    }
    let names = flags.names();
    if !names.is_empty() {
        warn!(
            ignored = names.join(" "),
            "these exemptions from masquerading need eBPF, which is off: only the cluster's network is exempt"
        );
    }
    exempt::Flags::default().follow().await
}

/// The range the kernel takes source ports of VXLAN from: `net.ipv4.ip_local_port_range`.
pub(super) fn source_ports() -> Range<u16> {
    const DEFAULT: Range<u16> = 32768..60999;
    read_source_ports().unwrap_or_else(|| {
        warn!(file = SOURCE_PORTS, default = ?DEFAULT, "cannot be read: using the kernel's default");
        DEFAULT
    })
}

/// Tells when that range changes: the kernel reads it for each packet. There is no notice of it.
pub(super) async fn follow_source_ports(ports: &watch::Sender<Range<u16>>) -> Infallible {
    loop {
        sleep(SOURCE_PORTS_LOOK).await;
        // One that cannot be read is not another one.
        let Some(now) = read_source_ports() else { continue };
        ports.send_if_modified(|known| {
            let changed = *known != now;
            if changed {
                info!(was = ?known, is = ?now, "the range of VXLAN source ports has changed");
                *known = now;
            }
            changed
        });
    }
}

const SOURCE_PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// How often it is looked at.
const SOURCE_PORTS_LOOK: Duration = Duration::from_secs(1);

fn read_source_ports() -> Option<Range<u16>> {
    let text = fs::read_to_string(SOURCE_PORTS).ok()?;
    let mut numbers = text.split_whitespace().map(str::parse::<u16>);
    let range = numbers.next()?.ok()?..numbers.next()?.ok()?;
    (!range.is_empty()).then_some(range)
}

/// What the rules follow from. Only programs mark what is exempt from masquerading.
pub(super) fn masq(
    options: &RunOptions,
    config: &NetworkConfig,
    stacks: &BTreeMap<Family, LocalStack>,
    previous: &Previous,
    fast_path: FastPath,
) -> MasqOptions {
    // What the programs do not serve they neither mark nor learn.
    let served = fast_path != FastPath::Off;
    let rules = |stack: &LocalStack| RuleOptions {
        network: stack.network,
        subnet: stack.subnet,
        ip_masq: options.ip_masq,
        forward: options.iptables_forward_rules,
        random_fully: !options.ip_masq_fully_random_disable,
        exempt_mark: served.then_some(options.snat_exempt_mark),
        flow_mark: (served && fast_path == FastPath::Flow).then_some(options.flow_mark),
    };
    MasqOptions {
        rules: stacks.values().map(rules).collect(),
        nftables: config.enable_nftables,
        earlier: previous.networks(),
        resync: Duration::from_secs(options.iptables_resync.into()),
        netfilter_programs: || bpf::netfilter_programs().ok(),
        blackholes: stacks
            .values()
            .map(|stack| stack.subnet)
            .filter(|_| options.ip_blackhole_route)
            .collect(),
    }
}
