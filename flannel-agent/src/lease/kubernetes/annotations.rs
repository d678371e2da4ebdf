//! The names of flannel's annotations of nodes.

use std::sync::LazyLock;

use regex::Regex;

/// "true" on nodes whose lease flannel keeps.
pub(super) const MANAGED: &str = "kube-subnet-manager";
/// `BackendType` of the lease.
pub(super) const BACKEND_TYPE: &str = "backend-type";
/// `BackendData` of the lease as JSON text, or `null`.
pub(super) const BACKEND_DATA: &str = "backend-data";
/// `BackendV6Data` of the lease, the same.
pub(super) const BACKEND_V6_DATA: &str = "backend-v6-data";
/// `PublicIP` of the lease.
pub(super) const PUBLIC_IP: &str = "public-ip";
/// `PublicIPv6` of the lease.
pub(super) const PUBLIC_IPV6: &str = "public-ipv6";
/// Written by an operator: as `--public-ip`, over which it wins.
pub(super) const NODE_PUBLIC_IP: &str = "node-public-ip";
/// Written by an operator: as `--public-ipv6`, over which it wins.
pub(super) const NODE_PUBLIC_IPV6: &str = "node-public-ipv6";
/// Written by an operator: published instead of the node's address, as behind a NAT.
pub(super) const PUBLIC_IP_OVERWRITE: &str = "public-ip-overwrite";
/// Written by an operator: the same in IPv6.
pub(super) const PUBLIC_IPV6_OVERWRITE: &str = "public-ipv6-overwrite";

/// All of them: what of a node's annotations is kept when it is read.
pub(super) const ALL: [&str; 10] = [
    MANAGED,
    BACKEND_TYPE,
    BACKEND_DATA,
    BACKEND_V6_DATA,
    PUBLIC_IP,
    PUBLIC_IPV6,
    NODE_PUBLIC_IP,
    NODE_PUBLIC_IPV6,
    PUBLIC_IP_OVERWRITE,
    PUBLIC_IPV6_OVERWRITE,
];

/// `--kube-annotation-prefix` that makes no names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPrefix {
    /// The first message of upstream's.
    #[error(
        "--kube-annotation-prefix: prefix can contain at most single slash: \"{0}\"; write a domain, as \
         flannel.alpha.coreos.com, or a domain, a slash and the beginning of a name"
    )]
    Slashes(String),
    /// The second.
    #[error(
        "--kube-annotation-prefix: prefix must be in a format: fqdn/[0-9a-z-_]*: \"{0}\"; write a domain of two \
         parts or more in lower case, as flannel.alpha.coreos.com, or one with a slash and the beginning of a name"
    )]
    Form(String),
}

/// What flannel's annotations begin with, normalised: `<domain>/`, or `<domain>/<beginning>-`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnotationPrefix(String);

/// A pattern that cannot be compiled would be a mistake in this file, which the tests would find.
static FORM: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^(?:[a-z0-9_-]+\.)+[a-z0-9_-]+/(?:[a-z0-9_-]+-)?$").ok());

impl AnnotationPrefix {
    /// By upstream's rule: without a slash one is put behind; what stands behind the slash ends in a dash.
    ///
    /// # Errors
    /// What is wrong with `text`.
    pub fn new(text: &str) -> Result<Self, BadPrefix> {
        let mut prefix = text.to_owned();
        match text.matches('/').count() {
            0 => prefix.push('/'),
            1 => {}
            _ => return Err(BadPrefix::Slashes(text.to_owned())),
        }
        if !prefix.ends_with(['/', '-']) {
            prefix.push('-');
        }
        match FORM.as_ref().is_some_and(|form| form.is_match(&prefix)) {
            true => Ok(Self(prefix)),
            false => Err(BadPrefix::Form(text.to_owned())),
        }
    }

    /// The whole name of the annotation that ends in `name`.
    pub(super) fn of(&self, name: &str) -> String {
        format!("{}{name}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Upstream's Test_newAnnotations, all its 12 cases.
    #[test]
    fn new_annotations() {
        for (prefix, backend_type) in [
            ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/backend-type"),
            ("flannel.alpha.coreos.com/", "flannel.alpha.coreos.com/backend-type"),
            ("flannel.alpha.coreos.com/prefix", "flannel.alpha.coreos.com/prefix-backend-type"),
            ("flannel.alpha.coreos.com/prefix-", "flannel.alpha.coreos.com/prefix-backend-type"),
            ("org.com", "org.com/backend-type"),
            ("org9.com", "org9.com/backend-type"),
            ("org.com/9", "org.com/9-backend-type"),
        ] {
            let names = AnnotationPrefix::new(prefix).unwrap();
            assert_eq!(names.of(BACKEND_TYPE), backend_type, "{prefix}");
        }
        for prefix in ["org", "org/", "org/prefix", "org.COM", "org.com/PREFIX"] {
            assert_eq!(AnnotationPrefix::new(prefix), Err(BadPrefix::Form(prefix.to_owned())));
        }
    }

    #[test]
    fn what_else_is_no_prefix() {
        assert_eq!(AnnotationPrefix::new("org.com/a/b"), Err(BadPrefix::Slashes("org.com/a/b".to_owned())));
        for prefix in ["", "/", "/prefix", "org.com/a b", "org.com/\n"] {
            let error = AnnotationPrefix::new(prefix).unwrap_err().to_string();
            assert!(error.starts_with("--kube-annotation-prefix: prefix must be in a format"), "{error}");
        }
    }
}
