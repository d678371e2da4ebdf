use flannel_agent::lease::{LeaseSource as _, etcd::AcquireError};

use super::*;

fn pool(json: &str) -> NetworkConfig {
    NetworkConfig::parse(json.as_bytes()).unwrap()
}

fn in_range(own: &flannel_agent::lease::etcd::OwnLease, config: &NetworkConfig) -> bool {
    config.ipv4.unwrap().allows(own.subnet.v4.unwrap())
}

#[tokio::test]
async fn acquire_lease() {
    let etcd = Etcd::start().unwrap();
    let (store, config) = (store(&etcd), network());
    let first = store.acquire_lease(&config, &node(1), None).await.unwrap();
    assert!(in_range(&first, &config));
    let again = store.acquire_lease(&config, &node(1), Some(subnet("10.3.200.0/24"))).await.unwrap();
    assert_eq!(again.subnet, first.subnet, "own lease first");
    let previous = Some(subnet("10.3.201.0/24"));
    let second = store.acquire_lease(&config, &node(2), previous).await.unwrap();
    assert_eq!(Some(second.subnet), previous, "previous subnet, if free");
    let third = store.acquire_lease(&config, &node(3), previous).await.unwrap();
    assert_ne!(Some(third.subnet), previous, "not if another holds it");
    let outside = Some(subnet("10.4.5.0/24"));
    let fourth = store.acquire_lease(&config, &node(4), outside).await.unwrap();
    assert!(in_range(&fourth, &config), "not if outside the network");
    assert_eq!(etcd.keys(&key("")).unwrap().len(), 4);
}

#[tokio::test]
async fn config_changed() {
    let etcd = Etcd::start().unwrap();
    let store = store(&etcd);
    let old = store.acquire_lease(&network(), &node(1), None).await.unwrap();
    let config = pool(r#"{"Network":"10.4.0.0/16"}"#);
    let new = store.acquire_lease(&config, &node(1), Some(old.subnet)).await.unwrap();
    assert!(in_range(&new, &config));
    assert_eq!(etcd.keys(&key("")).unwrap(), [key(&new.subnet.to_string().replace('/', "-"))]);
}

/// Key and value of upstream's TestEtcdRegistry, and of a real vxlan node; TTL of 24 h.
#[tokio::test]
async fn etcd_registry_exact_key_value_and_ttl() {
    let etcd = Etcd::start().unwrap();
    let (store, config) = (store(&etcd), network());
    store.acquire_lease(&config, &node(1), Some(subnet("10.3.7.0/24"))).await.unwrap();
    let bare = LeaseAttrs::from_json(br#"{"PublicIP":"1.2.3.4"}"#).unwrap();
    store.acquire_lease(&config, &bare, Some(subnet("10.3.8.0/24"))).await.unwrap();
    assert_eq!(
        etcd.get("/coreos.com/network/subnets/10.3.7.0-24").unwrap().unwrap(),
        r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:01"}}"#
    );
    assert_eq!(
        etcd.get("/coreos.com/network/subnets/10.3.8.0-24").unwrap().unwrap(),
        r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#
    );
    let ttl = etcd.ttl(&key("10.3.7.0-24")).unwrap().unwrap();
    assert!((86_300..=86_400).contains(&ttl), "{ttl}");
    assert_eq!(etcd.keys(PREFIX).unwrap().len(), 2, "nothing else is written");
}

#[tokio::test]
async fn expiration_is_that_of_etcd() {
    let etcd = Etcd::start().unwrap();
    let own = store(&etcd).acquire_lease(&network(), &node(1), None).await.unwrap();
    let left = own.expiration.unwrap().duration_since(std::time::SystemTime::now()).unwrap().as_secs();
    assert!((86_300..=86_400).contains(&left), "{left}");
}

#[tokio::test]
async fn a_reservation_stays_without_end() {
    let etcd = Etcd::start().unwrap();
    etcd.put(&key("10.3.9.0-24"), r#"{"PublicIP":"192.0.2.1"}"#).unwrap();
    let own = store(&etcd).acquire_lease(&network(), &node(1), None).await.unwrap();
    assert_eq!((own.subnet, own.expiration), (subnet("10.3.9.0/24"), None));
    assert_eq!(etcd.get(&key("10.3.9.0-24")).unwrap().unwrap(), node(1).to_json());
    assert_eq!(etcd.ttl(&key("10.3.9.0-24")).unwrap(), None);
}

/// Upstream takes another subnet, and the pods keep addresses that are routed to nobody.
#[tokio::test]
async fn a_node_whose_address_changed_keeps_its_subnet() {
    let etcd = Etcd::start().unwrap();
    let (log, _guard) = Log::capture();
    let store = store(&etcd);
    let own = store.acquire_lease(&network(), &node(1), None).await.unwrap();
    let mut moved = node(1);
    moved.public_ip = [192, 0, 2, 100].into();
    let again = store.acquire_lease(&network(), &moved, Some(own.subnet)).await.unwrap();
    assert_eq!(again.subnet, own.subnet);
    let name = own.subnet.to_string().replace('/', "-");
    assert_eq!(etcd.keys(PREFIX).unwrap(), [key(&name)]);
    assert_eq!(etcd.get(&key(&name)).unwrap().unwrap(), moved.to_json());
    assert_eq!(log.count("this node's address has changed; it keeps its subnet"), 1, "{}", log.text());
    // Another device is another node, whatever its subnet file says.
    let other = store.acquire_lease(&network(), &node(2), Some(own.subnet)).await.unwrap();
    assert_ne!(other.subnet, own.subnet);
}

#[tokio::test]
async fn out_of_subnets() {
    let etcd = Etcd::start().unwrap();
    etcd.put(&key("10.3.5.0-24"), &node(2).to_json()).unwrap();
    etcd.put(&key("10.3.6.0-24"), "damaged").unwrap();
    let config = pool(r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.5.0","SubnetMax":"10.3.6.0"}"#);
    let error = store(&etcd).acquire_lease(&config, &node(1), None).await.unwrap_err();
    assert!(matches!(error, AcquireError::OutOfSubnets(_)));
    assert!(error.to_string().starts_with("out of subnets: every /24 from 10.3.5.0 to 10.3.6.0"), "{error}");
}

/// Upstream's daemon exits when it loses this race.
#[tokio::test(flavor = "multi_thread")]
async fn simultaneous_starts_get_different_subnets() {
    let etcd = Etcd::start().unwrap();
    let config = pool(r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.1.0","SubnetMax":"10.3.8.0"}"#);
    let mut starts = tokio::task::JoinSet::new();
    for number in 1..=8 {
        let (store, config) = (store(&etcd), config.clone());
        starts.spawn(async move { store.acquire_lease(&config, &node(number), None).await.unwrap().subnet });
    }
    let mut all: Vec<LeaseSubnet> = starts.join_all().await;
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 8);
    assert_eq!(etcd.keys(&key("")).unwrap().len(), 8);
}

#[tokio::test]
async fn unreadable_keys_do_not_keep_a_node_from_starting() {
    let etcd = Etcd::start().unwrap();
    for (name, value) in [("nonsense", "x"), ("10.3.1.0-24", "{}"), ("10.3.2.0-33", "{}")] {
        etcd.put(&key(name), value).unwrap();
    }
    let config = pool(r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.1.0","SubnetMax":"10.3.2.0"}"#);
    let store = store(&etcd);
    let own = store.acquire_lease(&config, &node(1), Some(subnet("10.3.1.0/24"))).await.unwrap();
    assert_eq!(own.subnet, subnet("10.3.2.0/24"));
    let mut watch = store.watch(own.subnet);
    assert_eq!(tokio::time::timeout(SOON, watch.next()).await.unwrap(), LeaseEvent::Snapshot(Vec::new()));
    assert_eq!(etcd.get(&key("10.3.1.0-24")).unwrap().unwrap(), "{}", "left alone");
}

#[tokio::test]
async fn etcd_down_at_start_is_waited_for() {
    let mut etcd = Etcd::start().unwrap();
    etcd.stop();
    let store = store(&etcd);
    let own = tokio::spawn(async move { store.acquire_lease(&network(), &node(1), None).await });
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!own.is_finished());
    etcd.start_again().unwrap();
    tokio::time::timeout(SOON, own).await.unwrap().unwrap().unwrap();
}
