//! A service account's key file, and the signed claim that a token is got for (RFC 7523).

use std::time::{Duration, SystemTime};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use rustls::{SignatureScheme, crypto::ring::sign::any_supported_type};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};
use serde::Deserialize;
use serde_json::json;

/// What may be done with the token.
const SCOPE: &str = "https://www.googleapis.com/auth/compute";
/// The longest life of a claim.
const LIFE: Duration = Duration::from_secs(3600);

/// The part of the file that is used.
#[derive(Deserialize)]
pub(super) struct Key {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    client_email: String,
    #[serde(default)]
    private_key_id: String,
    #[serde(default)]
    private_key: String,
    /// Where a token is got.
    #[serde(default = "token_uri")]
    pub(super) token_uri: String,
}

fn token_uri() -> String {
    "https://oauth2.googleapis.com/token".to_owned()
}

impl Key {
    /// Reads the file's text.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let key: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        match key.kind.as_str() {
            "service_account" => Ok(key),
            other => Err(format!(
                "it is of type {other:?}, and only \"service_account\" is supported: unset the variable to use the \
                 instance's own service account"
            )),
        }
    }

    /// The claim, as of now.
    pub(super) fn claim(&self) -> Result<String, String> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let header = json!({ "alg": "RS256", "typ": "JWT", "kid": self.private_key_id });
        let claims = json!({
            "iss": self.client_email, "scope": SCOPE, "aud": self.token_uri,
            "iat": now.as_secs(), "exp": (now + LIFE).as_secs(),
        });
        let part = |value: serde_json::Value| BASE64URL.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let wrong = |error: &dyn std::fmt::Display| format!("private_key: {error}");
        let der =
            PrivateKeyDer::from_pem_slice(self.private_key.as_bytes()).map_err(|error| wrong(&error))?;
        let key = any_supported_type(&der).map_err(|error| wrong(&error))?;
        let signer = key.choose_scheme(&[SignatureScheme::RSA_PKCS1_SHA256]);
        let signer = signer.ok_or("private_key: it is no RSA key")?;
        let signature = signer.sign(signed.as_bytes()).map_err(|error| error.to_string())?;
        Ok(format!("{signed}.{}", BASE64URL.encode(signature)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_of_service_accounts_are_read() {
        let error = Key::parse(r#"{"type":"authorized_user"}"#).map(drop).unwrap_err();
        assert!(error.contains("\"authorized_user\""), "{error}");
        let key = Key::parse(r#"{"type":"service_account","private_key":"x"}"#).unwrap();
        assert_eq!(key.token_uri, "https://oauth2.googleapis.com/token");
        assert!(key.claim().unwrap_err().starts_with("private_key: "));
    }
}
