//! Which certificates of etcd are trusted: those that Go's library takes, with which stock flannel connects, as far as rustls
//! has the means.
//!
//! webpki refuses two kinds that are in use: one that is its own CA, such as `openssl req -x509` makes, where that very
//! certificate is in `--etcd-cafile`; and one for any use (`anyExtendedKeyUsage`, RFC 5280 4.2.1.12).

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        VerifierBuilderError, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

/// `anyExtendedKeyUsage`, 2.5.29.37.0, as DER has it.
const ANY_USE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];

/// Certificates that are trusted, and what they have signed.
#[derive(Debug)]
pub(super) struct Trusted {
    webpki: Arc<WebPkiServerVerifier>,
    roots: Arc<RootCertStore>,
    /// Those of `--etcd-cafile`, whole: an anchor has only a part of each.
    given: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Trusted {
    /// Trusts `roots`, of which `given` are also trusted as a server's own.
    ///
    /// # Errors
    /// There are no roots.
    pub(super) fn new(
        roots: RootCertStore,
        given: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, VerifierBuilderError> {
        let (roots, algorithms) = (Arc::new(roots), provider.signature_verification_algorithms);
        let webpki = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider).build()?;
        Ok(Self { webpki, roots, given, algorithms })
    }

    /// What Go's library says of a certificate that webpki does not take; `None` where that has said it.
    fn judge_as_go(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Option<Result<ServerCertVerified, Error>> {
        let certificate = EndEntityCert::try_from(end_entity).ok()?;
        let usage = KeyUsage::required_if_present(ANY_USE);
        let (algorithms, roots) = (self.algorithms.all, &self.roots.roots);
        match certificate.verify_for_usage(algorithms, roots, intermediates, now, usage, None, None) {
            Ok(_) => {}
            // Said only of one whose time it is.
            Err(webpki::Error::CaUsedAsEndEntity) if self.given.iter().any(|given| given == end_entity) => {}
            Err(webpki::Error::UnknownIssuer) => return Some(Err(CertificateError::UnknownIssuer.into())),
            Err(_) => return None,
        }
        let is_named =
            ParsedCertificate::try_from(end_entity).and_then(|parsed| verify_server_name(&parsed, name));
        Some(is_named.map(|()| ServerCertVerified::assertion()))
    }
}

impl ServerCertVerifier for Trusted {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verdict =
            self.webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verdict {
            Ok(verified) => Ok(verified),
            Err(error) => self.judge_as_go(end_entity, intermediates, server_name, now).unwrap_or(Err(error)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}
