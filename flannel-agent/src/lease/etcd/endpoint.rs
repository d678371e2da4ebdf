//! `--etcd-endpoints`: where etcd is.

use std::{fmt, net::Ipv6Addr};

/// One member of the etcd cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// `host:port`.
    authority: String,
    /// Whether the connection is encrypted.
    pub(super) tls: bool,
}

impl Endpoint {
    /// `host:port`.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// The name or address alone, an IPv6 address without its brackets.
    pub(super) fn host(&self) -> &str {
        let host = self.authority.rsplit_once(':').map_or(self.authority.as_str(), |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority)
    }
}

/// An endpoint that cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("--etcd-endpoints: {value:?} {problem}")]
pub struct EndpointError {
    value: String,
    problem: &'static str,
}

const EXAMPLE: &str =
    "is not an endpoint: write http://192.0.2.1:2379, or https:// for TLS; separate several by commas";

/// Reads a comma-separated list. An endpoint without a scheme is encrypted if there is a client certificate. What Go's client
/// of etcd makes nothing of is left out, as it is there: commas with nothing between them, paths and queries.
pub(super) fn parse(list: &str, have_certificate: bool) -> Result<Vec<Endpoint>, EndpointError> {
    if list.contains('@') {
        // Not repeated: a password may stand before it, and that may hold commas.
        return Err(EndpointError {
            value: "<hidden>".to_owned(),
            problem: "has a user in it: give it by --etcd-username and --etcd-password",
        });
    }
    let mut endpoints: Vec<Endpoint> = Vec::new();
    let is_empty = list.split(',').all(|value| value.trim().is_empty());
    for value in list.split(',').map(str::trim).filter(|value| is_empty || !value.is_empty()) {
        let refuse = |problem| EndpointError { value: value.to_owned(), problem };
        let (tls, authority) = match value.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some(_) => {
                return Err(refuse(
                    "has a scheme that is neither http nor https: write http://192.0.2.1:2379",
                ));
            }
            None => (have_certificate, value),
        };
        let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && !port.ends_with(']') => (host, port),
            _ if host_is_sound(authority) => return Err(refuse("has no port: append one, as :2379")),
            _ => return Err(refuse(EXAMPLE)),
        };
        if !host_is_sound(host) {
            return Err(refuse(EXAMPLE));
        }
        if !port.bytes().all(|b| b.is_ascii_digit()) || !port.parse::<u16>().is_ok_and(|port| port > 0) {
            return Err(refuse("has no port from 1 to 65535: etcd's is usually 2379"));
        }
        let endpoint = Endpoint { authority: authority.to_owned(), tls };
        if !endpoints.contains(&endpoint) {
            endpoints.push(endpoint);
        }
    }
    Ok(endpoints)
}

/// A name, an IPv4 address, or an IPv6 address in brackets.
fn host_is_sound(host: &str) -> bool {
    match host.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
        Some(v6) => v6.is_some_and(|text| text.parse::<Ipv6Addr>().is_ok()),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(list: &str, have_certificate: bool) -> Vec<String> {
        parse(list, have_certificate).unwrap().iter().map(Endpoint::to_string).collect()
    }

    #[test]
    fn lists() {
        assert_eq!(all("http://127.0.0.1:4001,http://127.0.0.1:2379", false).len(), 2);
        assert_eq!(all("https://etcd-1.example:2379/ , http://[::1]:2379", false).len(), 2);
        assert_eq!(all("http://a:1,http://a:1", false), ["http://a:1"]);
        assert_eq!(all("a:2379", false), ["http://a:2379"]);
        assert_eq!(all(",http://a:2379,,HTTPS://b:2379/,", false), ["http://a:2379", "https://b:2379"]);
        assert_eq!(all("http://a:2379/v3?x=1,b:1/#c", false), ["http://a:2379", "http://b:1"]);
        assert_eq!(all("a:2379,http://b:2379", true), ["https://a:2379", "http://b:2379"]);
    }

    #[test]
    fn errors_name_flag_value_and_remedy() {
        for (list, start) in [
            ("", r#"--etcd-endpoints: "" is not an endpoint: write http://"#),
            (" , ", r#"--etcd-endpoints: "" is not an endpoint"#),
            ("http://", r#"--etcd-endpoints: "http://" is not an endpoint"#),
            ("http://a", r#"--etcd-endpoints: "http://a" has no port: append one"#),
            ("http://[::1]", r#"--etcd-endpoints: "http://[::1]" has no port"#),
            ("http://a:0", r#"--etcd-endpoints: "http://a:0" has no port from 1"#),
            ("http://a:65536", r#"--etcd-endpoints: "http://a:65536" has no port from 1"#),
            ("http://a:+1", r#"--etcd-endpoints: "http://a:+1" has no port from 1"#),
            ("http://a b:1", r#"--etcd-endpoints: "http://a b:1" is not an endpoint"#),
            ("http://::1:2379", r#"--etcd-endpoints: "http://::1:2379" is not an endpoint"#),
            ("ftp://a:1", r#"--etcd-endpoints: "ftp://a:1" has a scheme that"#),
            ("http://u:p@a:1", r#"--etcd-endpoints: "<hidden>" has a user in it"#),
            ("ftp://u:p,q@a:1", r#"--etcd-endpoints: "<hidden>" has a user in it"#),
        ] {
            let error = parse(list, false).unwrap_err().to_string();
            assert!(error.starts_with(start), "{error}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(list in "\\PC{0,40}|[a-z:/\\[\\]0-9,.]{0,40}", tls in any::<bool>()) {
            let _ = parse(&list, tls);
        }
    }
}
