//! What no archive may hold.

use std::{borrow::Cow, fs};

use regex::Regex;

/// Stands for what was removed.
pub(super) const REMOVED: &str = "(removed)";
/// A shorter word would be found in the midst of others.
const SHORTEST: usize = 4;

/// Removes secrets from text: those that are known, and what looks like one.
pub(super) struct Secrets {
    /// Words that stand nowhere.
    known: Vec<String>,
    patterns: Vec<(Regex, &'static str)>,
}

impl Secrets {
    /// Those of the agent with this process, if it runs: what its command line and environment call a secret.
    pub(super) fn of(agent: Option<u32>) -> Result<Self, regex::Error> {
        let patterns = [
            // Keys of JSON, YAML and shell, flags and variables, with values in quotes of either kind or without.
            (
                r#"(?i)([\w-]*(?:password|passwd|psk|secret|token|private[_-]?key|authorization)["']?(?:\s*[:=]\s*|\s+)")[^"\n]*"#,
                "${1}(removed)",
            ),
            (
                r#"(?i)([\w-]*(?:password|passwd|psk|secret|token|private[_-]?key|authorization)["']?(?:\s*[:=]\s*|\s+)')[^'\n]*"#,
                "${1}(removed)",
            ),
            (
                r#"(?i)([\w-]*(?:password|passwd|psk|secret|token|private[_-]?key|authorization)["']?(?:\s*[:=]\s*|\s+))(?:(?:bearer|basic)\s+)?[^\s"',}\x00]+"#,
                "${1}(removed)",
            ),
            (r"(?i)(://)[^/@\s:]+(?::[^/@\s]*)?@", "${1}(removed)@"),
            // Also what is left of one that begins with a known word.
            (r"(?i)\b(bearer|basic)\s+(?:\(removed\)[a-z0-9._~+/=-]*|[a-z0-9._~+/=-]{8,})", "${1} (removed)"),
            (r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", REMOVED),
            // A JSON web token, wherever it stands.
            (r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+", REMOVED),
        ];
        let patterns = patterns
            .into_iter()
            .map(|(pattern, with)| Ok((Regex::new(pattern)?, with)))
            .collect::<Result<_, regex::Error>>()?;
        let mut secrets = Self { known: Vec::new(), patterns };
        for name in ["cmdline", "environ"] {
            let path = agent.map(|pid| format!("/proc/{pid}/{name}"));
            let text = path.and_then(|path| fs::read(path).ok()).unwrap_or_default();
            secrets.learn(&String::from_utf8_lossy(&text));
        }
        Ok(secrets)
    }

    /// Remembers the values of what `words`, each ended by a zero, call a secret.
    fn learn(&mut self, words: &str) {
        let is_secret = |name: &str| {
            let name = name.to_lowercase();
            ["password", "psk", "secret", "token"].iter().any(|part| name.contains(part))
        };
        let words: Vec<&str> = words.split('\0').collect();
        for (at, word) in words.iter().enumerate() {
            let value = match word.split_once('=') {
                Some((name, value)) if is_secret(name) => Some(value),
                None if word.starts_with('-') && is_secret(word) => words.get(at + 1).copied(),
                _ => None,
            };
            self.known.extend(value.filter(|value| value.len() >= SHORTEST).map(str::to_owned));
        }
    }

    /// `text` without them.
    pub(super) fn removed_from(&self, text: &str) -> String {
        let mut text = Cow::Borrowed(text);
        for secret in &self.known {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), REMOVED).into();
            }
        }
        for (pattern, with) in &self.patterns {
            text = pattern.replace_all(&text, *with).into_owned().into();
        }
        text.into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_removed_and_the_rest_stays() {
        let mut secrets = Secrets::of(None).unwrap();
        secrets.learn("flanneld\0--etcd-password=hunter22\0--etcd-endpoints=http://x\0FLANNELD_X_TOKEN=abcdefgh\0-kube-token\0zyxw9");
        for (text, left) in [
            (
                "the log says hunter22 and abcdefgh and zyxw9",
                "the log says (removed) and (removed) and (removed)",
            ),
            (
                r#"{"Type": "wireguard", "PSK": "c2VjcmV0", "Mode": "auto"}"#,
                r#"{"Type": "wireguard", "PSK": "(removed)", "Mode": "auto"}"#,
            ),
            ("--etcd-password=other --ip-masq", "--etcd-password=(removed) --ip-masq"),
            ("--etcd-password other --ip-masq", "--etcd-password (removed) --ip-masq"),
            ("FLANNELD_ETCD_PASSWORD='a b'", "FLANNELD_ETCD_PASSWORD='(removed)'"),
            ("https://user:pass@10.0.0.1:2379/x", "https://(removed)@10.0.0.1:2379/x"),
            ("authorization: Bearer abc.def-ghi", "authorization: (removed)"),
            ("sent Bearer abcdefghij", "sent Bearer (removed)"),
            ("a -----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY----- b", "a (removed) b"),
            ("token: eyJhbGciOiJSUzI1.eyJpc3MiOiJrdWJl.c2lnbmF0", "token: (removed)"),
            (
                "10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink",
                "10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink",
            ),
            ("etcd_keyfile: Some(\"/etc/key.pem\")", "etcd_keyfile: Some(\"/etc/key.pem\")"),
        ] {
            assert_eq!(secrets.removed_from(text), left);
        }
    }
}
