//! Asks a running agent.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::UnixStream, time::timeout};

use super::{
    Ended, VERSION,
    snapshot::{Drift, Peers, Probed, Snapshot, Store},
    socket_beside,
};

/// For the whole of an answer; the agent itself gives up a little earlier.
const PATIENCE: Duration = Duration::from_secs(8);

/// Asks the agent behind one socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// The agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error(
        "no agent answers at {}: none runs on this node, as the log of one that has ended says, or it writes another subnet file; name that with --subnet-file",
        .0.display()
    )]
    NoAgent(PathBuf),
    /// Nobody listens any more.
    #[error("no agent answers at {}: the last one could not go on: {}", .socket.display(), .ended.error)]
    Ended {
        /// The socket.
        socket: PathBuf,
        /// Why.
        ended: Ended,
    },
    /// The socket cannot be used.
    #[error("cannot connect to {}: {error}{}", .socket.display(), if .error.kind() == io::ErrorKind::PermissionDenied { "; run this as root" } else { "" })]
    Unusable {
        /// The socket.
        socket: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is there, and says nothing.
    #[error(
        "the agent at {} does not answer within {} s: it is stopped, starved of CPU or hangs; see its process and log",
        .0.display(), PATIENCE.as_secs()
    )]
    Silent(PathBuf),
    /// It says why not.
    #[error("the agent says: {0}")]
    Refused(String),
    /// It says something else than was asked.
    #[error(
        "cannot read the answer of the agent: {0}; this program and the agent may be of different versions"
    )]
    Unreadable(String),
}

impl AskError {
    /// Whether there is an agent, which only does not answer.
    pub fn is_of_an_agent(&self) -> bool {
        !matches!(self, Self::NoAgent(_) | Self::Ended { .. } | Self::Unusable { .. })
    }
}

impl Client {
    /// Asks the agent that writes `subnet_file`.
    pub fn beside(subnet_file: &Path) -> Self {
        Self { socket: socket_beside(subnet_file) }
    }

    /// How things stand.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub async fn snapshot(&self) -> Result<Snapshot, AskError> {
        self.ask("snapshot").await
    }

    /// The peers, and the leases that are not followed.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub async fn peers(&self) -> Result<Peers, AskError> {
        self.ask("peers").await
    }

    /// The store of leases, which the agent asks whether it answers.
    ///
    /// # Errors
    /// When the agent does not answer, or is of an earlier version.
    pub async fn store(&self) -> Result<Option<Store>, AskError> {
        self.ask("store").await
    }

    /// What differs between the agent's plan and the kernel.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub async fn drift(&self) -> Result<Drift, AskError> {
        self.ask("drift").await
    }

    /// Tells the agent what was found of peers.
    ///
    /// # Errors
    /// When the agent does not take it, as one of an earlier version does not.
    pub async fn tell_probes(&self, found: &[Probed]) -> Result<(), AskError> {
        let body = serde_json::to_vec(found).map_err(|error| AskError::Unreadable(error.to_string()))?;
        self.answered(Method::POST, "probes", body).await.map(drop)
    }

    /// The answer to `GET /v1/<what>`.
    ///
    /// # Errors
    /// When the agent does not answer, or not as expected.
    pub async fn ask<T: DeserializeOwned>(&self, what: &str) -> Result<T, AskError> {
        let body = self.answered(Method::GET, what, Vec::new()).await?;
        serde_json::from_slice(&body).map_err(|error| AskError::Unreadable(error.to_string()))
    }

    /// The body of the answer to a request of `/v1/<what>`.
    async fn answered(&self, method: Method, what: &str, body: Vec<u8>) -> Result<Bytes, AskError> {
        let path = format!("/v{VERSION}/{what}");
        let asking = self.request(method, &path, body);
        let (status, body) =
            timeout(PATIENCE, asking).await.map_err(|_| AskError::Silent(self.socket.clone()))??;
        if status != StatusCode::OK {
            return Err(AskError::Refused(String::from_utf8_lossy(&body).trim().to_owned()));
        }
        Ok(body)
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), AskError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                let socket = self.socket.clone();
                match Ended::read(&socket) {
                    Some(ended) => AskError::Ended { socket, ended },
                    None => AskError::NoAgent(socket),
                }
            }
            _ => AskError::Unusable { socket: self.socket.clone(), error },
        })?;
        let unreadable = |error: hyper::Error| AskError::Unreadable(error.to_string());
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(unreadable)?;
        let asking = async {
            let request = Request::builder().method(method).uri(path).header("host", "flannel");
            let request = request.body(Full::new(Bytes::from(body)));
            let request = request.map_err(|error| AskError::Unreadable(error.to_string()))?;
            let answer = sender.send_request(request).await.map_err(unreadable)?;
            let status = answer.status();
            let body = answer.into_body().collect().await.map_err(unreadable)?;
            Ok((status, body.to_bytes()))
        };
        let mut asking = std::pin::pin!(asking);
        tokio::select! {
            answer = &mut asking => answer,
            // It ends with the answer, which may have come along.
            ended = connection => match ended {
                Ok(()) => asking.await,
                Err(error) => Err(unreadable(error)),
            },
        }
    }
}
