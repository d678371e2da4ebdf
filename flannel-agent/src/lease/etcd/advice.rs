//! What to do about an error of etcd or of the connection to it.

use super::endpoint::Endpoint;

const WANTS_CERTIFICATE: &str = "etcd wants a client certificate: give --etcd-certfile and --etcd-keyfile";

const UNSUPPORTED: &str = "etcd's certificate, or its CA's, may be of a kind that is not supported here: issue one of RSA with 2048 \
                           bits or more, P-256 with SHA-256, P-384 with SHA-384, or Ed25519";

/// Parts of what is reported, and what a user can do about it; the first that fits counts.
const KNOWN: [(&str, &str); 22] = [
    // Of a file that was good when the agent started.
    ("--etcd-c", "put a good file in its place; it is read again with the next attempt"),
    ("--etcd-k", "put a good file in its place; it is read again with the next attempt"),
    (
        "permission denied",
        "grant the user of --etcd-username the permission to read and write below --etcd-prefix",
    ),
    ("authentication failed", "check --etcd-username and --etcd-password"),
    (
        "Insufficient credentials",
        "check --etcd-username and --etcd-password, and that v2's user may read and write below --etcd-prefix",
    ),
    ("HTTP request to an HTTPS server", "etcd speaks TLS there: write https:// in --etcd-endpoints"),
    ("user name is empty", "give --etcd-username and --etcd-password"),
    (
        "UnknownIssuer",
        "etcd's certificate is not signed by the CA of --etcd-cafile (without that flag: by one of this system)",
    ),
    ("certificate expired", "etcd's own certificate has expired: renew it"),
    (
        "certificate not valid for name",
        "etcd's certificate is for another name: use that in --etcd-endpoints",
    ),
    (
        "CaUsedAsEndEntity",
        "etcd's certificate is one of a CA: put that very certificate into --etcd-cafile, too",
    ),
    (
        "does not allow extended key usage",
        "etcd's certificate is not for servers: issue one with the use serverAuth",
    ),
    ("BadSignature", UNSUPPORTED),
    ("UnsupportedSignatureAlgorithm", UNSUPPORTED),
    ("HandshakeFailure", UNSUPPORTED),
    ("CertificateRequired", WANTS_CERTIFICATE),
    (
        "fatal alert",
        "etcd does not accept the certificate of --etcd-certfile: have it signed by the CA that etcd trusts",
    ),
    ("handshake eof", "etcd does not speak TLS there: write http:// in --etcd-endpoints"),
    ("InvalidContentType", "etcd does not speak TLS there: write http:// in --etcd-endpoints"),
    ("HTTP/2 was not negotiated", "something else than etcd answers there: check --etcd-endpoints"),
    ("space exceeded", "compact and defragment etcd, then disarm its alarm"),
    ("no leader", "the etcd cluster has lost its quorum: start its other members"),
];

/// What etcd's Go server does with clients that do not encrypt as it expects, or show no certificate,
/// is to close the connection.
const CLOSED: [&str; 4] = ["connection closed", "broken pipe", "connection reset", "connection error"];

/// What to do about `reason`, reported by or for `endpoint`.
pub(super) fn advice(endpoint: &Endpoint, have_certificate: bool, reason: &str) -> &'static str {
    if endpoint.tls && !have_certificate && reason.contains("BadCertificate") {
        // Go's word, until lately, for none.
        return WANTS_CERTIFICATE;
    }
    if let Some((_, advice)) = KNOWN.iter().find(|(part, _)| reason.contains(part)) {
        return advice;
    }
    let lower = reason.to_ascii_lowercase();
    match (CLOSED.iter().any(|part| lower.contains(part)), endpoint.tls, have_certificate) {
        (true, true, false) => "if etcd wants a client certificate, give --etcd-certfile and --etcd-keyfile",
        (true, true, true) => {
            "if etcd is running there, it may not accept the certificate of --etcd-certfile: have it signed by the CA that etcd trusts"
        }
        (true, false, _) => "if etcd speaks TLS there, write https:// in --etcd-endpoints",
        _ => "is etcd running, and is --etcd-endpoints right?",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::etcd::endpoint;

    #[test]
    fn a_closed_connection_is_judged_by_what_was_tried() {
        let of = |url: &str, certificate| {
            let endpoint = endpoint::parse(url, certificate).unwrap().remove(0);
            advice(&endpoint, certificate, "transport error: Broken pipe")
        };
        assert!(of("http://a:1", false).contains("https://"));
        assert!(of("https://a:1", false).contains("--etcd-certfile"));
        assert!(of("https://a:1", true).contains("may not accept the certificate of --etcd-certfile"));
    }
}
