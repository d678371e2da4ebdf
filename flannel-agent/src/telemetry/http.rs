//! `/healthz` and `/readyz`, by upstream's meaning, for probes.

use std::{
    borrow::Cow, collections::VecDeque, convert::Infallible, fmt, io, net::SocketAddr, sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::{
    net::{TcpListener, TcpStream},
    select,
    sync::watch,
    task::{AbortHandle, JoinHandle},
    time::{sleep, timeout},
};
use tracing::{info, warn};

use super::{health::Readiness, visible};
use crate::host::holder;

/// For a client to send its request and take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// For answers under way when the agent ends, as upstream.
const GRACE: Duration = Duration::from_secs(3);
/// Connections at once. One more closes the oldest: an answer takes a millisecond, so that is one of a client
/// that does not ask.
const CONNECTIONS: usize = 64;

/// The page of `/metrics`, made when it is asked for.
#[derive(Clone)]
pub struct MetricsPage {
    /// Its media type.
    pub media_type: &'static str,
    /// Makes it.
    pub make: Arc<dyn Fn() -> BoxFuture<'static, String> + Send + Sync>,
}

impl fmt::Debug for MetricsPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsPage").finish_non_exhaustive()
    }
}

/// The server, in a task of its own.
#[derive(Debug)]
pub struct HealthServer {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// The address cannot be served at.
#[derive(Debug, thiserror::Error)]
#[error(
    "--healthz-ip, --healthz-port: cannot serve at {address}: {error}{}; give an address of this node and a port that \
     is free, or --healthz-port=0 to serve nothing",
    .holder.as_ref().map_or(String::new(), |holder| format!(", by {holder}"))
)]
pub struct BindError {
    address: SocketAddr,
    error: io::Error,
    /// Who serves there.
    holder: Option<String>,
}

impl HealthServer {
    /// Starts to serve at `address`.
    pub async fn start(
        address: SocketAddr,
        readiness: Readiness,
        metrics: Option<MetricsPage>,
    ) -> Result<Self, BindError> {
        let failed = |error: io::Error| {
            let in_use = error.kind() == io::ErrorKind::AddrInUse;
            // Whose it is the kernel tells only those who may trace that process.
            let holder = || {
                let holder = holder::of_port(address).map(holder::describe);
                holder
                    .unwrap_or_else(|| format!("a process that `ss -ltnp sport = :{}` shows", address.port()))
            };
            let holder = in_use.then(holder);
            BindError { address, error, holder }
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        info!(address = %listener.local_addr().map_err(failed)?, "serving /healthz, /readyz and /metrics");
        let (stop, stopped) = watch::channel(false);
        Ok(Self { stop, task: tokio::spawn(serve(listener, readiness, metrics, stopped)) })
    }

    /// Takes no more connections, and returns when the answers under way are sent, at most 3 s later.
    pub async fn end(self) {
        self.stop.send_replace(true);
        // It panics for no input, and there is nothing to do about it.
        let _ = self.task.await;
    }
}

async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    metrics: Option<MetricsPage>,
    mut stopped: watch::Receiver<bool>,
) {
    let graceful = GracefulShutdown::new();
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    let mut failing = false;
    loop {
        let accepted = select! {
            biased;
            _ = stopped.wait_for(|stop| *stop) => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                if !failing {
                    warn!(%error, "cannot accept a connection of a health probe");
                }
                failing = true;
                // Out of file descriptors, most likely: the next attempt would fail as well.
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        failing = false;
        open.retain(|connection| !connection.is_finished());
        if open.len() >= CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        open.push_back(
            tokio::spawn(converse(stream, readiness.clone(), metrics.clone(), &graceful)).abort_handle(),
        );
    }
    drop(listener);
    let _ = timeout(GRACE, graceful.shutdown()).await;
}

/// One request and its answer.
fn converse(
    stream: TcpStream,
    readiness: Readiness,
    metrics: Option<MetricsPage>,
    graceful: &GracefulShutdown,
) -> impl Future<Output = ()> + use<> {
    let service = service_fn(move |request: Request<Incoming>| {
        let asks =
            request.uri().path() == "/metrics" && matches!(*request.method(), Method::GET | Method::HEAD);
        let page = metrics.clone().filter(|_| asks);
        let answer = answer(&request, &readiness);
        async {
            Ok::<_, Infallible>(match page {
                Some(page) => measured(page).await,
                None => answer,
            })
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false).max_buf_size(16 << 10);
    let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
    async {
        // Clients that speak no HTTP, or vanish, are their own affair.
        let _ = timeout(PATIENCE, connection).await;
    }
}

async fn measured(page: MetricsPage) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from((page.make)().await)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(page.media_type));
    response
}

fn answer(request: &Request<Incoming>, readiness: &Readiness) -> Response<Full<Bytes>> {
    let (status, text): (_, Cow<'static, str>) = match (request.uri().path(), readiness.is_set()) {
        ("/healthz" | "/readyz", _) if !matches!(*request.method(), Method::GET | Method::HEAD) => {
            (StatusCode::METHOD_NOT_ALLOWED, "use GET\n".into())
        }
        ("/healthz", _) => (StatusCode::OK, "flanneld is running".into()),
        ("/readyz", true) => (StatusCode::OK, "flanneld is ready".into()),
        ("/readyz", false) => {
            let text = match readiness.failure() {
                None => "flanneld is not ready yet".into(),
                Some(because) => format!("flanneld is not ready: {}\n", visible(&because)).into(),
            };
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
        _ => (StatusCode::NOT_FOUND, "404 page not found\n".into()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text.into_owned())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::Instant,
    };

    use super::*;

    const SOON: Duration = Duration::from_secs(4);

    async fn start(readiness: &Readiness) -> (HealthServer, SocketAddr) {
        // A port that is free for as long as nobody else asks for one.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        (
            HealthServer { stop, task: tokio::spawn(serve(listener, readiness.clone(), None, stopped)) },
            address,
        )
    }

    async fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut text = Vec::new();
        timeout(SOON, stream.read_to_end(&mut text)).await.unwrap().unwrap();
        String::from_utf8(text).unwrap()
    }

    async fn request(address: SocketAddr, method: &str, path: &str) -> (String, String) {
        let text = ask(address, format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await;
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    #[tokio::test]
    async fn answers_of_upstream() {
        let readiness = Readiness::new();
        let (server, address) = start(&readiness).await;
        for (ready, status, body) in [
            (false, "503 Service Unavailable", "flanneld is not ready yet"),
            (true, "200 OK", "flanneld is ready"),
        ] {
            let answers = [
                ("GET", "/healthz", "200 OK", "flanneld is running"),
                ("GET", "/healthz?verbose", "200 OK", "flanneld is running"),
                ("HEAD", "/healthz", "200 OK", ""),
                ("GET", "/readyz", status, body),
                ("HEAD", "/readyz", status, ""),
                ("POST", "/readyz", "405 Method Not Allowed", "use GET\n"),
                ("GET", "/", "404 Not Found", "404 page not found\n"),
                ("GET", "/healthz/", "404 Not Found", "404 page not found\n"),
                ("GET", "/metrics", "404 Not Found", "404 page not found\n"),
            ];
            if ready {
                readiness.set();
            }
            for (method, path, status, body) in answers {
                let (head, found) = request(address, method, path).await;
                assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{method} {path}: {head}");
                assert_eq!(found, body, "{method} {path}");
                assert_eq!(head.contains("allow: GET, HEAD"), status.starts_with("405"), "{head}");
            }
        }
        server.end().await;
        assert!(TcpStream::connect(address).await.is_err(), "still listening");
    }

    #[tokio::test]
    async fn silent_and_garbled_clients_are_let_go_and_hold_nobody_up() {
        let (server, address) = start(&Readiness::new()).await;
        let mut silent = Vec::new();
        for _ in 0..3 * CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET /healthz HTTP/1.1\r\nX: ").await.unwrap();
        for garbage in [&b"\0\xff\r\n\r\n"[..], b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", &[b'a'; 100_000]] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(garbage).await;
        }
        let (head, _) = request(address, "GET", "/healthz").await;
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        let mut rest = Vec::new();
        // Closed, one way or the other.
        let _ = timeout(2 * PATIENCE, slow.read_to_end(&mut rest)).await.unwrap();
        drop(silent);
        server.end().await;
    }

    #[tokio::test]
    async fn the_end_waits_for_a_slow_client_only_so_long() {
        let (server, address) = start(&Readiness::new()).await;
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
        sleep(Duration::from_millis(100)).await;
        let start = Instant::now();
        server.end().await;
        assert!(start.elapsed() < GRACE + Duration::from_secs(1), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let error = HealthServer::start(address, Readiness::new(), None).await.unwrap_err().to_string();
        assert!(error.contains("--healthz-port") && error.contains(&address.to_string()), "{error}");
    }
}
