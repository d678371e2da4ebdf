//! Services, by the rules that kube-proxy writes: translated flows work, and are never made fast where they are
//! translated, while others beside them are.

use std::{
    net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flannel_common::reason::Reason;
use flannel_tests::{
    counters::Counters,
    lab::{Cluster, Pod, in_lab},
    traffic::{Dialogue, Endpoint, content::Content, dialogue::listen},
};

use crate::{cluster, counted, fast, packets};

const REFRESH: Duration = Duration::from_secs(2);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;

/// The client on the first node, a backend beside it and one on the second node.
struct Service {
    client: Endpoint,
    backends: [Endpoint; 2],
    tcp: [TcpListener; 2],
    udp: [UdpSocket; 2],
}

impl Service {
    fn new(cluster: &Cluster, masquerade: bool) -> Result<Self> {
        let pod = |member: usize, pod: usize| -> Result<Endpoint> {
            cluster.members[member].pods.get(pod).map(Pod::endpoint).context("a pod too few")
        };
        let (client, backends) = (pod(0, 0)?, [pod(0, 1)?, pod(1, 0)?]);
        let addresses = backends.each_ref().map(|backend| backend.socket_address(BACKEND_PORT));
        cluster.members[0].node.load_service(VIP, PORT, &addresses, masquerade)?;
        cluster.members[1].node.drop_invalid()?;
        let [a, b] = &backends;
        let udp = |at: &Endpoint| -> Result<UdpSocket> {
            let socket = at.netns().inside(|| Ok(UdpSocket::bind(at.socket_address(BACKEND_PORT))?))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let tcp = [listen(a, BACKEND_PORT)?, listen(b, BACKEND_PORT)?];
        let udp = [udp(a)?, udp(b)?];
        Ok(Self { client, backends, tcp, udp })
    }

    fn connect(&self) -> Result<Dialogue> {
        let [a, b] = &self.tcp;
        Dialogue::through(&self.client, 0, SocketAddrV4::new(VIP, PORT), &[a, b])
    }

    /// The number of the backend that serves a connection.
    fn backend(&self, dialogue: &Dialogue) -> Result<usize> {
        let address = dialogue.server.local_addr()?.ip();
        let place = self.backends.iter().position(|backend| backend.address() == address);
        place.with_context(|| format!("{address} is no backend"))
    }

    /// A socket that asks the Service over and over, from a port of its own.
    fn asker(&self) -> Result<UdpSocket> {
        let socket = self.client.netns().inside(|| Ok(UdpSocket::bind(self.client.socket_address(0))?))?;
        socket.connect((VIP, PORT))?;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        Ok(socket)
    }

    /// One question and its answer; the number of the backend that gave it.
    fn ask(&self, asker: &UdpSocket, number: u64) -> Result<usize> {
        let mut question = [0; 100];
        Content::new(number).fill(&mut question);
        asker.send(&question)?;
        let mut heard = [0; 200];
        let start = std::time::Instant::now();
        let (backend, from) = loop {
            let arrived = self.udp.iter().enumerate().find_map(|(number, socket)| {
                socket.recv_from(&mut heard).ok().map(|(length, from)| (number, length, from))
            });
            if let Some((number, length, from)) = arrived {
                ensure!(heard[..length] == question, "the question arrived changed");
                break (number, from);
            }
            ensure!(start.elapsed() < Duration::from_secs(3), "question {number} did not arrive");
            std::thread::yield_now();
        };
        self.udp[backend].send_to(&question, from)?;
        let length = asker.recv(&mut heard).with_context(|| format!("no answer to {number}"))?;
        ensure!(heard[..length] == question, "the answer arrived changed");
        Ok(backend)
    }
}

/// Long and short connections and questions, to both backends, for longer than acceptance holds.
fn use_service(service: &Service) -> Result<()> {
    let mut long = Vec::new();
    let mut served = [0; 2];
    while served.contains(&0) || long.len() < 6 {
        ensure!(long.len() < 100, "{served:?} connections to the backends");
        let dialogue = service.connect()?;
        served[service.backend(&dialogue)?] += 1;
        long.push(dialogue);
    }
    let askers = (0..12).map(|_| service.asker()).collect::<Result<Vec<_>>>()?;
    let mut asked = [0; 2];
    for round in 0..12 {
        long.iter_mut().try_for_each(|dialogue| dialogue.exchanges(20))?;
        for _ in 0..5 {
            let mut short = service.connect()?;
            short.exchange()?;
            short.close_at_the_server()?;
        }
        for (number, asker) in askers.iter().enumerate() {
            asked[service.ask(asker, round * 100 + number as u64)?] += 1;
        }
        std::thread::sleep(Duration::from_millis(400));
    }
    ensure!(!asked.contains(&0), "{asked:?} questions to the backends");
    Ok(())
}

fn services(masquerade: bool) -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 2, REFRESH)?;
        let service = Service::new(&cluster, masquerade)?;
        let [at_client, _] = counted(&cluster, || use_service(&service))?;
        ensure!(fast(&at_client) == [0, 0], "translated packets skipped the stack: {at_client}");

        // Beside it, the same pods talk to the remote backend directly: fast, on the port of the Service too.
        let open = listen(&service.backends[1], 0)?;
        let port = open.local_addr()?.port();
        let mut direct =
            Dialogue::through(&service.client, 0, service.backends[1].socket_address(port), &[&open])?;
        let both = counted(&cluster, || {
            direct.exchanges(100)?;
            use_service(&service)?;
            direct.exchanges(100)
        })?;
        let few = |counters: &Counters| fast(counters).into_iter().all(|packets| packets >= 150);
        ensure!(few(&both[0]) && few(&both[1]), "{} {}", both[0], both[1]);
        ensure!(fast(&both[0])[0] < 450, "translated packets skipped the stack: {}", both[0]);
        let [a, b] = &service.tcp;
        let mut straight =
            Dialogue::through(&service.client, 0, service.backends[1].socket_address(BACKEND_PORT), &[a, b])?;
        let [at_client, _] = counted(&cluster, || straight.exchanges(100))?;
        ensure!(fast(&at_client).into_iter().all(|packets| packets >= 90), "{at_client}");
        Ok(())
    })
}

#[test]
fn services_work_and_stay_on_the_kernels_path() -> Result<()> {
    services(false)
}

#[test]
fn masqueraded_services_work_and_stay_on_the_kernels_path() -> Result<()> {
    services(true)
}

/// Somebody's rule marks everything, our bit included: what is translated is not learned for that.
#[test]
fn others_marks_do_not_open_the_gate() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 2, REFRESH)?;
        let service = Service::new(&cluster, false)?;
        cluster.members[0]
            .node
            .iptables("-t mangle -I PREROUTING -j MARK --set-xmark 0xffff1001/0xffff1001")?;
        let [at_client, _] = counted(&cluster, || use_service(&service))?;
        ensure!(fast(&at_client) == [0, 0], "translated packets skipped the stack: {at_client}");
        ensure!(packets(&at_client, Reason::FlowLearned) == 0, "a translated flow was learned: {at_client}");
        Ok(())
    })
}

/// A port that a direct flow had is used for a translated one to the same backend: nothing is inherited.
#[test]
fn a_translated_flow_inherits_nothing_of_a_direct_one() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 2, Duration::from_secs(30))?;
        let service = Service::new(&cluster, false)?;
        let listeners = service.tcp.each_ref();
        let (client, remote) = (&service.client, &service.backends[1]);
        let mut served = [0; 2];
        for port in 20_000..20_020 {
            let mut direct =
                Dialogue::through(client, port, remote.socket_address(BACKEND_PORT), &listeners)?;
            direct.exchanges(10)?;
            direct.close_at_the_server()?;
            let [at_client, _] = counted(&cluster, || {
                let mut translated =
                    Dialogue::through(client, port, SocketAddrV4::new(VIP, PORT), &listeners)?;
                served[service.backend(&translated)?] += 1;
                translated.exchanges(10)
            })?;
            ensure!(fast(&at_client) == [0, 0], "port {port}: {at_client}");
        }
        ensure!(served[1] > 0, "{served:?} connections to the backends");
        Ok(())
    })
}
