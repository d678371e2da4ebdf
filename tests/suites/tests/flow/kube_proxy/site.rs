//! Two nodes with the rules of Services.

use anyhow::{Context as _, Result};
use flannel_lab::{
    ApiServer, Cluster, FastPath, KubeProxy, Lab, Node, Pod,
    kubernetes::{Backend, Service, TrafficPolicy},
    traffic::{Endpoint, Serving},
};

use super::{BACKEND_PORT, REFRESH};
use crate::{nftables_etcd, with_rules};

/// Who writes the rules of Services on both nodes.
pub(super) enum Rules {
    KubeProxy { proxies: Vec<KubeProxy>, api: Box<ApiServer> },
    Nftables,
}

/// Two nodes with two pods each, and a machine outside of the cluster.
pub(super) struct Site {
    pub(super) rules: Rules,
    pub(super) cluster: Cluster,
    pub(super) outside: Node,
}

impl Site {
    pub(super) fn kube_proxy(lab: &Lab, fast_path: FastPath, flags: &[&str]) -> Result<Self> {
        let etcd = lab.etcd()?;
        let api = lab.api_server(&etcd)?;
        let cluster = with_rules(lab, etcd, 2, fast_path, REFRESH)?;
        let kubeconfig = api.kube_proxy_account()?;
        let mut proxies = Vec::new();
        for member in &cluster.members {
            api.add_node(&member.node, &[member.node.subnet_env()?.subnet.to_string()])?;
            proxies.push(KubeProxy::start(&member.node, kubeconfig.clone(), flags)?);
        }
        Self::ready(lab, Rules::KubeProxy { proxies, api: api.into() }, cluster, fast_path)
    }

    pub(super) fn nftables(lab: &Lab) -> Result<Self> {
        let cluster = with_rules(lab, nftables_etcd(lab)?, 2, FastPath::Flow, REFRESH)?;
        Self::ready(lab, Rules::Nftables, cluster, FastPath::Flow)
    }

    fn ready(lab: &Lab, rules: Rules, cluster: Cluster, fast_path: FastPath) -> Result<Self> {
        cluster.await_fast_path(0, 1, fast_path)?;
        cluster.await_fast_path(1, 0, fast_path)?;
        Ok(Self { rules, cluster, outside: lab.node()? })
    }

    pub(super) fn pod(&self, member: usize, pod: usize) -> Result<Endpoint> {
        self.cluster.members[member].pods.get(pod).map(Pod::endpoint).context("a pod too few")
    }

    pub(super) fn backend(&self, (member, pod): (usize, usize)) -> Result<Backend> {
        let node = self.cluster.members[member].node.name();
        Ok(Backend { address: self.pod(member, pod)?.address(), node })
    }

    /// A Service `name` over these pods (node and number), not yet published.
    pub(super) fn service(&self, name: &str, pods: &[(usize, usize)]) -> Result<Service> {
        Ok(Service {
            name: name.to_owned(),
            address: [10, 96, 1, 1].into(),
            port: 80,
            target: BACKEND_PORT,
            node_port: None,
            policy: TrafficPolicy::Cluster,
            affinity: false,
            backends: pods.iter().map(|&pod| self.backend(pod)).collect::<Result<_>>()?,
        })
    }

    /// The pods that are the backends of a service.
    pub(super) fn serving(&self, pods: &[(usize, usize)]) -> Result<Serving> {
        let pods = pods.iter().map(|&(member, pod)| self.pod(member, pod)).collect::<Result<Vec<_>>>()?;
        Serving::new(&pods, BACKEND_PORT)
    }

    pub(super) fn publish(&self, service: &Service) -> Result<()> {
        match &self.rules {
            Rules::KubeProxy { proxies, api } => {
                api.add_service(service)?;
                proxies.iter().try_for_each(|proxy| proxy.await_service(service))
            }
            Rules::Nftables => self.load(std::slice::from_ref(service)),
        }
    }

    /// Writes the backends that `service` has now, without `gone`.
    pub(super) fn update(&self, service: &Service, gone: &[Backend]) -> Result<()> {
        match &self.rules {
            Rules::KubeProxy { proxies, api } => {
                api.update_backends(service)?;
                proxies.iter().try_for_each(|proxy| proxy.await_service(service))
            }
            Rules::Nftables => {
                self.load(std::slice::from_ref(service))?;
                self.forget(service, gone)
            }
        }
    }

    /// Removes `service` and the flows of it that connection tracking knows: kube-proxy leaves those to a node's port
    /// that it has under UDP, and the next Service of that port would inherit them.
    pub(super) fn withdraw(&self, service: &Service) -> Result<()> {
        match &self.rules {
            Rules::KubeProxy { proxies, api } => {
                api.remove_service(service)?;
                proxies.iter().try_for_each(|proxy| proxy.await_no_service(service))?;
            }
            Rules::Nftables => self.load(&[])?,
        }
        self.forget(service, &service.backends)
    }

    /// Has whoever writes the rules do so anew, all of them: kube-proxy when it starts, once with nothing to begin with.
    pub(super) fn write_again(&mut self, services: &[Service]) -> Result<()> {
        let nodes = self.cluster.members.iter().map(|member| &member.node);
        match &mut self.rules {
            Rules::KubeProxy { proxies, .. } => {
                for (proxy, node) in proxies.iter_mut().zip(nodes) {
                    proxy.stop()?;
                    node.rewrite_rules()?;
                    proxy.start_again()?;
                }
                Ok(())
            }
            Rules::Nftables => nodes.into_iter().try_for_each(|node| node.load_nftables_services(services)),
        }
    }

    fn forget(&self, service: &Service, gone: &[Backend]) -> Result<()> {
        self.cluster.members.iter().try_for_each(|member| {
            gone.iter().try_for_each(|backend| member.node.forget_backend(service, backend))
        })
    }

    fn load(&self, services: &[Service]) -> Result<()> {
        self.cluster.members.iter().try_for_each(|member| member.node.load_nftables_services(services))
    }

    pub(super) fn dropped_as_invalid(&self) -> Result<u64> {
        match &self.rules {
            Rules::KubeProxy { proxies, .. } => proxies.iter().map(KubeProxy::dropped_as_invalid).sum(),
            Rules::Nftables => {
                self.cluster.members.iter().map(|member| member.node.nftables_dropped_as_invalid()).sum()
            }
        }
    }
}
