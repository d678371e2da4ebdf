//! An encrypted connection of etcd-client's to one member. It is made here and not by etcd-client, so that the certificates that
//! are trusted are [`super::trust`]'s, of etcd's v3 and v2 alike.

use std::io;

use http::Uri;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::ClientConfig;
use tonic::transport::{Channel, Endpoint};
use tower::{BoxError, ServiceExt as _, service_fn};

use super::{CONNECT, PING};

/// HTTP/2, by its name in ALPN (RFC 7301).
const HTTP_2: &[u8] = b"h2";

/// Connects to `url` by `config` when it is first used, and again when the connection is lost.
///
/// # Errors
/// `url` is none.
pub(super) fn encrypted(url: String, mut config: ClientConfig) -> Result<Channel, tonic::transport::Error> {
    config.alpn_protocols = vec![HTTP_2.to_vec()];
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(PING.0));
    let connector = HttpsConnector::from((tcp, config));
    let endpoint = Endpoint::from_shared(url)?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1);
    Ok(endpoint.connect_with_connector_lazy(service_fn(move |uri: Uri| {
        let connector = connector.clone();
        async move {
            let stream = connector.oneshot(uri).await?;
            let speaks_http_2 = match &stream {
                MaybeHttpsStream::Http(_) => false,
                MaybeHttpsStream::Https(tls) => tls.inner().get_ref().1.alpn_protocol() == Some(HTTP_2),
            };
            if speaks_http_2 {
                Ok(stream)
            } else {
                Err(BoxError::from(io::Error::other("HTTP/2 was not negotiated")))
            }
        }
    })))
}
