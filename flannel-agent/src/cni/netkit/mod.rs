//! The delegate `netkit`, which is no other program: as the plugin `bridge`, but a pod has a netkit (Linux 6.7) in place of
//! a veth.
//!
//! The netkit is in L2 mode and a port of the same bridge, so that a node may have pods of both kinds, and all that goes by
//! the bridge holds for both. What is kept of a pod is what `bridge` would be told: it deletes whatever interface has the
//! name, so DEL, GC and STATUS are its, and upstream's plugin can delete such pods, too. On a kernel without netkit ADD is
//! its as well.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use nix::errno::Errno;
use serde_json::{Map, Value};

use super::{
    error::{CniError, Code},
    invocation::{Invocation, Verb},
    invoke::{Plugin, render},
};
use crate::netlink::{Link, Netlink, link, netkit};

use failure::{failed, gone};
use given::{Given, Interface};
use namespace::Namespace;
use options::Options;

mod failure;
mod given;
mod host_side;
mod namespace;
mod options;

/// What a configuration calls the delegate.
const TYPE: &str = "netkit";

/// Makes of a delegate's configuration, which is complete but for the pod's addresses, that of `bridge` where it is one of
/// ours.
///
/// # Errors
/// An option that it does not have, or that cannot be.
pub(super) fn become_bridge(delegate: &mut Map<String, Value>) -> Result<(), CniError> {
    if is_wanted(delegate) {
        Options::of(delegate)?;
        delegate.insert("type".to_owned(), "bridge".into());
    }
    Ok(())
}

/// Whether the delegate of a configuration is this one.
pub(super) fn is_wanted(delegate: &Map<String, Value>) -> bool {
    delegate.get("type").is_some_and(|kind| kind == TYPE)
}

/// ADD, by what `bridge` would be told. `None` where the kernel has no netkit: then nothing has been done.
pub(super) fn add(
    invocation: &Invocation,
    config: &Map<String, Value>,
    text: &[u8],
    version: &str,
) -> Result<Option<Vec<u8>>, CniError> {
    let options = Options::of(config)?;
    let ipam = ipam(config, invocation)?;
    run(async {
        let mut pod = Namespace::open(&invocation.netns, &invocation.interface)?;
        let mut host = Netlink::open().map_err(|error| failed("ask the kernel", &error))?;
        if pod.link().await?.is_some() {
            return Err(CniError::new(
                Code::Internal,
                format!("the pod has an interface {} already", invocation.interface),
            ));
        }
        let Some(end) = make(&mut host, &pod, invocation, &options).await? else { return Ok(None) };
        let made = async {
            let bridge = host_side::bridge(&mut host, &options).await?;
            host_side::connect(&mut host, &end, &bridge, &options).await?;
            let given = Given::read(&ipam.run(Verb::Add, text)?, &options);
            let connected = async {
                let given = given?;
                if options.is_gateway {
                    host_side::be_gateway(&mut host, &bridge, &given, &options).await?;
                }
                let inside = pod.link().await?.ok_or_else(|| gone(&invocation.interface))?;
                pod.set_up(&inside, &given).await?;
                let sandbox = Some(invocation.netns.to_string_lossy().into_owned());
                // As it is now: a bridge may have another MAC with another port.
                let bridge = host.link(&options.bridge).await.ok().flatten().unwrap_or(bridge);
                let interfaces = [(&bridge, None), (&end, None), (&inside, sandbox)];
                let interfaces = interfaces.map(|(link, sandbox)| Interface {
                    name: link.name.clone(),
                    mac: link.mac,
                    sandbox,
                });
                Ok(given.render(version, &interfaces))
            };
            // What was given to a pod that is not to be is free again; why it is not is of more interest than if that fails.
            connected.await.inspect_err(|_: &CniError| drop(ipam.run(Verb::Del, text)))
        };
        let made = made.await;
        if made.is_err() {
            let _ = host.change(link::delete(end.index)).await;
        }
        made.map(Some)
    })
}

/// CHECK of a pod with this delegate, also of one that `bridge` has made for want of a netkit: whether the pod's interface
/// is there, connected to the bridge, and has the addresses of `previous`, the result of ADD.
pub(super) fn check(
    invocation: &Invocation,
    config: &Map<String, Value>,
    previous: Option<&Value>,
) -> Result<(), CniError> {
    let options = Options::of(config)?;
    let wrong = |what: String| Err(CniError::new(Code::Internal, what));
    let name = &invocation.interface;
    let previous = previous.filter(|value| value.is_object()).ok_or_else(|| {
        CniError::new(Code::NetworkConfig, "prevResult: missing; CHECK needs the result of ADD")
    })?;
    let given = Given::read(previous.to_string().as_bytes(), &options)?;
    run(async {
        let mut pod = Namespace::open(&invocation.netns, name)?;
        let Some(inside) = pod.link().await? else { return Err(gone(name)) };
        let mut host = Netlink::open().map_err(|error| failed("ask the kernel", &error))?;
        let (Some(peer), true) = (inside.peer, inside.kind.is_pair()) else {
            return wrong(format!("{name} of the pod is no end of a netkit or veth whose other end is here"));
        };
        let end =
            host.link_at(peer.index).await.map_err(|error| failed("look for the pod's port", &error))?;
        let bridge = host.link(&options.bridge).await;
        let bridge =
            bridge.map_err(|error| failed(&format!("look for bridge {}", options.bridge), &error))?;
        let master = end.and_then(|end| end.master);
        if bridge.is_none_or(|bridge| master != Some(bridge.index)) {
            return wrong(format!("{name} of the pod is not connected to bridge {}", options.bridge));
        }
        if !inside.up {
            return wrong(format!("{name} of the pod is down"));
        }
        let held = pod.addresses(&inside).await?;
        match given.addresses.iter().find(|given| !held.contains(&given.network)) {
            Some(missing) => wrong(format!("{name} of the pod has lost address {}", missing.network)),
            None => Ok(()),
        }
    })?;
    let mut config = config.clone();
    config.insert("prevResult".to_owned(), previous.clone());
    ipam(&config, invocation)?.run(Verb::Check, &render(&config)).map(drop)
}

/// Makes the netkit; its end here, which is not up yet. `None` where the kernel knows of none.
async fn make(
    host: &mut Netlink,
    pod: &Namespace,
    invocation: &Invocation,
    options: &Options,
) -> Result<Option<Link>, CniError> {
    let name = name_of(&invocation.container, &invocation.interface);
    match host.change(netkit::create(&name, options.mtu, pod.end(options.mac))).await {
        Ok(()) => {}
        Err(error) if error.errno() == Some(Errno::EOPNOTSUPP) => return Ok(None),
        Err(error) => return Err(failed(&format!("make netkit {name}"), &error)),
    }
    let found = host.link(&name).await.map_err(|error| failed(&format!("look for {name}"), &error))?;
    found.map(Some).ok_or_else(|| gone(&name))
}

/// The name of the host's end: the same for the same pod, so that one that nobody has deleted is not joined by another.
fn name_of(container: &str, interface: &str) -> String {
    let mut hasher = DefaultHasher::new();
    (container, interface).hash(&mut hasher);
    format!("nk{:08x}", hasher.finish() & 0xffff_ffff)
}

/// The plugin that gives addresses.
fn ipam(config: &Map<String, Value>, invocation: &Invocation) -> Result<Plugin, CniError> {
    let name = config.get("ipam").and_then(|ipam| ipam.get("type")).and_then(Value::as_str);
    Plugin::named("ipam.type", name.unwrap_or_default(), &invocation.path)
}

fn run<T>(what: impl Future<Output = Result<T, CniError>>) -> Result<T, CniError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| failed("wait for the kernel", &error))?.block_on(what)
}
