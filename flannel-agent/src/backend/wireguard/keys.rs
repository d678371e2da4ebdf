//! The keys of this node.

use std::{env, fmt, fs, io, path::PathBuf};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::{
    backend::BackendError,
    host::replace::{Beside, directory, replace},
    netlink::wireguard::Key,
};

/// Names another file, as with upstream's.
const VARIABLE: &str = "WIREGUARD_KEY_FILE";
/// Upstream's file.
const FILE: &str = "/run/flannel/wgkey";

/// A private key. It is shown to nobody.
#[derive(Clone)]
pub(super) struct PrivateKey(Key);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(a secret)")
    }
}

impl PrivateKey {
    /// That of this node: the one in the file, or a new one that is written there.
    pub(super) fn of_node() -> Result<Self, BackendError> {
        Self::in_file(&env::var_os(VARIABLE).map_or_else(|| PathBuf::from(FILE), PathBuf::from))
    }

    fn in_file(path: &PathBuf) -> Result<Self, BackendError> {
        let failed = |doing: &str, error: io::Error| {
            BackendError::Other(format!(
                "the private key of WireGuard: cannot {doing} {}: {error}; {VARIABLE} names another file",
                path.display()
            ))
        };
        match fs::read_to_string(path) {
            Ok(text) => match key(text.trim()) {
                Some(key) => Ok(Self(key)),
                None => Err(BackendError::Other(format!(
                    "{} holds no private key of WireGuard: 32 bytes in base64, as `wg genkey` makes them; delete it to \
                     have another made",
                    path.display()
                ))),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = Self::random();
                fs::create_dir_all(directory(path))
                    .map_err(|error| failed("make the directory of", error))?;
                let beside = Beside { prefix: ".wgkey", suffix: ".new", mode: Some(0o400) };
                let written = replace(path, beside, |file| {
                    io::Write::write_all(file, BASE64_STANDARD.encode(key.0).as_bytes())
                });
                written.map_err(|(_, error)| failed("write", error))?;
                Ok(key)
            }
            Err(error) => Err(failed("read", error)),
        }
    }

    /// A new one, as `wg genkey` makes them.
    fn random() -> Self {
        let mut key: Key = rand::random();
        key[0] &= 248;
        key[31] = key[31] & 127 | 64;
        Self(key)
    }

    /// For the kernel.
    pub(super) fn bytes(&self) -> Key {
        self.0
    }

    /// What other nodes know us by.
    pub(super) fn public(&self) -> Key {
        PublicKey::from(&StaticSecret::from(self.0)).to_bytes()
    }
}

/// A key as it is written.
pub(super) fn key(text: &str) -> Option<Key> {
    BASE64_STANDARD.decode(text).ok()?.try_into().ok()
}

/// A key in writing.
pub(super) fn text(key: &Key) -> String {
    BASE64_STANDARD.encode(key)
}

/// A key made of one number.
#[cfg(test)]
pub(super) fn tests_key(n: u8) -> PrivateKey {
    PrivateKey([n; 32])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// As `wg pubkey` has it.
    #[test]
    fn a_public_key_is_that_of_its_private_key() {
        assert_eq!(text(&tests_key(7).public()), "E75P6uryBMf9M1j8nAByGIHRdCeBKCJ+xnTzf3/pe20=");
    }

    #[test]
    fn a_key_outlasts_the_process_and_is_readable_by_root_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("flannel/wgkey");
        let first = PrivateKey::in_file(&path).unwrap();
        assert_eq!(PrivateKey::in_file(&path).unwrap().bytes(), first.bytes());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o400);
        assert_eq!(
            fs::read_to_string(&path).unwrap().len(),
            44,
            "base64 and nothing else, which upstream reads"
        );
        assert_eq!((first.bytes()[0] & 7, first.bytes()[31] & 192), (0, 64));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "garbage").unwrap();
        let error = PrivateKey::in_file(&path).unwrap_err().to_string();
        assert!(error.contains("holds no private key") && error.contains("delete it"), "{error}");
    }
}
