//! `--etcd-cafile`, `--etcd-certfile`, `--etcd-keyfile`: read and judged at start, so that a wrong file is
//! named instead of showing as a handshake that fails, and again for each connection, so that certificates can
//! be renewed without a restart.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _};
use webpki::{EndEntityCert, KeyUsage};

use super::trust::Trusted;
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
pub(super) fn client_config(files: &Files) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    let given = match &files.ca {
        None => {
            // What of the system's cannot be read is left out: the handshake says who was not trusted.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            Vec::new()
        }
        Some(path) => {
            let given = ca(path)?;
            for der in &given {
                roots.add(der.clone()).map_err(|e| error(CA, path, e.to_string()))?;
            }
            given
        }
    };
    let of_ca = |problem: String| error(CA, &files.ca.clone().unwrap_or_default(), problem);
    let provider = Arc::new(ring::default_provider());
    let trusted = Trusted::new(roots, given, provider.clone())
        .map_err(|e| of_ca(format!("{e}: name the file of etcd's CA, as this system has none")))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| of_ca(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(trusted));
    match &files.pair {
        None => Ok(builder.with_no_client_auth()),
        Some((cert, key)) => {
            let (chain, private) = pair(cert, key)?;
            builder.with_client_auth_cert(chain, private).map_err(|e| unfit(cert, key, &e))
        }
    }
}

fn ca(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = certificates(CA, path)?;
    for der in &certificates {
        webpki::anchor_from_trusted_cert(der)
            .map_err(|e| error(CA, path, format!("holds a certificate that cannot be a CA's: {e}")))?;
    }
    Ok(certificates)
}

fn pair(cert: &Path, key: &Path) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = certificates(CERT, cert)?;
    if let Some(leaf) = chain.first() {
        usable_now(cert, leaf)?;
    }
    let private = PrivateKeyDer::from_pem_slice(&read(KEY, key)?).map_err(|e| {
        let remedy = "give an unencrypted PEM file that begins with -----BEGIN PRIVATE KEY-----";
        error(KEY, key, format!("holds no private key ({e}): {remedy}"))
    })?;
    Ok((chain, private))
}

/// The key is of a kind that is not supported, or another certificate's.
fn unfit(cert: &Path, key: &Path, why: &rustls::Error) -> TlsError {
    let remedy = "it must be that certificate's, and RSA of 2048 bits or more, P-256, P-384 or Ed25519";
    error(KEY, key, format!("cannot be used with {CERT} {}: {why}: {remedy}", cert.display()))
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

fn certificates(flag: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(flag, path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let remedy = "give a PEM file that begins with -----BEGIN CERTIFICATE-----";
    match all {
        Err(e) => Err(error(flag, path, format!("holds no certificate ({e}): {remedy}"))),
        Ok(none) if none.is_empty() => Err(error(flag, path, format!("holds no certificate: {remedy}"))),
        Ok(all) => Ok(all),
    }
}

fn read(flag: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|e| error(flag, path, format!("cannot be read: {e}")))
}

fn error(flag: &'static str, path: &Path, problem: String) -> TlsError {
    TlsError { flag, path: path.to_owned(), problem }
}
