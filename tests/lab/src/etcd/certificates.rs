//! Certificates for tests, good and bad.

use std::{net::IpAddr, path::Path};

use anyhow::Result;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

use super::write_private;

/// Somebody who signs certificates.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
}

/// A certificate and its key, both PEM.
#[derive(Clone, Debug)]
pub struct KeyAndCertificate {
    /// PEM.
    pub certificate: String,
    /// PEM, PKCS #8.
    pub key: String,
}

impl Authority {
    /// A new one.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = params(name, &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// Writes its certificate.
    pub fn write_to(&self, path: &Path) -> Result<()> {
        write_private(path, &self.certificate.pem())
    }

    /// For a server at `address`.
    pub fn server(&self, address: IpAddr) -> Result<KeyAndCertificate> {
        let mut params = params("etcd", &[address.to_string(), "localhost".to_owned()])?;
        // etcd is a client to itself, for its gateway.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params)
    }

    /// For a server called `name` that is reached by these host names and addresses.
    pub fn server_named(&self, name: &str, hosts: &[&str]) -> Result<KeyAndCertificate> {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = params(name, &hosts)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(&params)
    }

    /// For a server at `address`, valid until 2021.
    pub fn expired_server(&self, address: IpAddr) -> Result<KeyAndCertificate> {
        let mut params = params("etcd", &[address.to_string()])?;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        self.sign(&params)
    }

    /// For a server at `address`, for whatever use.
    pub fn server_for_any_use(&self, address: IpAddr) -> Result<KeyAndCertificate> {
        let mut params = params("etcd", &[address.to_string()])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
        self.sign(&params)
    }

    /// For a client.
    pub fn client(&self) -> Result<KeyAndCertificate> {
        let mut params = params("node", &[])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params)
    }

    /// For servers, and no good for a client.
    pub fn server_only(&self) -> Result<KeyAndCertificate> {
        let mut params = params("etcd", &[])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(&params)
    }

    /// For a client, valid until 2021.
    pub fn expired_client(&self) -> Result<KeyAndCertificate> {
        let mut params = params("node", &[])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Result<KeyAndCertificate> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(KeyAndCertificate { certificate, key: key.serialize_pem() })
    }
}

impl KeyAndCertificate {
    /// For a server at `address`, signed by itself, as `openssl req -x509` does.
    pub fn self_signed_server(address: IpAddr) -> Result<Self> {
        let mut params = params("etcd", &[address.to_string()])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        Ok(Self { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
    }

    /// Writes `<path>.pem` and `<path>.key`.
    pub fn write_to(&self, path: &Path) -> Result<()> {
        write_private(&path.with_extension("pem"), &self.certificate)?;
        write_private(&path.with_extension("key"), &self.key)
    }
}

fn params(name: &str, hosts: &[String]) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}
