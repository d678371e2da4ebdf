//! The loop over the real kernel.

use std::{future::pending, time::Duration};

use flannel_agent::{
    datapath::Datapath,
    lease::{LeaseEvent, LeaseSource},
    plan::State,
    reconcile::{KernelHost, Reconciler, Summary},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::namespace::*;

struct Leases(mpsc::UnboundedReceiver<LeaseEvent>);

impl LeaseSource for Leases {
    async fn next(&mut self) -> LeaseEvent {
        match self.0.recv().await {
            Some(event) => event,
            None => pending().await,
        }
    }
}

struct Agent {
    leases: mpsc::UnboundedSender<LeaseEvent>,
    view: watch::Receiver<Summary>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

fn start() -> Agent {
    let (leases, source) = mpsc::unbounded_channel();
    let (stop, stopped) = oneshot::channel();
    let host = KernelHost::open().unwrap();
    // Of a node that never changes: its sender is gone.
    let (_, locals) = watch::channel(local());
    let (reconciler, view) = Reconciler::new(locals, datapath(), host, Leases(source));
    let task = tokio::spawn(async move {
        let stopped = async {
            let _ = stopped.await;
        };
        reconciler.run(stopped).await;
    });
    Agent { leases, view, stop, task }
}

/// How long anything may take on a machine that does much else.
const SOON: Duration = Duration::from_secs(20);

/// Waits until the kernel is as desired, and returns how long that took.
async fn becomes(desired: &State) -> Duration {
    let mut datapath = datapath();
    let start = Instant::now();
    loop {
        let observed = datapath.observe().await.unwrap();
        if observed == *desired {
            return start.elapsed();
        }
        assert!(start.elapsed() < SOON, "{observed:#?}\ninstead of\n{desired:#?}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn brings_up_repairs_and_leaves_everything_in_place() {
    with_namespace(|| async {
        let agent = start();
        sleep(Duration::from_millis(100)).await;
        assert!(!ip("link show").contains("flannel.1"), "touched before the first snapshot");
        agent.leases.send(LeaseEvent::Snapshot((2..12).map(lease).collect())).unwrap();
        let desired = planned(2..12).state;
        becomes(&desired).await;

        for damage in [
            "link delete flannel.1",
            "link set flannel.1 down",
            "link set flannel.1 address 0e:00:00:00:00:99",
            "link set flannel.1 mtu 1300",
            "route flush dev flannel.1",
            "neighbour flush dev flannel.1 nud permanent",
            "address flush dev flannel.1",
            "address add 10.9.9.9/32 dev flannel.1",
        ] {
            ip(damage);
            let took = becomes(&desired).await;
            println!("{damage}: repaired after {took:?}");
        }
        let index = index_of("flannel.1");

        agent.leases.send(LeaseEvent::Remove(lease(2).subnet)).unwrap();
        agent.leases.send(LeaseEvent::Upsert(lease(12))).unwrap();
        let desired = planned(3..13).state;
        becomes(&desired).await;

        agent.stop.send(()).unwrap();
        timeout(SOON, agent.task).await.unwrap().unwrap();
        assert_eq!(datapath().observe().await.unwrap(), desired);

        // The next process adopts what it finds.
        let agent = start();
        agent.leases.send(LeaseEvent::Snapshot((3..14).map(lease).collect())).unwrap();
        becomes(&planned(3..14).state).await;
        assert_eq!(index_of("flannel.1"), index);
        drop(agent);
    });
}

#[test]
fn is_quiet_when_nothing_happens() {
    with_namespace(|| async {
        let mut agent = start();
        agent.leases.send(LeaseEvent::Snapshot((2..102).map(lease).collect())).unwrap();
        becomes(&planned(2..102).state).await;
        // Notices of its own changes are still to come, and make for a pass or two: in a second without news it is over
        // them. Who is kept busy by them has no such second.
        let start = Instant::now();
        while timeout(Duration::from_secs(1), agent.view.changed()).await.is_ok() {
            assert!(start.elapsed() < SOON, "its own changes keep it busy: {:?}", agent.view.borrow());
        }
        let quiet = agent.view.borrow_and_update().clone();
        assert_eq!((quiet.peers, quiet.pending, quiet.last_error.clone()), (100, 0, None));
        assert!(quiet.passes <= 10, "its own changes kept it busy: {quiet:?}");
    });
}

#[test]
fn says_what_is_in_the_way_and_goes_on_when_it_is_gone() {
    with_namespace(|| async {
        ip("link add vx0 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472");
        let mut agent = start();
        agent.leases.send(LeaseEvent::Snapshot(vec![lease(2)])).unwrap();
        let standing = agent.view.wait_for(|summary| summary.last_error.is_some()).await.unwrap().clone();
        let error = standing.last_error.unwrap();
        assert!(error.contains("taken by device vx0"), "{error}");
        ip("link delete vx0");
        becomes(&planned([2]).state).await;
        let cleared = agent.view.wait_for(|summary| summary.pending == 0);
        assert_eq!(timeout(SOON, cleared).await.unwrap().unwrap().last_error, None);
    });
}
