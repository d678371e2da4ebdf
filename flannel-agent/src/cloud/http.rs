//! HTTP to a cloud's API and to the metadata of this machine.

use std::{error::Error as _, sync::Arc, time::Duration};

use http::{HeaderMap, Request, StatusCode, Uri, uri::Scheme};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::{
        legacy::{
            Client,
            connect::{Connect, HttpConnector, proxy::Tunnel},
        },
        proxy::matcher::Matcher,
    },
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio::time::timeout;

use crate::values::shorten;

/// How long a TCP connection may take.
const CONNECT: Duration = Duration::from_secs(3);
/// Larger than any answer: a page of a thousand routes is a tenth of it.
const MAX_ANSWER: usize = 8 << 20;
/// Attempts of one request where the answer is that it may be tried again.
const TRIES: u32 = 6;
/// Pause before the second attempt, at most; doubled before each further one, up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(10));

/// Sends requests; keeps connections between them. Those that are encrypted go through the proxy that `HTTPS_PROXY` and
/// `NO_PROXY` name.
#[derive(Clone)]
pub(super) struct Http {
    direct: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    tls: ClientConfig,
    tcp: HttpConnector,
    proxies: Arc<Matcher>,
}

/// All of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// Its beginning, for messages.
    pub(super) fn text(&self) -> String {
        shorten(String::from_utf8_lossy(&self.body).trim(), 300)
    }

    /// A header, if it is there and text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether the same request may be answered otherwise in a while.
    pub(super) fn may_pass(&self) -> bool {
        may_pass(self.status)
    }
}

/// Whether a request that was answered with `status` may be answered otherwise in a while.
pub(super) fn may_pass(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// No answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// None within this time.
    #[error("{host} does not answer within {} s", .after.as_secs())]
    Late {
        /// Who was asked.
        host: String,
        /// How long it was waited.
        after: Duration,
    },
    /// The connection failed.
    #[error("{host}: {reason}")]
    Failed {
        /// Who was asked.
        host: String,
        /// Why.
        reason: String,
    },
}

impl Http {
    /// The system's certificates are trusted.
    ///
    /// # Errors
    /// When rustls has no version of TLS to speak.
    pub(super) fn new() -> Result<Self, NoAnswer> {
        let mut roots = RootCertStore::empty();
        // What of the system's cannot be read is left out: the handshake says who was not trusted.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| NoAnswer::Failed { host: "TLS".to_owned(), reason: error.to_string() })?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_nodelay(true);
        let direct = client(tls.clone(), tcp.clone());
        Ok(Self { direct, tls, tcp, proxies: Arc::new(Matcher::from_env()) })
    }

    /// The way through a proxy, where one is to be used.
    fn proxied(&self, uri: &Uri) -> Option<Client<HttpsConnector<Tunnel<HttpConnector>>, Full<Bytes>>> {
        let proxy = self.proxies.intercept(uri).filter(|_| uri.scheme() == Some(&Scheme::HTTPS))?;
        let mut tunnel = Tunnel::new(proxy.uri().clone(), self.tcp.clone());
        if let Some(auth) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(auth.clone());
        }
        Some(client(self.tls.clone(), tunnel))
    }

    /// Sends `request` and waits `patience` at most for all of the answer, whatever it says.
    pub(super) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        patience: Duration,
    ) -> Result<Answer, NoAnswer> {
        let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let failed = |reason: String| NoAnswer::Failed { host: host.clone(), reason };
        let whole = async {
            let answer = match self.proxied(request.uri()) {
                Some(proxied) => proxied.request(request),
                None => self.direct.request(request),
            };
            let answer = answer.await.map_err(|error| failed(deepest(&error)))?;
            let (parts, body) = answer.into_parts();
            let body =
                Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| failed(error.to_string()))?;
            Ok(Answer { status: parts.status, headers: parts.headers, body: body.to_bytes() })
        };
        timeout(patience, whole).await.unwrap_or(Err(NoAnswer::Late { host: host.clone(), after: patience }))
    }
}

fn client<C>(tls: ClientConfig, connector: C) -> Client<HttpsConnector<C>, Full<Bytes>>
where
    HttpsConnector<C>: Connect + Clone,
{
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    Client::builder(TokioExecutor::new()).pool_idle_timeout(Duration::from_secs(30)).build(connector)
}

/// The innermost cause: the layers above say no more than that a connection failed.
fn deepest(error: &hyper_util::client::legacy::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    text
}

/// Attempts of one request, with pauses of random length between them.
#[derive(Debug, Default)]
pub(super) struct Attempts(u32);

impl Attempts {
    /// Waits until the next attempt is due; whether there is one.
    pub(super) async fn again(&mut self) -> bool {
        self.0 += 1;
        if self.0 >= TRIES {
            return false;
        }
        let longest = (PAUSE.0 * 2_u32.saturating_pow(self.0 - 1)).min(PAUSE.1);
        tokio::time::sleep(longest.mul_f64(rand::random())).await;
        true
    }
}
