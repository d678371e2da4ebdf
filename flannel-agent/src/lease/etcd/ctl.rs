//! The commands that an operator can type where we have none to run: etcdctl, by the flags that we were given.

use std::borrow::Cow;

use super::tls::Files;

/// A configuration that any cluster can start with.
pub(super) const EXAMPLE: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// The flags of each API for CA, certificate, key and user.
const OF_V3: [&str; 4] = ["--cacert", "--cert", "--key", "--user"];
const OF_V2: [&str; 4] = ["--ca-file", "--cert-file", "--key-file", "--username"];

/// How etcdctl reaches the etcd that we were told.
#[derive(Debug)]
pub(super) struct Etcdctl {
    /// URLs.
    pub(super) endpoints: Vec<String>,
    /// What proves who is who, where the connection is encrypted.
    pub(super) files: Option<Files>,
    /// Whose password etcdctl asks for.
    pub(super) user: Option<String>,
}

impl Etcdctl {
    /// The commands that write the network configuration to `key`, of the v3 store and of the v2 store.
    pub(super) fn for_config(&self, key: &str) -> (String, String) {
        let (v3, v2) = (self.command("3", OF_V3), self.command("2", OF_V2));
        let [key, example] = [key, EXAMPLE].map(quoted);
        (format!("{v3} put {key} {example}"), format!("{v2} mk {key} {example}"))
    }

    /// The command that writes `text` to `key` of the v2 store, or of the v3 store.
    pub(super) fn for_text(&self, v2: bool, key: &str, text: &str) -> String {
        let [key, text] = [key, text].map(quoted);
        match v2 {
            true => format!("{} set {key} {text}", self.command("2", OF_V2)),
            false => format!("{} put {key} {text}", self.command("3", OF_V3)),
        }
    }

    /// The command that deletes `key` from the v2 store, or from the v3 store.
    pub(super) fn for_removal(&self, v2: bool, key: &str) -> String {
        let key = quoted(key);
        match v2 {
            true => format!("{} rm {key}", self.command("2", OF_V2)),
            false => format!("{} del {key}", self.command("3", OF_V3)),
        }
    }

    fn command(&self, api: &str, [ca, cert, key, user]: [&str; 4]) -> String {
        let mut command =
            format!("ETCDCTL_API={api} etcdctl --endpoints={}", quoted(&self.endpoints.join(",")));
        let mut flag = |name: &str, value: Option<Cow<'_, str>>| {
            if let Some(value) = value {
                command.push_str(&format!(" {name}={}", quoted(&value)));
            }
        };
        if let Some(files) = &self.files {
            flag(ca, files.ca.as_ref().map(|file| file.to_string_lossy()));
            flag(cert, files.pair.as_ref().map(|(file, _)| file.to_string_lossy()));
            flag(key, files.pair.as_ref().map(|(_, file)| file.to_string_lossy()));
        }
        flag(user, self.user.as_deref().map(Cow::from));
        command
    }
}

/// `text` as one word of a shell's.
fn quoted(text: &str) -> Cow<'_, str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/:,@%+".contains(&byte);
    match !text.is_empty() && text.bytes().all(plain) {
        true => text.into(),
        false => format!("'{}'", text.replace('\'', r"'\''")).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_flags_that_were_given() {
        let plain = Etcdctl { endpoints: vec!["http://127.0.0.1:2379".into()], files: None, user: None };
        let (put, mk) = plain.for_config("/coreos.com/network/config");
        assert!(
            put.starts_with(
                "ETCDCTL_API=3 etcdctl --endpoints=http://127.0.0.1:2379 put /coreos.com/network/config '{"
            ),
            "{put}"
        );
        assert_eq!(
            mk,
            format!(
                "ETCDCTL_API=2 etcdctl --endpoints=http://127.0.0.1:2379 mk /coreos.com/network/config '{EXAMPLE}'"
            )
        );
        let files = Files { ca: Some("/a b/ca.pem".into()), pair: Some(("/c.pem".into(), "/k.pem".into())) };
        let endpoints = vec!["https://a:2379".into(), "https://[::1]:2379".into()];
        let full = Etcdctl { endpoints, files: Some(files), user: Some("o'neill".into()) };
        let (put, mk) = full.for_config("/my network/config");
        let flags = "--endpoints='https://a:2379,https://[::1]:2379'";
        assert!(
            put.starts_with(&format!("ETCDCTL_API=3 etcdctl {flags} --cacert='/a b/ca.pem' --cert=/c.pem --key=/k.pem --user='o'\\''neill' put '/my network/config' ")),
            "{put}"
        );
        assert_eq!(
            mk,
            format!(
                "ETCDCTL_API=2 etcdctl {flags} --ca-file='/a b/ca.pem' --cert-file=/c.pem --key-file=/k.pem --username='o'\\''neill' mk '/my network/config' '{EXAMPLE}'"
            )
        );
    }
}
