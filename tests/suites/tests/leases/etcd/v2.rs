//! Leases in etcd's v2 store, as flannel 0.11 to 0.17 keep them: what the v3 store's tests say of the rest holds here,
//! as it is the same code.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
};

use anyhow::ensure;
use flannel_agent::lease::etcd::{LeaseKeeper, LeaseTiming, OwnLease, OwnLeaseReport};
use flannel_lab::{Cluster, FastPath, etcd::Options, in_lab, traffic::every_kind_both_ways};

use super::{proxy::Proxy, *};

const OWN: &str = "10.3.7.0-24";

pub(super) fn start() -> Etcd {
    Etcd::with(Options { v2: true, ..Options::default() }).unwrap()
}

fn of_v2(endpoints: String) -> EtcdOptions {
    EtcdOptions { endpoints, api: EtcdApi::V2, ..EtcdOptions::default() }
}

fn store(etcd: &Etcd) -> EtcdStore {
    EtcdStore::connect(&of_v2(etcd.endpoint())).unwrap()
}

fn get(etcd: &Etcd, name: &str) -> String {
    etcd.ctl_v2(&["get", &key(name)]).unwrap()
}

fn set(etcd: &Etcd, name: &str, number: u8) {
    etcd.ctl_v2(&["set", "--ttl", "86400", &key(name), &node(number).to_json()]).unwrap();
}

/// As nobody else does: an end every few seconds.
async fn kept(etcd: &Etcd, ttl: u64, margin: u64) -> (OwnLease, LeaseKeeper) {
    let second = Duration::from_secs(1);
    let (ttl, renew_margin) = (Duration::from_secs(ttl), Duration::from_secs(margin));
    let timing = LeaseTiming { ttl, renew_margin, renew_retry: second };
    let store = EtcdStore::connect(&EtcdOptions { timing, ..of_v2(etcd.endpoint()) }).unwrap();
    let own = store.acquire_lease(&network(), &node(1), Some(subnet("10.3.7.0/24"))).await.unwrap();
    (own.clone(), store.keep_lease(own))
}

async fn report(keeper: &mut LeaseKeeper) -> OwnLeaseReport {
    tokio::time::timeout(SOON, keeper.report()).await.expect("no report")
}

#[tokio::test]
async fn acquire_lease() {
    let etcd = start();
    let store = store(&etcd);
    let first = store.acquire_lease(&network(), &node(1), Some(subnet("10.3.7.0/24"))).await.unwrap();
    assert_eq!(get(&etcd, OWN), node(1).to_json());
    let ttl = etcd.ttl_v2(&key(OWN)).unwrap();
    assert!((86_300..=86_400).contains(&ttl), "{ttl}");
    let left = first.expiration.unwrap().duration_since(std::time::SystemTime::now()).unwrap().as_secs();
    assert!((86_300..=86_400).contains(&left), "{left}");
    let again = store.acquire_lease(&network(), &node(1), None).await.unwrap();
    assert_eq!(again.subnet, first.subnet, "own lease first");
    let other = store.acquire_lease(&network(), &node(2), Some(first.subnet)).await.unwrap();
    assert_ne!(other.subnet, first.subnet, "not what another holds");
    let moved = NetworkConfig::parse(br#"{"Network":"10.4.0.0/16"}"#).unwrap();
    let new = store.acquire_lease(&moved, &node(1), Some(first.subnet)).await.unwrap();
    assert!(etcd.ctl_v2(&["get", &key(OWN)]).is_err(), "released for {}", new.subnet);
    assert!(etcd.keys(PREFIX).unwrap().is_empty(), "nothing is written to v3");
}

#[tokio::test]
async fn a_reservation_stays_without_end() {
    let etcd = start();
    etcd.ctl_v2(&["mk", &key("10.3.9.0-24"), r#"{"PublicIP":"192.0.2.1"}"#]).unwrap();
    let store = store(&etcd);
    let own = store.acquire_lease(&network(), &node(1), None).await.unwrap();
    assert_eq!((own.subnet, own.expiration), (subnet("10.3.9.0/24"), None));
    let mut keeper = store.keep_lease(own);
    let mut changed = node(9);
    changed.public_ip = node(1).public_ip;
    keeper.publish(changed.clone());
    assert_eq!(report(&mut keeper).await, OwnLeaseReport::Renewed { expiration: None });
    assert_eq!(get(&etcd, "10.3.9.0-24"), changed.to_json());
    assert_eq!(etcd.ttl_v2(&key("10.3.9.0-24")).unwrap(), 0);
}

#[tokio::test]
async fn a_lease_is_renewed_before_its_end_and_lost_to_whoever_takes_it() {
    let etcd = start();
    let (log, _guard) = Log::capture();
    let (own, mut keeper) = kept(&etcd, 3, 2).await;
    for _ in 0..4 {
        let OwnLeaseReport::Renewed { expiration } = report(&mut keeper).await else {
            panic!("{}", log.text())
        };
        assert!(expiration > own.expiration);
        assert_eq!(get(&etcd, OWN), node(1).to_json());
    }
    drop(keeper);
    let (own, mut keeper) = kept(&etcd, 600, 5).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    etcd.ctl_v2(&["rm", &key(OWN)]).unwrap();
    assert!(matches!(report(&mut keeper).await, OwnLeaseReport::Retaken { .. }), "{}", log.text());
    assert_eq!(get(&etcd, OWN), node(1).to_json());
    etcd.ctl_v2(&["rm", "--recursive", PREFIX]).unwrap();
    assert!(matches!(report(&mut keeper).await, OwnLeaseReport::Retaken { .. }), "{}", log.text());
    set(&etcd, OWN, 2);
    let OwnLeaseReport::Lost(lost) = report(&mut keeper).await else { panic!("{}", log.text()) };
    assert_eq!((lost.subnet, lost.holder), (own.subnet, node(2).node_address()));
    assert_eq!(get(&etcd, OWN), node(2).to_json(), "left alone");
}

#[tokio::test]
async fn watch_leases() {
    let etcd = start();
    let store = store(&etcd);
    let mut watch = store.watch(subnet("10.3.7.0/24"));
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(Vec::new()));
    set(&etcd, OWN, 1);
    etcd.ctl_v2(&["set", &key("10.3.3.0-24"), "{damaged"]).unwrap();
    etcd.ctl_v2(&["set", "--ttl", "2", &key("10.3.2.0-24"), &node(2).to_json()]).unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.2.0/24", 2)));
    assert_eq!(next(&mut watch).await, LeaseEvent::Remove(subnet("10.3.2.0/24")), "expired");
    set(&etcd, "10.3.3.0-24", 3);
    assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.3.0/24", 3)));
    etcd.ctl_v2(&["rm", &key("10.3.3.0-24")]).unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Remove(subnet("10.3.3.0/24")));
    assert_eq!(store.undecodable(), 1);
}

/// Writes a key of the v2 store `times` times.
fn busy(etcd: &Etcd, times: usize) {
    let mut stream = TcpStream::connect(etcd.address()).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    for _ in 0..times {
        let head = "PUT /v2/keys/elsewhere HTTP/1.1\r\nHost: etcd\r\nContent-Length: 7\r\n\
                    Content-Type: application/x-www-form-urlencoded\r\n\r\nvalue=x";
        stream.write_all(head.as_bytes()).unwrap();
        let (mut line, mut length) = (String::new(), 0);
        while line != "\r\n" {
            line.clear();
            answers.read_line(&mut line).unwrap();
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        answers.read_exact(&mut vec![0; length]).unwrap();
    }
}

#[tokio::test]
async fn events_that_etcd_has_forgotten_are_made_up_for() {
    let etcd = start();
    set(&etcd, "10.3.2.0-24", 2);
    set(&etcd, "10.3.5.0-24", 5);
    let proxy = Proxy::to(&etcd).await;
    let store = EtcdStore::connect(&of_v2(format!("http://{}", proxy.address))).unwrap();
    let mut watch = store.watch(subnet("10.3.7.0/24"));
    let before = vec![lease("10.3.2.0/24", 2), lease("10.3.5.0/24", 5)];
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(before));
    let proxy = proxy.cut();
    set(&etcd, "10.3.5.0-24", 55);
    set(&etcd, "10.3.3.0-24", 3);
    etcd.ctl_v2(&["rm", &key("10.3.2.0-24")]).unwrap();
    busy(&etcd, 1001);
    let _proxy = proxy.mend().await;
    let after = vec![lease("10.3.3.0/24", 3), lease("10.3.5.0/24", 55)];
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(after));
    set(&etcd, "10.3.4.0-24", 4);
    assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.4.0/24", 4)), "and it goes on");
}

#[tokio::test]
async fn an_endpoint_killed_and_back() {
    let mut etcd = start();
    let (log, _guard) = Log::capture();
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let store = EtcdStore::connect(&of_v2(format!("http://{dead},{}", etcd.endpoint()))).unwrap();
    let own = store.acquire_lease(&network(), &node(1), Some(subnet("10.3.7.0/24"))).await.unwrap();
    set(&etcd, "10.3.2.0-24", 2);
    let mut watch = store.watch(own.subnet);
    let mut keeper = store.keep_lease(own);
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(vec![lease("10.3.2.0/24", 2)]));
    etcd.stop();
    silent(&mut watch).await;
    etcd.start_again().unwrap();
    set(&etcd, "10.3.3.0-24", 3);
    etcd.ctl_v2(&["rm", &key("10.3.2.0-24")]).unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(vec![lease("10.3.3.0/24", 3)]), "{}", log.text());
    etcd.ctl_v2(&["rm", &key(OWN)]).unwrap();
    assert!(matches!(report(&mut keeper).await, OwnLeaseReport::Retaken { .. }), "{}", log.text());
    // Emptied, it takes nobody away at once.
    etcd.wipe().unwrap();
    etcd.start_again().unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(vec![lease("10.3.3.0/24", 3)]), "{}", log.text());
    assert!(matches!(report(&mut keeper).await, OwnLeaseReport::Retaken { .. }), "{}", log.text());
}

/// Its index does not show that the store is another, nor does its cluster's id.
#[tokio::test]
async fn a_store_emptied_and_written_to_before_we_are_back_is_noticed() {
    let mut etcd = start();
    let (log, _guard) = Log::capture();
    set(&etcd, "10.3.2.0-24", 2);
    set(&etcd, "10.3.3.0-24", 3);
    let proxy = Proxy::to(&etcd).await;
    let store = EtcdStore::connect(&of_v2(format!("http://{}", proxy.address))).unwrap();
    let own = store.acquire_lease(&network(), &node(1), Some(subnet("10.3.7.0/24"))).await.unwrap();
    let mut watch = store.watch(own.subnet);
    let mut keeper = store.keep_lease(own);
    let all = vec![lease("10.3.2.0/24", 2), lease("10.3.3.0/24", 3)];
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(all.clone()));
    silent(&mut watch).await;
    let proxy = proxy.cut();
    etcd.wipe().unwrap();
    etcd.start_again().unwrap();
    set(&etcd, "10.3.3.0-24", 3);
    busy(&etcd, 30);
    let _proxy = proxy.mend().await;
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(all), "{}", log.text());
    assert!(matches!(report(&mut keeper).await, OwnLeaseReport::Retaken { .. }), "{}", log.text());
    assert_eq!(get(&etcd, OWN), node(1).to_json());
}

#[tokio::test]
async fn tls_and_users() {
    let mut etcd = Etcd::with(Options { v2: true, tls: true, ..Options::default() }).unwrap();
    let config = format!("{PREFIX}/config");
    etcd.ctl_v2(&["mk", &config, r#"{"Network":"10.3.0.0/16"}"#]).unwrap();
    let plain = EtcdOptions {
        cafile: Some(etcd.path("ca.pem")),
        certfile: Some(etcd.path("client.pem")),
        keyfile: Some(etcd.path("client.key")),
        ..of_v2(etcd.endpoint())
    };
    let user = |password: &str| EtcdOptions {
        username: Some("node".to_owned()),
        password: Some(password.to_owned()),
        ..plain.clone()
    };
    let connect = |options: &EtcdOptions| EtcdStore::connect(options).unwrap();
    connect(&user("secret")).try_network_config().await.expect("credentials before etcd asks for any");
    let anonymous = connect(&EtcdOptions { certfile: None, keyfile: None, ..plain.clone() });
    let error = anonymous.try_network_config().await.unwrap_err().to_string();
    assert!(error.contains("etcd wants a client certificate"), "{error}");
    let in_the_clear = of_v2(etcd.endpoint().replace("https", "http"));
    let error = connect(&in_the_clear).try_network_config().await.unwrap_err().to_string();
    assert!(error.contains("https://"), "{error}");
    let of_this_system = EtcdOptions { cafile: None, ..plain.clone() };
    let error = connect(&of_this_system).try_network_config().await.unwrap_err().to_string();
    assert!(error.contains("not signed by the CA"), "{error}");

    etcd.require_users_v2("node", "secret", PREFIX).unwrap();
    let store = connect(&user("secret"));
    store.try_network_config().await.unwrap();
    let own = store.acquire_lease(&network(), &node(1), None).await.unwrap();
    let mut watch = store.watch(own.subnet);
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(Vec::new()));
    set(&etcd, "10.3.250.0-24", 2);
    assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.250.0/24", 2)));
    let error = connect(&user("wrong")).try_network_config().await.unwrap_err().to_string();
    assert!(error.contains("--etcd-username") && !error.contains("wrong"), "{error}");
}

/// v2 has no condition on several keys: the later one of two nodes yields.
#[tokio::test(flavor = "multi_thread")]
async fn simultaneous_dual_stack_starts_overlap_in_neither_family() {
    let etcd = start();
    let config = NetworkConfig::parse(
        br#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.1.0","SubnetMax":"10.3.6.0","EnableIPv6":true,
             "IPv6Network":"fd00:10::/48","IPv6SubnetMin":"fd00:10:0:1::","IPv6SubnetMax":"fd00:10:0:6::"}"#,
    )
    .unwrap();
    let mut starts = tokio::task::JoinSet::new();
    for number in 1..=6 {
        let (store, config) = (store(&etcd), config.clone());
        let attrs =
            LeaseAttrs { public_ipv6: Some(format!("fd77::{number}").parse().unwrap()), ..node(number) };
        starts.spawn(async move { store.acquire_lease(&config, &attrs, None).await.unwrap().subnet });
    }
    let all = starts.join_all().await;
    for (index, one) in all.iter().enumerate() {
        assert!(!all.iter().skip(index + 1).any(|other| one.overlaps(other)), "{all:?}");
    }
}

#[test]
fn nodes_over_the_v2_store() -> anyhow::Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::start_v2(lab, 2, FastPath::All)?;
        every_kind_both_ways(&cluster.members[0].pod()?, &cluster.members[1].pod()?)?;
        for member in &cluster.members {
            let own = member.node.subnet_env()?.subnet.to_string();
            let listed = cluster.etcd.ctl_v2(&["ls", &format!("{PREFIX}/subnets")])?;
            let own = own.replacen(".1/", ".0/", 1).replace('/', "-");
            ensure!(listed.contains(&own), "{own} is not leased: {listed}");
        }
        ensure!(cluster.etcd.leases()?.is_empty(), "a lease in the v3 store");
        Ok(())
    })
}
