//! How to reach etcd, and the life of our lease in it.

use std::{fmt, path::PathBuf, time::Duration};

use super::EtcdError;

/// Lifetime of a lease, as upstream grants it: 24 h.
const TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// How to reach etcd and where in it to look; flags of the same name.
#[derive(Clone)]
pub struct EtcdOptions {
    /// `--etcd-endpoints`, separated by commas.
    pub endpoints: String,
    /// `--etcd-prefix`.
    pub prefix: String,
    /// `--etcd-keyfile`, PEM.
    pub keyfile: Option<PathBuf>,
    /// `--etcd-certfile`, PEM.
    pub certfile: Option<PathBuf>,
    /// `--etcd-cafile`, PEM.
    pub cafile: Option<PathBuf>,
    /// `--etcd-username`.
    pub username: Option<String>,
    /// `--etcd-password`.
    pub password: Option<String>,
    /// `--etcd-api`.
    pub api: EtcdApi,
    /// When our lease is renewed.
    pub timing: LeaseTiming,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        Self {
            endpoints: "http://127.0.0.1:4001,http://127.0.0.1:2379".to_owned(),
            prefix: "/coreos.com/network".to_owned(),
            keyfile: None,
            certfile: None,
            cafile: None,
            username: None,
            password: None,
            api: EtcdApi::default(),
            timing: LeaseTiming::default(),
        }
    }
}

impl fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdOptions")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .field("keyfile", &self.keyfile)
            .field("certfile", &self.certfile)
            .field("cafile", &self.cafile)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "(hidden)"))
            .field("api", &self.api)
            .field("timing", &self.timing)
            .finish()
    }
}

/// Which of etcd's stores holds the leases. An etcd can serve both, and neither knows of the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EtcdApi {
    /// The one that holds the network configuration: v3, else v2.
    #[default]
    Auto,
    /// v3, as flannel from 0.18 on.
    V3,
    /// v2, as flannel 0.11 to 0.17.
    V2,
}

/// The life of our lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTiming {
    /// From a write to the end of the lease; whole seconds. 24 h with upstream.
    pub ttl: Duration,
    /// How long before its end the lease is renewed.
    pub renew_margin: Duration,
    /// Between attempts to renew, when one failed.
    pub renew_retry: Duration,
}

impl Default for LeaseTiming {
    fn default() -> Self {
        let renew_margin = Duration::from_secs(60 * 60);
        Self { ttl: TTL, renew_margin, renew_retry: Duration::from_secs(60) }
    }
}

impl LeaseTiming {
    /// `--subnet-lease-renew-margin`, in minutes from 1 to 1439.
    pub fn with_margin_minutes(minutes: u64) -> Result<Self, EtcdError> {
        match minutes {
            1..=1439 => Ok(Self { renew_margin: Duration::from_secs(minutes * 60), ..Self::default() }),
            _ => Err(EtcdError::RenewMargin(minutes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        let options = EtcdOptions { password: Some("secret".to_owned()), ..EtcdOptions::default() };
        assert!(!format!("{options:?}").contains("secret"));
    }

    #[test]
    fn margin_in_minutes() {
        assert_eq!(LeaseTiming::with_margin_minutes(60).unwrap(), LeaseTiming::default());
        for minutes in [0, 1440] {
            let error = LeaseTiming::with_margin_minutes(minutes).unwrap_err().to_string();
            assert!(error.starts_with("Invalid subnet-lease-renew-margin option, out of acceptable range"));
        }
    }
}
