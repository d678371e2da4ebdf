//! The lease side of the agent against a real etcd. Names follow upstream's tests where there is one.

#![cfg(test)]

use std::{
    io,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::Duration,
};

use flannel_agent::{
    config::NetworkConfig,
    lease::{
        Lease, LeaseAttrs, LeaseEvent, LeaseSource, LeaseStore, LeaseSubnet,
        etcd::{EtcdApi, EtcdOptions, EtcdStore},
        wire::VxlanData,
    },
};
use flannel_lab::etcd::Etcd;

mod acquire;
mod certificates;
mod config;
mod connect;
mod families;
mod keep;
mod members;
mod migrate;
mod proxy;
mod slow;
mod v2;
mod v2_choice;
mod watch;

const PREFIX: &str = "/coreos.com/network";
/// Long enough for a machine that builds something else at the same time.
const SOON: Duration = Duration::from_secs(20);

fn options(etcd: &Etcd) -> EtcdOptions {
    EtcdOptions { endpoints: etcd.endpoint(), ..EtcdOptions::default() }
}

fn store(etcd: &Etcd) -> EtcdStore {
    EtcdStore::connect(&options(etcd)).unwrap()
}

fn network() -> NetworkConfig {
    NetworkConfig::parse(br#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}"#).unwrap()
}

fn node(number: u8) -> LeaseAttrs {
    let mac = format!("0e:00:00:00:00:{number:02x}").parse().unwrap();
    LeaseAttrs::vxlan_v4(Ipv4Addr::new(192, 0, 2, number), VxlanData { vni: 1, vtep_mac: Some(mac) })
}

fn subnet(text: &str) -> LeaseSubnet {
    LeaseSubnet { v4: Some(text.parse().unwrap()), v6: None }
}

fn key(name: &str) -> String {
    format!("{PREFIX}/subnets/{name}")
}

fn lease(text: &str, number: u8) -> Lease {
    Lease { subnet: subnet(text), attrs: node(number), expiration: None, made: None, node: None }
}

/// The next event, but for when its leases were made: that is a number of the store's.
async fn next(source: &mut impl LeaseSource) -> LeaseEvent {
    let undated = |lease: Lease| Lease { made: None, ..lease };
    match tokio::time::timeout(SOON, source.next()).await.expect("no event") {
        LeaseEvent::Snapshot(all) => LeaseEvent::Snapshot(all.into_iter().map(undated).collect()),
        LeaseEvent::Upsert(lease) => LeaseEvent::Upsert(undated(lease)),
        LeaseEvent::Remove(subnet) => LeaseEvent::Remove(subnet),
    }
}

async fn silent(source: &mut impl LeaseSource) {
    let event = tokio::time::timeout(Duration::from_millis(300), source.next()).await;
    assert!(event.is_err(), "unexpected {event:?}");
}

/// What is logged by this thread, while the guard lives. Tests that use it run on one thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn capture() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::INFO)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    fn count(&self, part: &str) -> usize {
        self.text().matches(part).count()
    }

    /// Waits until `words` have been said so often.
    async fn await_words(&self, words: &str, times: usize) {
        let said = async {
            while self.count(words) < times {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(SOON, said).await;
        assert!(waited.is_ok(), "not {words:?}: {}", self.text());
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
