//! HTTP to one member: connections, kept between requests.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Mutex,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::super::{CONNECT, endpoint::Endpoint, tls};

/// Connections kept for the next request.
const KEPT: usize = 4;

/// One member of the cluster.
pub(in super::super) struct Member {
    pub(in super::super) endpoint: Endpoint,
    /// What it takes to encrypt; `None` for a connection in the clear.
    pub(in super::super) tls: Option<tls::Files>,
    /// Name and password.
    pub(in super::super) user: Option<(String, String)>,
    /// It has a client certificate to show.
    pub(in super::super) have_certificate: bool,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

/// A request but for where it goes.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) method: Method,
    /// With its query.
    pub(super) path: String,
    /// A form; empty for none.
    pub(super) form: String,
}

/// No answer from a member.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{}", deepest(.0))]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Tls(#[from] tls::TlsError),
    #[error("no connection within {} s", CONNECT.as_secs())]
    Late,
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("{0}")]
    Unfit(String),
}

/// hyper's word and the last cause: `connection error: invalid peer certificate: UnknownIssuer`.
fn deepest(error: &hyper::Error) -> String {
    let mut cause = std::error::Error::source(error);
    let mut text = error.to_string();
    while let Some(inner) = cause {
        cause = inner.source();
        if cause.is_none() && !text.contains(&inner.to_string()) {
            text = format!("{text}: {inner}");
        }
    }
    text
}

impl Member {
    pub(in super::super) fn new(
        endpoint: Endpoint,
        tls: Option<tls::Files>,
        user: Option<(String, String)>,
        have_certificate: bool,
    ) -> Self {
        Self { endpoint, tls, user, have_certificate, idle: Mutex::default() }
    }

    /// Sends `ask` on a kept connection, or on a new one where the kept one turns out to be gone. What comes back
    /// with the answer is for [`keep`](Self::keep), when all of it was read.
    pub(super) async fn send(
        &self,
        ask: &Ask,
    ) -> Result<(Response<Incoming>, SendRequest<Full<Bytes>>), NoAnswer> {
        while let Some(mut kept) = self.take_idle().await {
            // Every write here says what it is to find: sent twice, it is done once.
            if let Ok(answer) = kept.send_request(self.request(ask)?).await {
                return Ok((answer, kept));
            }
        }
        let mut fresh = timeout(CONNECT, self.connect()).await.map_err(|_| NoAnswer::Late)??;
        let answer = fresh.send_request(self.request(ask)?).await?;
        Ok((answer, fresh))
    }

    async fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().await;
        while let Some(mut kept) = idle.pop() {
            if kept.ready().await.is_ok() {
                return Some(kept);
            }
        }
        None
    }

    /// Keeps a connection for the next request.
    pub(super) async fn keep(&self, connection: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock().await;
        if idle.len() < KEPT && !connection.is_closed() {
            idle.push(connection);
        }
    }

    /// Gives up what is kept: it may lead nowhere.
    pub(super) async fn drop_idle(&self) {
        self.idle.lock().await.clear();
    }

    fn request(&self, ask: &Ask) -> Result<Request<Full<Bytes>>, NoAnswer> {
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(ask.path.as_str())
            .header(header::HOST, self.endpoint.authority());
        if !ask.form.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        if let Some((user, password)) = &self.user {
            let text = format!("Basic {}", BASE64.encode(format!("{user}:{password}")));
            let mut value = HeaderValue::from_str(&text).map_err(|e| NoAnswer::Unfit(e.to_string()))?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        request
            .body(Full::new(Bytes::from(ask.form.clone())))
            .map_err(|e| NoAnswer::Unfit(format!("{:?} cannot be asked for: {e}", ask.path)))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, NoAnswer> {
        let stream = TcpStream::connect(self.endpoint.authority()).await?;
        stream.set_nodelay(true)?;
        let Some(files) = &self.tls else { return handshake(stream).await };
        let connector = TlsConnector::from(Arc::new(tls::client_config(files)?));
        let name = ServerName::try_from(self.endpoint.host().to_owned())
            .map_err(|e| NoAnswer::Unfit(format!("{}: {e}", self.endpoint)))?;
        handshake(connector.connect(name, stream).await?).await
    }
}

async fn handshake<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, NoAnswer>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the sender, or with the connection, whose error the sender reports.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}
