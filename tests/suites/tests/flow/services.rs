//! Services, by the rules that kube-proxy writes: translated flows work, and are never taken for others, which are fast
//! beside them. How they become fast themselves is in `translated`.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flannel_lab::{
    Cluster, Pod, Xdp,
    counters::Counters,
    in_lab,
    traffic::{Dialogue, Endpoint, Serving, dialogue::listen},
};

use crate::{behind, cluster, cluster_behind, counted, fast, translated_fast};

const REFRESH: Duration = Duration::from_secs(2);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const PORT: u16 = 80;
pub(crate) const BACKEND_PORT: u16 = 8080;

/// The Service's address and port.
pub(crate) const DESTINATION: SocketAddrV4 = SocketAddrV4::new(VIP, PORT);

/// The client on the first node, a backend beside it and one on the second node.
pub(crate) struct Service {
    pub(crate) client: Endpoint,
    pub(crate) serving: Serving,
}

impl Service {
    pub(crate) fn new(cluster: &Cluster, masquerade: bool) -> Result<Self> {
        let pod = |member: usize, pod: usize| -> Result<Endpoint> {
            cluster.members[member].pods.get(pod).map(Pod::endpoint).context("a pod too few")
        };
        let (client, backends) = (pod(0, 0)?, [pod(0, 1)?, pod(1, 0)?]);
        let addresses = backends.each_ref().map(|backend| backend.socket_address(BACKEND_PORT));
        cluster.members[0].node.load_service(VIP, PORT, &addresses, masquerade)?;
        cluster.members[1].node.drop_invalid()?;
        Ok(Self { client, serving: Serving::new(&backends, BACKEND_PORT)? })
    }

    fn be_used(&self) -> Result<()> {
        self.serving.be_used(&self.client, DESTINATION)
    }

    /// The backend on the second node.
    fn remote(&self) -> &Endpoint {
        &self.serving.backends[1]
    }
}

fn services(masquerade: bool, xdps: &[Xdp]) -> Result<()> {
    behind(xdps, |lab, xdp| {
        let cluster = cluster_behind(xdp, lab, 2, REFRESH)?;
        let service = Service::new(&cluster, masquerade)?;
        let [at_client, _] = counted(&cluster, || service.be_used())?;
        ensure!(fast(&at_client) == [0, 0], "translated packets went untranslated: {at_client}");
        let [out, back] = translated_fast(&at_client);
        ensure!((out > 0 && back > 0) != masquerade, "translated by the programs: {out} and {back}");

        // Beside it, the same pods talk to the remote backend directly: fast, on the port of the Service too.
        let open = listen(service.remote(), 0)?;
        let port = open.local_addr()?.port();
        let mut direct =
            Dialogue::through(&service.client, 0, service.remote().socket_address(port), &[&open])?;
        let both = counted(&cluster, || {
            direct.exchanges(100)?;
            service.be_used()?;
            direct.exchanges(100)
        })?;
        let few = |counters: &Counters| fast(counters).into_iter().all(|packets| packets >= 150);
        ensure!(few(&both[0]) && few(&both[1]), "{} {}", both[0], both[1]);
        let straight = service.remote().socket_address(BACKEND_PORT);
        let mut straight = service.serving.connect(&service.client, 0, straight)?;
        let [at_client, _] = counted(&cluster, || straight.exchanges(100))?;
        ensure!(fast(&at_client).into_iter().all(|packets| packets >= 90), "{at_client}");
        Ok(())
    })
}

#[test]
fn services_work_and_those_that_last_are_fast() -> Result<()> {
    services(false, &Xdp::EACH)
}

#[test]
fn masqueraded_services_work_and_stay_on_the_kernels_path() -> Result<()> {
    services(true, &[Xdp::Off])
}

/// Somebody's rule marks everything, our bit included: what is translated is not taken for anything else.
#[test]
fn others_marks_do_not_open_the_gate() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 2, REFRESH)?;
        let service = Service::new(&cluster, false)?;
        cluster.members[0]
            .node
            .iptables("-t mangle -I PREROUTING -j MARK --set-xmark 0xffff1001/0xffff1001")?;
        let [at_client, _] = counted(&cluster, || service.be_used())?;
        ensure!(fast(&at_client) == [0, 0], "translated packets went untranslated: {at_client}");
        Ok(())
    })
}

/// A port that a direct flow had is used for a translated one to the same backend: nothing is inherited.
#[test]
fn a_translated_flow_inherits_nothing_of_a_direct_one() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 2, Duration::from_secs(30))?;
        let service = Service::new(&cluster, false)?;
        let Service { client, serving } = &service;
        let straight = service.remote().socket_address(BACKEND_PORT);
        let mut served = [0; 2];
        for port in 20_000..20_020 {
            let mut direct = serving.connect(client, port, straight)?;
            direct.exchanges(10)?;
            direct.close_at_the_server()?;
            let [at_client, _] = counted(&cluster, || {
                let mut translated = serving.connect(client, port, DESTINATION)?;
                served[serving.backend(&translated)?] += 1;
                translated.exchanges(10)
            })?;
            ensure!(fast(&at_client) == [0, 0], "port {port}: {at_client}");
        }
        ensure!(served[1] > 0, "{served:?} connections to the backends");
        Ok(())
    })
}
