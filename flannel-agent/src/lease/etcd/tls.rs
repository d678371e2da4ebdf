//! `--etcd-cafile`, `--etcd-certfile`, `--etcd-keyfile`: read and judged at start, so that a wrong file is
//! named instead of showing as a handshake that fails, and again for each connection, so that certificates can
//! be renewed without a restart.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use etcd_client::{Certificate, Identity, TlsOptions};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _};
use webpki::{EndEntityCert, KeyUsage};

use crate::values::utc;

/// A file that TLS cannot work with.
#[derive(Debug, thiserror::Error)]
#[error("{flag} {path}: {problem}")]
pub struct TlsError {
    flag: &'static str,
    path: PathBuf,
    problem: String,
}

const CA: &str = "--etcd-cafile";
const CERT: &str = "--etcd-certfile";
const KEY: &str = "--etcd-keyfile";

/// The files to use; `pair` is the client's certificate and its key.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub(super) ca: Option<PathBuf>,
    pub(super) pair: Option<(PathBuf, PathBuf)>,
}

/// TLS, version 1.2 or later: rustls has no other. Without a CA, the system's are trusted.
pub(super) fn options(files: &Files) -> Result<TlsOptions, TlsError> {
    let options = match &files.ca {
        None => TlsOptions::new().with_native_roots(),
        Some(path) => TlsOptions::new().ca_certificate(Certificate::from_pem(ca(path)?)),
    };
    match &files.pair {
        None => Ok(options),
        Some((cert, key)) => {
            let (cert, key) = pair(cert, key)?;
            Ok(options.identity(Identity::from_pem(cert, key)))
        }
    }
}

/// The same for connections that are not etcd-client's.
pub(super) fn client_config(files: &Files) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    match &files.ca {
        // What of the system's cannot be read is left out: the handshake says who was not trusted.
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        Some(path) => {
            ca(path)?;
            for der in certificates(CA, path)?.1 {
                roots.add(der).map_err(|e| error(CA, path, e.to_string()))?;
            }
        }
    }
    let (flag, path) = match (&files.ca, &files.pair) {
        (_, Some((cert, _))) => (CERT, cert.clone()),
        (ca, None) => (CA, ca.clone().unwrap_or_default()),
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| error(flag, &path, e.to_string()))?
        .with_root_certificates(roots);
    match &files.pair {
        None => Ok(builder.with_no_client_auth()),
        Some((cert, key)) => {
            let (_, key_pem) = pair(cert, key)?;
            let private =
                PrivateKeyDer::from_pem_slice(&key_pem).map_err(|e| error(KEY, key, e.to_string()))?;
            builder
                .with_client_auth_cert(certificates(CERT, cert)?.1, private)
                .map_err(|e| error(KEY, key, e.to_string()))
        }
    }
}

fn ca(path: &Path) -> Result<Vec<u8>, TlsError> {
    let (pem, certificates) = certificates(CA, path)?;
    for der in &certificates {
        webpki::anchor_from_trusted_cert(der)
            .map_err(|e| error(CA, path, format!("holds a certificate that cannot be a CA's: {e}")))?;
    }
    Ok(pem)
}

fn pair(cert: &Path, key: &Path) -> Result<(Vec<u8>, Vec<u8>), TlsError> {
    let (cert_pem, chain) = certificates(CERT, cert)?;
    if let Some(leaf) = chain.first() {
        usable_now(cert, leaf)?;
    }
    let key_pem = read(KEY, key)?;
    let private = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|e| {
        let remedy = "give an unencrypted PEM file that begins with -----BEGIN PRIVATE KEY-----";
        error(KEY, key, format!("holds no private key ({e}): {remedy}"))
    })?;
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_root_certificates(RootCertStore::empty()))
        .and_then(|builder| builder.with_client_auth_cert(chain, private))
        .map_err(|e| error(KEY, key, format!("cannot be used with {CERT} {}: {e}", cert.display())))?;
    Ok((cert_pem, key_pem))
}

/// Judges what a certificate says of itself; whether etcd trusts it is etcd's matter.
fn usable_now(path: &Path, der: &CertificateDer<'_>) -> Result<(), TlsError> {
    let refuse = |problem: String| Err(error(CERT, path, problem));
    let leaf = match EndEntityCert::try_from(der) {
        Ok(leaf) => leaf,
        Err(e) => return refuse(format!("holds a certificate that is not X.509 version 3: {e}")),
    };
    let verdict = leaf.verify_for_usage(&[], &[], &[], UnixTime::now(), KeyUsage::client_auth(), None, None);
    let day = |time: UnixTime| utc(SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs()));
    match verdict.map(|_| ()) {
        Err(webpki::Error::CertExpired { not_after, .. }) => {
            refuse(format!("the certificate expired on {}: renew it", day(not_after)))
        }
        Err(webpki::Error::CertNotValidYet { not_before, .. }) => refuse(format!(
            "the certificate is valid from {} only: is this host's clock right?",
            day(not_before)
        )),
        Err(webpki::Error::RequiredEkuNotFoundContext(_)) => refuse(
            "the certificate is not for clients: issue one with the extended key usage clientAuth".to_owned(),
        ),
        _ => Ok(()),
    }
}

fn certificates(
    flag: &'static str,
    path: &Path,
) -> Result<(Vec<u8>, Vec<CertificateDer<'static>>), TlsError> {
    let pem = read(flag, path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let remedy = "give a PEM file that begins with -----BEGIN CERTIFICATE-----";
    match all {
        Err(e) => Err(error(flag, path, format!("holds no certificate ({e}): {remedy}"))),
        Ok(none) if none.is_empty() => Err(error(flag, path, format!("holds no certificate: {remedy}"))),
        Ok(all) => Ok((pem, all)),
    }
}

fn read(flag: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|e| error(flag, path, format!("cannot be read: {e}")))
}

fn error(flag: &'static str, path: &Path, problem: String) -> TlsError {
    TlsError { flag, path: path.to_owned(), problem }
}
