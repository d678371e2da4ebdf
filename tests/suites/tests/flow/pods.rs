//! Flows of pods that go, and of those that get their addresses.

use std::{net::UdpSocket, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_agent::bpf::{Pins, Tables};
use flannel_common::{path::Hook, reason::Reason};
use flannel_lab::{CONVERGENCE, Member, eventually, in_lab, traffic::Endpoint};

use crate::{cluster, counted, fast, packets};

const PORT: u16 = 5000;

fn tables(member: &Member) -> Result<Tables> {
    Ok(Tables::open(&Pins::under(member.agent.bpffs())?)?)
}

/// A socket at `from` on [`PORT`] that talks to [`PORT`] of `to`.
fn socket(from: &Endpoint, to: &Endpoint) -> Result<UdpSocket> {
    let socket = from.netns().inside(|| Ok(UdpSocket::bind(from.socket_address(PORT))?))?;
    socket.connect(to.socket_address(PORT))?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    Ok(socket)
}

fn exchange(a: &UdpSocket, b: &UdpSocket, times: u32) -> Result<()> {
    for number in 0..times {
        for (from, to) in [(a, b), (b, a)] {
            let mut heard = [0; 8];
            from.send(&number.to_be_bytes())?;
            let length = to.recv(&mut heard).with_context(|| format!("datagram {number} did not arrive"))?;
            ensure!(heard[..length] == number.to_be_bytes(), "datagram {number} arrived changed");
        }
    }
    Ok(())
}

#[test]
fn a_pod_inherits_nothing_with_its_address() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = cluster(lab, 1, Duration::from_secs(30))?;
        let (a, b) = (cluster.members[0].pod()?, cluster.members[1].pod()?);
        let at_b = socket(&b, &a)?;
        let at_a = socket(&a, &b)?;
        exchange(&at_a, &at_b, 50)?;
        let member = &cluster.members[0];
        let of_pod = |tables: &Tables| -> Result<Vec<u32>> {
            let flows = tables.v4.flows.entries()?.into_iter();
            let own = flows.filter(|(flow, _)| flow.local == a.address_v4().octets());
            Ok(own.map(|(_, permit)| permit.ifindex).collect())
        };
        let place = tables(member)?.v4.pods.entries()?[&a.address_v4().octets()];
        let known = of_pod(&tables(member)?)?;
        ensure!(!known.is_empty() && known.iter().all(|index| *index == place.ifindex), "{known:?}");

        // The pod goes, and with it what is known of it.
        drop(at_a);
        for pod in std::mem::take(&mut cluster.members[0].pods) {
            pod.remove()?;
        }
        let member = &cluster.members[0];
        eventually(CONVERGENCE, "the flows of the pod are gone", || {
            let left = of_pod(&tables(member)?)?;
            ensure!(left.is_empty(), "{} flows are left", left.len());
            Ok(())
        })?;

        // Another comes, with its address. All that was there is still within its time.
        let netns = lab.netns("again")?;
        let subnet = member.node.subnet_env()?.subnet;
        let node = member.node.netns();
        node.ip(&format!("link add again type veth peer name eth0 netns {}", netns.name()))?;
        node.ip_batch("link set again master cni0\nlink set again up\n")?;
        netns.ip_batch(&format!(
            "addr add {}/{} dev eth0\nlink set eth0 mtu 1450 up\nroute add default via {}\n",
            a.address(),
            subnet.prefix(),
            subnet.nth(1).context("gateway")?
        ))?;
        eventually(CONVERGENCE, "the agent finds the new pod", || {
            let now = tables(member)?.v4.pods.entries()?.get(&a.address_v4().octets()).copied();
            ensure!(now.is_some_and(|now| now.ifindex != place.ifindex), "{now:?}");
            // A flow is learned at both hooks of its veth, and the agent attaches one after the other.
            let attached = node.attachments()?;
            let learns = |hook: Hook| attached.contains_key(&("again".to_owned(), hook.program()));
            ensure!(learns(Hook::FromPod) && learns(Hook::ToPod), "{attached:?}");
            Ok(())
        })?;
        let again = Endpoint::new("again".to_owned(), netns, a.address());
        let at_a = socket(&again, &b)?;
        let [at_first, _] = counted(&cluster, || exchange(&at_a, &at_b, 1))?;
        ensure!(fast(&at_first) == [0, 0], "a flow was inherited: {at_first}");
        ensure!(
            packets(&at_first, Reason::FlowUnknown) + packets(&at_first, Reason::FlowHalf) == 2,
            "{at_first}"
        );
        // It learns flows of its own.
        let [at_first, _] = counted(&cluster, || exchange(&at_a, &at_b, 50))?;
        ensure!(fast(&at_first).into_iter().all(|packets| packets > 40), "{at_first}");
        Ok(())
    })
}
