//! What this node is and has, as the control socket tells it.

use std::{
    convert::Infallible,
    net::IpAddr,
    process,
    time::{Duration, SystemTime},
};

use flannel_common::path::Hook;
use ipnetwork::IpNetwork;
use tokio::{select, sync::watch, time::timeout};

use crate::{
    backend::CarryingDevice,
    cli::RunOptions,
    control::{
        Standing,
        snapshot::{self, Agent, Backend, Device, Interface, OwnLease, Skipped, Store},
    },
    lease::{BadConfig, Heard, LeaseStore, Mended, Unusable},
    node::interface::ExternalInterface,
    plan::{Local, VxlanDevice},
    telemetry::Summary,
    values::Family,
};

/// That of a process that has just started.
pub(super) fn of_process(options: &RunOptions) -> Standing {
    let standing = Standing::default();
    let agent = Agent {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: process::id(),
        started: snapshot::now(),
        doing: "starting".to_owned(),
        ready: false,
        not_ready: Some("the agent has just started".to_owned()),
        subnet_file: options.subnet_file.clone(),
        bpffs: options.bpffs.clone(),
    };
    standing.tell(|told| told.agent = agent);
    standing
}

/// How long the store may take to answer whoever asks for it.
const PATIENCE: Duration = Duration::from_secs(3);

/// Tells whether the store of leases answers, and how far it was heard; asks it when somebody wants to know.
pub(super) async fn follow_store<S: LeaseStore>(standing: &Standing, store: &S) -> Infallible {
    let server = S::SERVER;
    let (mut trouble, mut heard, mut bad_config) = (store.trouble(), store.heard(), store.bad_config());
    let mut unusable = store.unusable();
    let mut wanted = standing.stores_wanted();
    loop {
        let now = trouble.borrow_and_update().clone();
        let Heard { revision, at } = heard.borrow_and_update().clone();
        let bad = bad_config.borrow_and_update().clone();
        let bad_config_now = bad.map(|BadConfig { what, remedy }| [what, remedy]);
        let unusable_now: Vec<Skipped> =
            unusable.borrow_and_update().iter().flat_map(|lease| skipped(lease, server)).collect();
        standing.tell(|told| {
            let known = told.store.take();
            // Another error is the same interruption.
            let same = known.as_ref().is_some_and(|known| known.trouble.is_some() == now.is_some());
            let since = known.filter(|_| same).map_or_else(snapshot::now, |known| known.since);
            let heard = at.map(snapshot::unix);
            let (server, bad_config) = (server.to_owned(), bad_config_now);
            let unusable = unusable_now;
            told.store = Some(Store { server, trouble: now, since, revision, heard, bad_config, unusable });
        });
        select! {
            Ok(()) = trouble.changed() => {}
            Ok(()) = heard.changed() => {}
            Ok(()) = bad_config.changed() => {}
            Ok(()) = unusable.changed() => {}
            Some(answer) = wanted.recv() => {
                let late = || Err(format!("{server} has not answered for {} s", PATIENCE.as_secs()));
                let looked = timeout(PATIENCE, store.look()).await.unwrap_or_else(|_| late());
                // Whoever asked may be gone.
                let _ = answer.send(looked.err());
            }
            else => std::future::pending().await,
        }
    }
}

/// What is shown of a lease in `server` that cannot be used, in each of its families.
fn skipped(lease: &Unusable, server: &str) -> Vec<Skipped> {
    let Unusable { place, subnet, reason } = lease;
    let families = Family::BOTH.into_iter().filter(|family| subnet.of(*family).is_some());
    families
        .map(|family| Skipped {
            lease: subnet.to_string(),
            family: family.to_string(),
            reason: format!("it cannot be used: {reason}"),
            fault: true,
            remedy: format!(
                "delete or correct {place} in {server}; its node writes it anew when its agent runs"
            ),
        })
        .collect()
}

/// Tells what this node is, with a backend of this `kind`, now and whenever it changes.
pub(super) async fn follow_node(
    standing: &Standing,
    kind: &str,
    mut externals: watch::Receiver<ExternalInterface>,
    mut locals: watch::Receiver<Local>,
    mut pod_mtu: watch::Receiver<u32>,
    mut summary: watch::Receiver<Summary>,
) -> Infallible {
    standing.tell(|told| "running".clone_into(&mut told.agent.doing));
    loop {
        let external = externals.borrow_and_update().clone();
        let local = locals.borrow_and_update().clone();
        let pod_mtu_now = *pod_mtu.borrow_and_update();
        // A pass may have made a device, which has its name since.
        summary.mark_unchanged();
        let (subnets, networks, public) = lease(&local);
        standing.tell(|told| {
            told.interface = Some(interface(&external));
            told.backend = Some(backend(kind, &external, &local, pod_mtu_now));
            let known = told.lease.take().unwrap_or_default();
            told.lease = Some(OwnLease { subnets, networks, public, ..known });
            if let Some(fast_path) = &mut told.fast_path {
                let xdp = match local.xdp.hook {
                    None => "off",
                    Some(Hook::XdpUnderlay) => "native",
                    Some(_) => "generic",
                };
                xdp.clone_into(&mut fast_path.xdp);
            }
        });
        select! {
            Ok(()) = externals.changed() => {}
            Ok(()) = locals.changed() => {}
            Ok(()) = pod_mtu.changed() => {}
            Ok(()) = summary.changed() => {}
            else => std::future::pending().await,
        }
    }
}

/// Tells when our lease ends, and what others have made of it.
pub(super) async fn follow_lease(
    standing: &Standing,
    mut expiration: watch::Receiver<Option<SystemTime>>,
    mut mended: watch::Receiver<Mended>,
) -> Infallible {
    loop {
        let expires = expiration.borrow_and_update().map(snapshot::unix);
        let Mended { times, last, contested } = mended.borrow_and_update().clone();
        standing.tell(|told| {
            let lease = told.lease.get_or_insert_default();
            (lease.expires, lease.mended, lease.contested) = (expires, times, contested);
            lease.last_mended = last.map(snapshot::unix);
        });
        select! {
            Ok(()) = expiration.changed() => {}
            Ok(()) = mended.changed() => {}
            else => std::future::pending().await,
        }
    }
}

fn interface(external: &ExternalInterface) -> Interface {
    Interface {
        name: external.name.clone(),
        index: external.index,
        mtu: external.mtu,
        addresses: external.addresses().map(|(_, address)| address).collect(),
    }
}

fn backend(kind: &str, external: &ExternalInterface, local: &Local, pod_mtu: u32) -> Backend {
    let vxlan =
        local.stacks.values().filter_map(|stack| Some(of_vxlan(stack.device.as_ref()?, stack.network)));
    let others = local.backend.carrying_devices(external, &local.stacks).into_iter().map(of_backend);
    Backend {
        kind: kind.to_owned(),
        direct_routing: local.direct_routing,
        devices: vxlan.chain(others).collect(),
        pod_mtu,
    }
}

fn of_backend(device: CarryingDevice) -> Device {
    let CarryingDevice { name, port, mtu, networks } = device;
    Device { name, vni: None, port, mac: None, mtu, networks }
}

fn of_vxlan(device: &VxlanDevice, network: IpNetwork) -> Device {
    Device {
        networks: vec![network],
        name: device.name.clone(),
        vni: Some(device.vni),
        port: Some(device.port),
        mac: Some(device.mac.to_string()),
        mtu: device.mtu,
    }
}

/// What our lease says, beside what the store knows of it: subnets, networks and addresses.
fn lease(local: &Local) -> (Vec<IpNetwork>, Vec<IpNetwork>, Vec<IpAddr>) {
    let stacks = || local.stacks.values();
    (
        stacks().map(|stack| stack.subnet).collect(),
        stacks().map(|stack| stack.network).collect(),
        stacks().map(|stack| stack.public_ip).collect(),
    )
}
