//! How to reach the API server: by the flags, or as a pod does.

use std::time::Duration;

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::{KubeError, options::KubeOptions};

/// For a TCP connection, and for TLS on it.
const CONNECT: Duration = Duration::from_secs(5);

/// A client of the API server that `options` name. Connects when first used. Needs a Tokio runtime.
///
/// As upstream, `--kube-api-url` wins over the address in the kubeconfig file, and only without either the process
/// is taken for a pod's.
pub(super) async fn client(options: &KubeOptions) -> Result<Client, KubeError> {
    let url = match &options.api_url {
        None => None,
        Some(url) => Some(
            url.parse::<http::Uri>()
                .ok()
                .filter(|uri| uri.scheme().is_some() && uri.host().is_some())
                .ok_or_else(|| {
                    KubeError::Connect(format!(
                        "--kube-api-url: \"{url}\" is not a URL, as https://192.0.2.1:6443"
                    ))
                })?,
        ),
    };
    let mut config = match (&options.kubeconfig, url) {
        (Some(file), url) => {
            let refused = |error: &dyn std::error::Error| {
                KubeError::Connect(format!("--kubeconfig-file {}: {error}", file.display()))
            };
            let read = Kubeconfig::read_from(file).map_err(|error| refused(&error))?;
            let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
            let mut config = config.map_err(|error| refused(&error))?;
            if let Some(url) = url {
                config.cluster_url = url;
            }
            config
        }
        (None, Some(url)) => Config::new(url),
        (None, None) => Config::incluster().map_err(|error| {
            KubeError::Connect(format!(
                "this is no pod with a service account ({error}): outside of a cluster give --kubeconfig-file or \
                 --kube-api-url"
            ))
        })?,
    };
    need_no_authority_in_the_clear(&mut config);
    config.connect_timeout = Some(CONNECT);
    // Each caller has its own pauses and its own word for what fails.
    config.default_retry = false;
    Client::try_from(config).map_err(|error| KubeError::Connect(error.to_string()))
}

/// Where nothing is encrypted, no certificate authority has to be there: unless some are named, even if it is none, those
/// of the system are looked for, and without them there is no client.
fn need_no_authority_in_the_clear(config: &mut Config) {
    if config.cluster_url.scheme_str() == Some("http") {
        config.root_cert.get_or_insert_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_an_encrypted_connection_needs_an_authority() {
        let of = |url: &'static str| {
            let mut config = Config::new(http::Uri::from_static(url));
            need_no_authority_in_the_clear(&mut config);
            config
        };
        assert_eq!(of("https://192.0.2.1:6443").root_cert, None, "the system's");
        let clear = of("http://192.0.2.1:8080");
        assert_eq!(clear.root_cert, Some(Vec::new()));
        assert!(Client::try_from(clear).is_ok());
    }
}
