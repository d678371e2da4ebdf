//! etcd that answers late.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;

/// How long each piece of a conversation takes, each way.
const LATE: Duration = Duration::from_millis(300);

/// A way to etcd on which everything is late.
async fn late(target: SocketAddr) -> SocketAddr {
    async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
        let mut bytes = vec![0; 65536];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            tokio::time::sleep(LATE).await;
            if to.write_all(&bytes[..count]).await.is_err() {
                return;
            }
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((here, _)) = listener.accept().await {
            let Ok(there) = TcpStream::connect(target).await else { continue };
            let ((here_in, here_out), (there_in, there_out)) = (here.into_split(), there.into_split());
            tokio::spawn(pass(here_in, there_out));
            tokio::spawn(pass(there_in, here_out));
        }
    });
    address
}

#[tokio::test]
async fn a_slow_etcd_is_only_slow() {
    let etcd = Etcd::start().unwrap();
    let (log, _guard) = Log::capture();
    etcd.put(&format!("{PREFIX}/config"), r#"{"Network":"10.3.0.0/16"}"#).unwrap();
    let endpoints = format!("http://{}", late(etcd.address()).await);
    let store = EtcdStore::connect(&EtcdOptions { endpoints, ..EtcdOptions::default() }).unwrap();
    store.wait_for_network_config().await.unwrap();
    let own = store.acquire_lease(&network(), &node(1), None).await.unwrap();
    let mut watch = store.watch(own.subnet);
    let mut keeper = store.keep_lease(own.clone());
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(Vec::new()));
    for number in 2..6 {
        let text = format!("10.3.{}.0/24", 200 + number);
        etcd.put(&key(&text.replace('/', "-")), &node(number).to_json()).unwrap();
        assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease(&text, number)));
    }
    let mut moved = own.attrs;
    moved.public_ip = [192, 0, 2, 100].into();
    keeper.publish(moved.clone());
    tokio::time::timeout(SOON, keeper.report()).await.unwrap();
    let name = own.subnet.to_string().replace('/', "-");
    assert_eq!(etcd.get(&key(&name)).unwrap().unwrap(), moved.to_json());
    assert_eq!(log.count("WARN"), 0, "{}", log.text());
}

/// Busy with its disk, or compacting: nobody is to be blamed for some seconds of silence.
#[tokio::test]
async fn an_etcd_that_stalls_is_waited_for() {
    let etcd = Etcd::start().unwrap();
    let (log, _guard) = Log::capture();
    let store = store(&etcd);
    let own = store.acquire_lease(&network(), &node(1), None).await.unwrap();
    let mut watch = store.watch(own.subnet);
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(Vec::new()));
    etcd.freeze().unwrap();
    let other = tokio::spawn(async move { store.acquire_lease(&network(), &node(2), None).await });
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!other.is_finished());
    etcd.thaw().unwrap();
    let other = tokio::time::timeout(SOON, other).await.unwrap().unwrap().unwrap();
    let event = next(&mut watch).await;
    assert!(matches!(&event, LeaseEvent::Upsert(lease) if lease.subnet == other.subnet), "{event:?}");
    assert_eq!(log.count("WARN"), 0, "{}", log.text());
}
