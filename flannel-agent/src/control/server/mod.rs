//! The control socket: HTTP, so that `curl --unix-socket` shows what it says, and JSON.

use std::{
    convert::Infallible,
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::{
    socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
    stat::{Mode, fchmod},
};
use serde::Serialize;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::{Standing, snapshot::Probed};

/// Connections at once. More wait.
const CONNECTIONS: usize = 16;
/// The largest body that is taken, bytes: of ten thousand peers it is a fifth of that.
const LARGEST: usize = 16 << 20;
/// For a client to ask and take its answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves the control socket until it is dropped; then the socket is removed.
#[derive(Debug)]
pub struct ControlServer {
    path: PathBuf,
    _task: AbortOnDropHandle<()>,
}

impl ControlServer {
    /// Starts to serve at `path`, in place of what an earlier process left there: whoever calls holds the lock of the
    /// subnet file beside it.
    ///
    /// # Errors
    /// When there can be no socket of that name.
    pub fn start(path: &Path, standing: Standing) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::from_std(private_socket(path)?.into())?;
        debug!(path = %path.display(), "control socket");
        let task = tokio::spawn(serve(listener, standing));
        Ok(Self { path: path.to_owned(), _task: AbortOnDropHandle::new(task) })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A listening socket at `path` that only its owner may connect to. It has its mode before it has its name: the kernel
/// takes that of the socket over (net/unix/af_unix.c, `unix_bind_bsd`).
fn private_socket(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&socket, Backlog::new(CONNECTIONS as i32)?)?;
    Ok(socket)
}

async fn serve(listener: UnixListener, standing: Standing) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // It is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let standing = standing.clone();
                tokio::spawn(async move {
                    converse(stream, standing).await;
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection at the control socket");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

pub(super) async fn converse(stream: UnixStream, standing: Standing) {
    let service = service_fn(|request| {
        let standing = standing.clone();
        async move { Ok::<_, Infallible>(answer(request, &standing).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(16 << 10);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    // A client that speaks no HTTP, or vanishes, is its own affair.
    let _ = timeout(PATIENCE, connection).await;
}

async fn answer(request: Request<Incoming>, standing: &Standing) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::POST, "/v1/probes") => return probed(request, standing).await,
        (&Method::GET, _) => {}
        _ => return text(StatusCode::METHOD_NOT_ALLOWED, "use GET, or POST for /v1/probes"),
    }
    match request.uri().path() {
        "/v1/snapshot" => json(&standing.snapshot().await),
        "/v1/peers" => match standing.peers().await {
            Ok(peers) => json(&peers),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, &why.to_string()),
        },
        "/v1/drift" => match standing.drift().await {
            Ok(drift) => json(&drift),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, &why.to_string()),
        },
        "/v1/store" => json(&standing.store().await),
        "/v1/trace" => {
            let by = request.uri().query().and_then(|query| query.strip_prefix("by=")?.parse().ok());
            let Some(by) = by else {
                return text(StatusCode::BAD_REQUEST, "say who looks, as /v1/trace?by=PID");
            };
            match standing.trace(by).await {
                Ok(maps) => json(&maps),
                Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, &why),
            }
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /v1/snapshot, /v1/peers, /v1/drift, /v1/store and /v1/trace",
        ),
    }
}

/// Takes what `check` found of peers.
async fn probed(request: Request<Incoming>, standing: &Standing) -> Response<Full<Bytes>> {
    let body = Limited::new(request.into_body(), LARGEST).collect().await;
    let found = match body.map(|body| serde_json::from_slice::<Vec<Probed>>(&body.to_bytes())) {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return text(StatusCode::BAD_REQUEST, &error.to_string()),
        Err(error) => return text(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    match standing.all_probed(found).await {
        Ok(()) => text(StatusCode::OK, "noted"),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, &why.to_string()),
    }
}

fn json(value: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(body) => response(StatusCode::OK, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn text(status: StatusCode, line: &str) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", format!("{line}\n").into_bytes())
}

fn response(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests;
