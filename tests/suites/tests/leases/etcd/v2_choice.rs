//! `--etcd-api=auto`: v3 where the configuration is there, else v2.

use std::{
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use flannel_lab::command::run;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{v2::start, *};

const CONFIG: &str = "/coreos.com/network/config";

/// What an etcd 2 says of itself.
const VERSION_2: &[u8] =
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 22\r\n\r\n{\"etcdserver\":\"2.3.8\"}";

/// Between an agent and an etcd: counts requests of v2, and may hide what makes it an etcd 3.
struct Between {
    endpoint: String,
    of_v2: Arc<AtomicUsize>,
}

impl Between {
    async fn new(etcd: &Etcd, as_etcd_2: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (of_v2, target) = (Arc::new(AtomicUsize::new(0)), etcd.address());
        let count = of_v2.clone();
        tokio::spawn(async move {
            while let Ok((mut here, _)) = listener.accept().await {
                let count = count.clone();
                tokio::spawn(async move {
                    let Ok(mut there) = TcpStream::connect(target).await else { return };
                    let (mut asked, mut said) = (vec![0; 65536], vec![0; 65536]);
                    let mut grpc = false;
                    loop {
                        tokio::select! {
                            Ok(read @ 1..) = here.read(&mut asked) => {
                                let request = &asked[..read];
                                grpc |= request.starts_with(b"PRI ");
                                if grpc && as_etcd_2 {
                                    return;
                                }
                                if !grpc {
                                    count.fetch_add(1, Ordering::Relaxed);
                                }
                                if as_etcd_2 && request.starts_with(b"GET /version") {
                                    let _ = here.write_all(VERSION_2).await;
                                    return;
                                }
                                if there.write_all(request).await.is_err() {
                                    return;
                                }
                            }
                            Ok(read @ 1..) = there.read(&mut said) => {
                                if here.write_all(&said[..read]).await.is_err() {
                                    return;
                                }
                            }
                            else => return,
                        }
                    }
                });
            }
        });
        Self { endpoint, of_v2 }
    }

    fn store(&self) -> EtcdStore {
        let options = EtcdOptions { endpoints: self.endpoint.clone(), ..EtcdOptions::default() };
        EtcdStore::connect(&options).unwrap()
    }
}

async fn network_of(store: &EtcdStore) -> String {
    store.try_network_config().await.unwrap().network_v4().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_that_has_the_config_is_taken() {
    let etcd = start();
    let (log, _guard) = Log::capture();
    let between = Between::new(&etcd, false).await;

    // Neither: what to type is what the error says.
    let error = between.store().try_network_config().await.unwrap_err().to_string();
    assert!(
        error.contains("the v3 store has no /coreos.com/network/config, and neither has the v2"),
        "{error}"
    );
    let type_in = |command: &str| run(Command::new("sh").args(["-c", command])).unwrap();
    let (_, mk) = error.split_once("the v2 store only, by: ").unwrap();
    type_in(mk.split_once(" (set").unwrap().0);

    // v2 alone, and it stays so.
    let store = between.store();
    assert_eq!(network_of(&store).await, "10.244.0.0/16");
    assert_eq!(
        log.count("leases are in etcd's v2 store, as those of flannel 0.11 to 0.17"),
        1,
        "{}",
        log.text()
    );
    let own = store.acquire_lease(&network(), &node(1), None).await.unwrap();
    let name = own.subnet.to_string().replace('/', "-");
    assert_eq!(etcd.ctl_v2(&["get", &key(&name)]).unwrap(), node(1).to_json());
    assert!(etcd.keys(PREFIX).unwrap().is_empty());

    // Both: v3, and v2 is not asked.
    etcd.put(CONFIG, r#"{"Network":"10.5.0.0/16"}"#).unwrap();
    assert_eq!(network_of(&store).await, "10.244.0.0/16", "decided once");
    let before = between.of_v2.load(Ordering::Relaxed);
    let store = between.store();
    assert_eq!(network_of(&store).await, "10.5.0.0/16");
    store.acquire_lease(&network(), &node(2), None).await.unwrap();
    assert_eq!(between.of_v2.load(Ordering::Relaxed), before, "no request of v2");
    assert_eq!(log.count("leases are in etcd's v3 store: the network config is there"), 1, "{}", log.text());
    assert_eq!(etcd.keys(&key("")).unwrap().len(), 1);
}

#[tokio::test]
async fn v3_alone_and_without_v2() {
    let etcd = Etcd::start().unwrap();
    let store = EtcdStore::connect(&options(&etcd)).unwrap();
    let error = store.try_network_config().await.unwrap_err().to_string();
    for part in ["serves no v2 store", "--enable-v2=true", "ETCDCTL_API=3 etcdctl ", "ETCDCTL_API=2 etcdctl "]
    {
        assert!(error.contains(part), "{error}");
    }
    let v2 = EtcdStore::connect(&EtcdOptions { api: EtcdApi::V2, ..options(&etcd) }).unwrap();
    let error = v2.try_network_config().await.unwrap_err().to_string();
    assert!(error.contains("serves no v2 store: start it with --enable-v2=true"), "{error}");
    etcd.put(CONFIG, r#"{"Network":"10.5.0.0/16"}"#).unwrap();
    assert_eq!(network_of(&store).await, "10.5.0.0/16");
}

/// It speaks no gRPC.
#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_2_is_used_by_v2() {
    let etcd = start();
    etcd.put(CONFIG, r#"{"Network":"10.5.0.0/16"}"#).unwrap();
    let between = Between::new(&etcd, true).await;
    let store = between.store();
    let error = store.try_network_config().await.unwrap_err().to_string();
    assert!(error.contains("neither has the v2 store"), "{error}");
    etcd.ctl_v2(&["mk", CONFIG, r#"{"Network":"10.6.0.0/16"}"#]).unwrap();
    assert_eq!(network_of(&store).await, "10.6.0.0/16");
    store.acquire_lease(&network(), &node(1), None).await.unwrap();
}
