//! What the kernel tells of our own changes.

use std::collections::BTreeSet;

use flannel_agent::{
    datapath::Datapath,
    netlink::{Changed, Monitor, Watched},
    plan::{Change, delta},
    reconcile::Echoes,
};

use super::namespace::*;

/// Makes `changes`, and returns what the kernel told besides.
async fn make(monitor: &mut Monitor, changes: &[Change]) -> Changed {
    for result in datapath().apply(changes).await {
        result.unwrap();
    }
    let echoes = Echoes::of(changes);
    let networks = Some(vec!["10.1.0.0/16".parse().unwrap()]);
    let watched =
        Watched { overlays: BTreeSet::from([index_of("flannel.1")]), networks, ..Watched::default() };
    monitor.heard_but(&watched, |notice| echoes.hold(notice))
}

#[test]
fn are_no_news() {
    with_namespace(|| async {
        let (before, after) = (planned([2, 3]).state, planned([3, 4]).state);
        let mut kernel = datapath();
        let changes = delta(&before, &kernel.observe().await.unwrap());
        kernel.apply(&changes).await;
        let mut monitor = Monitor::open().unwrap();
        let changes = delta(&after, &before);
        assert_eq!(changes.len(), 6, "three objects come, three go");
        // That a new device has a carrier the kernel tells up to a second later; none of the changes is of a link.
        let but_links = |changed: Changed| Changed { links: false, ..changed };
        assert_eq!(but_links(make(&mut monitor, &changes).await), Changed::default());
        assert_eq!(but_links(make(&mut monitor, &delta(&before, &after)).await), Changed::default());
    });
}

#[test]
fn are_told_from_what_others_do() {
    with_namespace(|| async {
        let (before, after) = (planned([2, 3]).state, planned([3, 4]).state);
        let mut kernel = datapath();
        let changes = delta(&before, &kernel.observe().await.unwrap());
        kernel.apply(&changes).await;
        for foreign in [
            "route delete 10.1.3.0/24",
            "route add 10.1.3.0/24 via 10.1.3.0 dev flannel.1 onlink metric 5",
            "neighbour delete 10.1.3.0 dev flannel.1",
            "neighbour replace 10.1.4.0 lladdr 0e:00:00:00:00:99 nud permanent dev flannel.1",
        ] {
            let mut monitor = Monitor::open().unwrap();
            ip(foreign);
            let heard = make(&mut monitor, &delta(&after, &before)).await;
            assert!(heard.overlay, "{foreign}: {heard:?}");
            make(&mut monitor, &delta(&before, &after)).await;
        }
        let mut monitor = Monitor::open().unwrap();
        run("bridge", "fdb replace 0e:00:00:01:00:03 dev flannel.1 dst 198.18.0.99 self permanent");
        assert!(make(&mut monitor, &delta(&after, &before)).await.overlay);
    });
}
