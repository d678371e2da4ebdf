//! Network policies, as agents write them into FORWARD.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use flannel_tests::{
    eventually,
    lab::{Cluster, FastPath, in_lab},
    traffic::{Dialogue, Paced, dialogue::listen},
};

use crate::{cluster, counted, fast};

const REFRESH: Duration = Duration::from_secs(2);
const DENIED: u16 = 7777;

fn denied_is_denied(fast_path: FastPath) -> Result<()> {
    in_lab(|lab| {
        let cluster = match fast_path {
            FastPath::Flow => cluster(lab, 1, REFRESH)?,
            other => Cluster::start(lab, 2, 1, other)?,
        };
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        // At the sender's node for one, at the receiver's for the other.
        for (member, from, to) in [(a, a.pod()?, b.pod()?), (b, a.pod()?, b.pod()?)] {
            let rule = format!("FORWARD -p tcp -d {} --dport {DENIED} -j REJECT", to.address());
            member.node.iptables(&format!("-I {rule}"))?;
            let listener = listen(&to, DENIED)?;
            for _ in 0..3 {
                let outcome = Dialogue::through(&from, 0, to.socket_address(DENIED), &[&listener]);
                ensure!(outcome.is_err(), "what a policy denies was let through");
            }
            ensure!(listener.accept().is_err(), "a connection that a policy denies arrived");
            // Another port is not denied.
            Dialogue::open(&from, &to)?.exchanges(20)?;
            member.node.iptables(&format!("-D {rule}"))?;
            Dialogue::through(&from, 0, to.socket_address(DENIED), &[&listener])?.exchanges(3)?;
        }
        Ok(())
    })
}

#[test]
fn what_is_denied_never_passes_with_flow() -> Result<()> {
    denied_is_denied(FastPath::Flow)
}

#[test]
fn what_is_denied_never_passes_with_overlay() -> Result<()> {
    denied_is_denied(FastPath::Overlay)
}

#[test]
fn what_is_denied_never_passes_with_off() -> Result<()> {
    denied_is_denied(FastPath::Off)
}

/// Only connections from the one side are allowed; their answers come back, and are fast.
#[test]
fn answers_to_what_is_allowed_pass() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 1, REFRESH)?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        for member in &cluster.members {
            let node = &member.node;
            node.iptables(&format!("-I FORWARD -s {} -d {} -j REJECT", b.address(), a.address()))?;
            node.iptables("-I FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT")?;
        }
        ensure!(Dialogue::open(&b, &a).is_err(), "a connection was opened the way that is not allowed");
        let mut dialogue = Dialogue::open(&a, &b)?;
        let counted = counted(&cluster, || {
            // Longer than acceptance holds, with the server speaking first after each pause.
            let start = Instant::now();
            while start.elapsed() < REFRESH * 3 {
                dialogue.exchanges(10)?;
                std::thread::sleep(Duration::from_millis(100));
                std::mem::swap(&mut dialogue.client, &mut dialogue.server);
            }
            Ok(())
        })?;
        for counters in &counted {
            ensure!(fast(counters).into_iter().all(|packets| packets > 100), "{counters}");
        }
        ensure!(Dialogue::open(&b, &a).is_err(), "a connection was opened the way that is not allowed");
        Ok(())
    })
}

/// A policy for what is established, too, takes hold of running flows when their acceptance ends.
#[test]
fn a_new_policy_bites_running_flows() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 1, REFRESH)?;
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        for member in [a, b] {
            let mut dialogue = Dialogue::open(&a.pod()?, &b.pod()?)?;
            let trickle = Paced::usual(&a.pod()?, &b.pod()?)?;
            dialogue.exchanges(100)?;
            let rule = format!("FORWARD -s {} -d {} -j DROP", a.pod()?.address(), b.pod()?.address());
            member.node.iptables(&format!("-I {rule}"))?;
            // Until its time is over a flow goes on, whether or not it is used.
            std::thread::sleep(REFRESH + Duration::from_millis(500));
            ensure!(dialogue.exchange_within(Duration::from_secs(1)).is_err(), "the policy did not bite");
            let before = trickle.received();
            let counted = counted(&cluster, || {
                std::thread::sleep(Duration::from_secs(2));
                Ok(())
            })?;
            ensure!(trickle.received().0 == before.0, "the policy did not bite UDP");
            ensure!(fast(&counted[1])[1] == 0, "{}", counted[1]);
            member.node.iptables(&format!("-D {rule}"))?;
            let resumed = trickle.received().0;
            eventually(Duration::from_secs(5), "the flow resumes", || {
                ensure!(trickle.received().0 > resumed + 100);
                Ok(())
            })?;
            trickle.stop()?;
        }
        Ok(())
    })
}
