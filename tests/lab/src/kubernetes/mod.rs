//! Kubernetes, as far as a network needs it: a real API server beside etcd, and a real kube-proxy on a node.
//!
//! There is no controller manager and no kubelet: what they would write, tests write. Everybody but the tests
//! themselves speaks to the API server as a ServiceAccount with no more rights than it was given.
//!
//! ```text
//! etcd ── ApiServer ◀── tests, as admin: nodes, Services, EndpointSlices
//!             ▲
//!             ├── KubeProxy, by a kubeconfig file
//!             └── agents, as they are told to, or as pods of KubeFlannel's DaemonSet
//! ```

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rcgen::KeyPair;

use super::{Etcd, Lab, Netns, Node, UNDERLAY_ADDRESS, make_dir};
use crate::{
    command::Daemon,
    etcd::{Authority, write_private},
    requirements::kubernetes_program,
    wait::eventually,
};

pub use faults::{FaultyApi, WatchFault};
pub use image::Image;
pub use kube_flannel::{DAEMON_SET, KubeFlannel, NAMESPACE};
pub use proxy::KubeProxy;
pub use request::Answer;
pub use services::{Backend, Service, TrafficPolicy};

mod access;
mod crowd;
mod faults;
mod image;
mod kube_flannel;
mod nftables;
mod pod_files;
mod proxy;
mod request;
mod services;

/// Where the API server listens.
pub const API_PORT: u16 = 6443;

/// What clusterIPs are taken from; the API server's own Service `kubernetes` has the first address.
pub const SERVICE_RANGE: &str = "10.96.0.0/16";

/// The same in IPv6, for Services that ask for it.
const SERVICE_RANGE_V6: &str = "fd00:10:96::/112";

/// The names by which the API server's certificate is valid, beside its address.
const NAMES: [&str; 4] = ["10.96.0.1", "127.0.0.1", "localhost", "kubernetes.default.svc"];

/// Who issues the tokens of ServiceAccounts.
const ISSUER: &str = "https://kubernetes.default.svc";

/// Token of a member of `system:masters`, who may do everything.
const ADMIN: &str = "admin-of-the-lab";

/// How long a start may take on a busy machine: most of it goes into the roles that every cluster has.
const START: Duration = Duration::from_secs(90);

/// An API server with RBAC. What it keeps is in etcd, and outlives [`ApiServer::stop`].
#[derive(Debug)]
pub struct ApiServer {
    netns: Netns,
    address: Ipv4Addr,
    etcd: String,
    dir: PathBuf,
    log: PathBuf,
    daemon: Option<Daemon>,
}

impl Lab {
    /// An API server in the underlay, reachable by every node, that keeps its objects in `etcd`, beside flannel's.
    pub fn api_server(&self, etcd: &Etcd) -> Result<ApiServer> {
        ApiServer::prepare(self, self.underlay()?, UNDERLAY_ADDRESS, etcd)
    }

    /// One on a node, for a lab made by [`Lab::pair`], which has no underlay.
    pub fn api_server_on(&self, node: &Node, etcd: &Etcd) -> Result<ApiServer> {
        ApiServer::prepare(self, node.netns().clone(), node.address(), etcd)
    }
}

impl ApiServer {
    fn prepare(lab: &Lab, netns: Netns, address: Ipv4Addr, etcd: &Etcd) -> Result<Self> {
        let dir = lab.dir().join("kubernetes");
        make_dir(&dir)?;
        let authority = Authority::new("kubernetes")?;
        authority.write_to(&dir.join("ca.pem"))?;
        let own = address.to_string();
        let hosts: Vec<&str> = NAMES.into_iter().chain([own.as_str()]).collect();
        authority.server_named("kube-apiserver", &hosts)?.write_to(&dir.join("server"))?;
        let tokens = KeyPair::generate()?;
        write_private(&dir.join("tokens.key"), &tokens.serialize_pem())?;
        write_private(&dir.join("tokens.pub"), &tokens.public_key_pem())?;
        write_private(&dir.join("users"), &format!("{ADMIN},admin,1,system:masters\n"))?;
        let (etcd, log) = (etcd.endpoint().to_owned(), lab.dir().join("kube-apiserver.log"));
        let mut server = Self { netns, address, etcd, dir, log, daemon: None };
        server.start()?;
        Ok(server)
    }

    /// Starts it with the objects that etcd has, and waits until it is ready.
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "the API server is already running");
        let program = kubernetes_program("kube-apiserver")?;
        let mut command = self.netns.command(&program.to_string_lossy());
        let file = |name: &str| self.dir.join(name).to_string_lossy().into_owned();
        let address = self.address.to_string();
        let port = API_PORT.to_string();
        for (flag, value) in [
            ("etcd-servers", self.etcd.as_str()),
            ("bind-address", &address),
            ("advertise-address", &address),
            ("secure-port", &port),
            ("tls-cert-file", &file("server.pem")),
            ("tls-private-key-file", &file("server.key")),
            ("token-auth-file", &file("users")),
            ("service-account-issuer", ISSUER),
            ("service-account-signing-key-file", &file("tokens.key")),
            ("service-account-key-file", &file("tokens.pub")),
            ("service-cluster-ip-range", &format!("{SERVICE_RANGE},{SERVICE_RANGE_V6}")),
            // Nodes with pod CIDRs of both families; not optional in later versions.
            ("feature-gates", "IPv6DualStack=true"),
            ("authorization-mode", "RBAC"),
            // It wants every pod to have an account that only the controller manager would make.
            ("disable-admission-plugins", "ServiceAccount"),
            ("profiling", "false"),
        ] {
            command.arg(format!("--{flag}={value}"));
        }
        self.daemon = Some(Daemon::spawn(&mut command, &self.log)?);
        eventually(START, "the API server is ready", || {
            // It gives up where etcd or its own address takes long to answer, as on a busy machine; kubelet would start it again.
            if let Err(ended) = self.daemon.as_mut().context("no API server is running")?.check_running() {
                self.daemon = Some(Daemon::spawn(&mut command, &self.log)?);
                return Err(ended);
            }
            let answer = self.request("GET", "/readyz", None)?;
            ensure!(answer.status == 200, "{}", answer.body);
            Ok(())
        })
    }

    /// Kills it.
    pub fn stop(&mut self) -> Result<()> {
        self.daemon.take().context("no API server is running")?.kill()
    }

    /// Has its address swallow what it and nodes and pods send to each other, or let it pass again. Whoever is in its
    /// own namespace, as tests' requests are, still reaches it.
    pub fn set_silent(&self, silent: bool) -> Result<()> {
        let (what, port) = (if silent { "-I" } else { "-D" }, API_PORT.to_string());
        for [chain, by, end] in [["INPUT", "-i", "--dport"], ["OUTPUT", "-o", "--sport"]] {
            let rule = ["--wait", what, chain, "!", by, "lo", "-p", "tcp", end, &port, "-j", "DROP"];
            self.netns.run("iptables", &rule)?;
        }
        Ok(())
    }

    /// URL its clients use.
    pub fn url(&self) -> String {
        format!("https://{}:{API_PORT}", self.address)
    }

    /// PEM file with the certificate that its own is signed by.
    pub fn authority(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// Directory for what belongs to it: certificates, kubeconfig files, and whatever a test puts there.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}
