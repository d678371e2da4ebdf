//! Putting a file where a container runtime looks for it, in one step.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::host::replace::{Beside, Step, directory, replace};

/// The most of a CNI configuration that is read, in bytes; those of the API server's ConfigMaps are no larger.
const CONF_LIMIT: u64 = 4 << 20;

/// A file cannot be put in place; what was there is as it was.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file system said no.
    #[error("cannot {doing} {path}: {error}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What came of it.
        error: io::Error,
    },
    /// The runtime would find no network in it.
    #[error("{path} is no CNI configuration: {because}; {remedy}")]
    NotCni {
        /// The file that was to be installed.
        path: PathBuf,
        /// What is wrong with it.
        because: String,
        /// What belongs in there.
        remedy: &'static str,
    },
}

/// Copies `source` to `destination`, with its mode but never writable for others: whoever looks finds the old file or
/// the new one, whole. A running program is replaced like any other file. What goes by a name that container runtimes
/// read (`.conflist`, `.conf`, `.json`) has to be a CNI configuration: with another one no pod would start.
///
/// # Errors
/// What is wrong with the file, or with the file system.
pub fn install(source: &Path, destination: &Path) -> Result<(), InstallError> {
    let io = |doing, path: &Path| {
        let path = path.to_owned();
        move |error| InstallError::Io { doing, path, error }
    };
    let mut from = File::open(source).map_err(io("read", source))?;
    let mode = from.metadata().map_err(io("examine", source))?.permissions().mode() & 0o755;
    if let Some(form) = Form::of(destination) {
        let mut content = Vec::new();
        (&from).take(CONF_LIMIT).read_to_end(&mut content).map_err(io("read", source))?;
        check(source, form, &content)?;
        from.rewind().map_err(io("read", source))?;
    }
    // A runtime reads only names that end as these do not.
    let beside = Beside { prefix: ".install-", suffix: ".tmp", mode: Some(mode) };
    // Never a whole program in memory: an init container has little.
    let copied = replace(destination, beside, |file| io::copy(&mut from, file).map(drop));
    let directory = directory(destination);
    copied.map_err(|(step, error)| match step {
        Step::Make => io("make a file in", directory)(error),
        Step::Write => io("write a file in", directory)(error),
        Step::Replace => io("replace", destination)(error),
        Step::Sync => io("sync", directory)(error),
    })
}

/// What a runtime reads a file of its directory as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A list of plugins.
    List,
    /// One plugin.
    Single,
}

impl Form {
    /// By the name; `None` for one that runtimes do not read.
    fn of(destination: &Path) -> Option<Self> {
        match destination.extension()?.to_str()? {
            "conflist" => Some(Self::List),
            "conf" | "json" => Some(Self::Single),
            _ => None,
        }
    }
}

fn check(source: &Path, form: Form, content: &[u8]) -> Result<(), InstallError> {
    let refused = |because: String, remedy| InstallError::NotCni { path: source.to_owned(), because, remedy };
    let conf: Value = serde_json::from_slice(content)
        .map_err(|error| refused(format!("no JSON: {error}"), "correct cni-conf.json"))?;
    let text = |value: &Value, name: &str| value[name].as_str().is_some_and(|text| !text.is_empty());
    if !text(&conf, "name") {
        return Err(refused("it has no name".to_owned(), r#"write "name": "cbr0""#));
    }
    let plugins = conf["plugins"].as_array();
    // Runtimes take a list under the other names as well.
    match plugins {
        None if form == Form::List => {
            Err(refused("it has no plugins".to_owned(), r#"write "plugins": [{"type": "flannel"}]"#))
        }
        None if !text(&conf, "type") => {
            Err(refused("it has neither type nor plugins".to_owned(), r#"write "type": "flannel""#))
        }
        None => Ok(()),
        Some(plugins) if plugins.is_empty() || !plugins.iter().all(|plugin| text(plugin, "type")) => {
            Err(refused(
                "an empty list of plugins, or one without a type".to_owned(),
                r#"write "plugins": [{"type": "flannel"}]"#,
            ))
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, fs::Permissions};

    use super::*;

    const CONFLIST: &str = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel"}]}"#;

    #[test]
    fn replaces_whole_files_and_keeps_their_mode() {
        let dir = tempfile::tempdir().unwrap();
        let (source, destination) = (dir.path().join("flannel"), dir.path().join("bin/flannel"));
        fs::create_dir(dir.path().join("bin")).unwrap();
        fs::write(&source, "new").unwrap();
        fs::set_permissions(&source, Permissions::from_mode(0o777)).unwrap();
        fs::write(&destination, "old").unwrap();
        let old = File::open(&destination).unwrap();
        install(&source, &destination).unwrap();
        assert_eq!(fs::read_to_string(&destination).unwrap(), "new");
        assert_eq!(io::read_to_string(old).unwrap(), "old", "who has it open keeps it");
        assert_eq!(fs::metadata(&destination).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(dir.path().join("bin")).unwrap().count(), 1, "nothing is left beside");
    }

    #[test]
    fn a_link_of_a_config_map_is_followed_at_the_source_and_replaced_at_the_destination() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("data"), CONFLIST).unwrap();
        std::os::unix::fs::symlink("data", at("cni-conf.json")).unwrap();
        fs::write(at("elsewhere"), "kept").unwrap();
        std::os::unix::fs::symlink("elsewhere", at("10-flannel.conflist")).unwrap();
        install(&at("cni-conf.json"), &at("10-flannel.conflist")).unwrap();
        assert!(fs::symlink_metadata(at("10-flannel.conflist")).unwrap().is_file());
        assert_eq!(fs::read_to_string(at("elsewhere")).unwrap(), "kept");
    }

    #[test]
    fn what_no_runtime_can_use_leaves_the_last_good_file() {
        let dir = tempfile::tempdir().unwrap();
        let (source, destination) =
            (dir.path().join("cni-conf.json"), dir.path().join("10-flannel.conflist"));
        fs::write(&source, CONFLIST).unwrap();
        install(&source, &destination).unwrap();
        for (text, part) in [
            ("", "no JSON"),
            ("{", "no JSON"),
            ("[]", "it has no name"),
            (r#"{"name":"cbr0"}"#, "no plugins"),
            (r#"{"name":"cbr0","plugins":[]}"#, "an empty list"),
            (r#"{"name":"cbr0","plugins":[{}]}"#, "without a type"),
            (r#"{"name":"","plugins":[{"type":"flannel"}]}"#, "it has no name"),
        ] {
            fs::write(&source, text).unwrap();
            let error = install(&source, &destination).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("cni-conf.json"), "{text}: {error}");
            assert_eq!(fs::read_to_string(&destination).unwrap(), CONFLIST);
        }
        fs::write(&source, r#"{"name":"cbr0","type":"flannel"}"#).unwrap();
        install(&source, &dir.path().join("10-flannel.conf")).unwrap();
        assert!(install(&source, &destination).is_err(), "a list is expected under this name");
    }

    #[test]
    fn missing_places_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("there");
        fs::write(&there, "").unwrap();
        let error = install(Path::new("/nonexistent"), &there).unwrap_err().to_string();
        assert!(error.contains("cannot read /nonexistent"), "{error}");
        let error = install(&there, Path::new("/nonexistent/bin/flannel")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/bin"), "{error}");
    }
}
