//! An agent without a kernel: its lease, its view of all others, and its dataplane in memory are those of the daemon.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use flannel_agent::{
    backend::{AnyBackend, LocalStack, Objects, Vxlan, VxlanOptions},
    datapath::memory::MemoryDatapath,
    lease::{
        LeaseAttrs, LeaseStore as _, OwnedLease as _,
        alloc::Identity,
        etcd::{EtcdOptions, EtcdStore, LeaseKeeper},
    },
    netlink::{Changed, NetlinkError, NextHop, VxlanDevice},
    plan::{Local, NextHops, Xdp},
    reconcile::{Host, Reconciler, Summary, Surroundings},
    values::{Family, FlowRefresh, Mac},
    wire::VxlanData,
};
use flannel_common::layout::FastPath;
use flannel_lab::PREFIX;
use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_local},
    time::timeout,
};

/// Index of the external interface, and of the VXLAN device.
const UNDERLAY: u32 = 2;
const OVERLAY: u32 = 7;
/// The address of the first node.
const FIRST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);

/// A running agent.
pub(super) struct Agent {
    summary: watch::Receiver<Summary>,
    /// Keeps its lease, and with it what it knows of etcd.
    _keeper: LeaseKeeper,
    _store: EtcdStore,
    task: JoinHandle<()>,
}

impl Agent {
    /// Starts the node of this number, and waits until it has a subnet.
    pub(super) async fn start(number: u32, endpoint: String) -> Result<Self> {
        let options =
            EtcdOptions { endpoints: endpoint, prefix: PREFIX.to_owned(), ..EtcdOptions::default() };
        let store = EtcdStore::connect(&options)?;
        let config = store.network_config().await?;
        let address = Ipv4Addr::from(u32::from(FIRST) + number);
        let mac = Mac::random();
        let attrs = LeaseAttrs::vxlan_v4(address, VxlanData { vni: 1, vtep_mac: Some(mac) });
        let own = store.acquire(&config, &attrs, Identity::from(None)).await?;
        let subnet = own.subnet().of(Family::V4).context("a lease without a subnet")?;
        let network = config.network_v4().context("a network without IPv4")?;
        let local = local(address.into(), mac, network.into(), subnet);
        let source = store.watch(own.subnet());
        let keeper = store.keep(own);
        let (reconciler, summary) =
            Reconciler::new(watch::channel(local).1, MemoryDatapath::default(), Nowhere, source);
        let task = spawn_local(async move {
            reconciler.run(pending()).await;
        });
        Ok(Self { summary, _keeper: keeper, _store: store, task })
    }

    /// Waits until it reaches so many peers and has nothing left to do.
    pub(super) async fn reaches(&self, peers: usize, patience: Duration) -> Result<()> {
        let mut summary = self.summary.clone();
        let there = summary.wait_for(|now| now.synced && now.peers == peers && now.pending == 0);
        match timeout(patience, there).await {
            Ok(there) => there.map(drop).context("an agent has ended"),
            Err(_) => {
                let now = self.summary.borrow().clone();
                bail!("an agent does not reach {peers} peers within {patience:?}: {now:?}")
            }
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A node where nothing changes and every address is behind one gateway.
struct Nowhere;

impl Host for Nowhere {
    fn cpu_time(&self) -> Duration {
        Duration::ZERO
    }

    async fn changed(&mut self) -> Changed {
        pending().await
    }

    async fn survey(&mut self, _: &Local, exits: &BTreeSet<u32>) -> Result<Surroundings, NetlinkError> {
        Ok(Surroundings {
            overlays: BTreeMap::from([(Family::V4, OVERLAY)]),
            underlay: BTreeSet::from([(UNDERLAY, 1500, true)]),
            exits: exits.clone(),
            ..Surroundings::default()
        })
    }

    async fn next_hops(&mut self, _: &Local, addresses: &BTreeSet<IpAddr>) -> Result<NextHops, NetlinkError> {
        let hop = NextHop { ifindex: UNDERLAY, address: Ipv4Addr::new(172, 31, 255, 254).into(), mtu: 1500 };
        Ok(addresses.iter().map(|to| (*to, Ok(hop))).collect())
    }
}

fn local(address: IpAddr, mac: Mac, network: ipnetwork::IpNetwork, subnet: ipnetwork::IpNetwork) -> Local {
    let device = VxlanDevice {
        name: "flannel.1".into(),
        vni: 1,
        port: 8472,
        underlay_ifindex: UNDERLAY,
        local: address,
        mac,
        mtu: 1450,
        learning: false,
        gbp: false,
    };
    let stack = LocalStack { network, subnet, public_ip: address, address, device: Some(device) };
    Local {
        stacks: BTreeMap::from([(Family::V4, stack)]),
        underlay_ifindex: UNDERLAY,
        backend: AnyBackend::new(Vxlan {
            options: VxlanOptions::default(),
            macs: BTreeMap::from([(Family::V4, mac)]),
        }),
        objects: Objects::new(),
        direct_routing: false,
        fast_path: FastPath::Flow,
        xdp: Xdp::OFF,
        flow_refresh: FlowRefresh::of(Duration::from_secs(30)),
        source_ports: 32768..60999,
    }
}
