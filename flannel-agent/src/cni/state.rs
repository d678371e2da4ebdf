//! What the delegates were given, a file each container in dataDir: the same files as upstream's plugin has, so that
//! either finds what the other left.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder},
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::{
    error::{CniError, Code},
    invocation::is_identifier,
    netconf::NetConf,
    object,
};
use crate::host::replace::{Beside, Step, replace};

/// What is kept of one container.
#[derive(Debug)]
pub(super) enum Saved {
    /// Nothing: it is not known, or its file is gone.
    Nothing,
    /// Something that is no configuration.
    Damaged,
    /// The delegate's configuration, and its text.
    Config(Map<String, Value>, Vec<u8>),
}

/// The file of one container.
#[derive(Debug)]
pub(super) struct State {
    directory: PathBuf,
    path: PathBuf,
}

impl State {
    pub(super) fn of(conf: &NetConf, container: &str) -> Self {
        Self { directory: conf.data_dir.clone(), path: conf.data_dir.join(container) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps `config`: whole or not at all, for root only, also over a loss of power.
    pub(super) fn save(&self, config: &[u8]) -> Result<(), CniError> {
        self.write(config).map_err(|error| self.failed("save", &error))
    }

    fn write(&self, config: &[u8]) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        // Its name begins with a dot, which that of no container does.
        let beside = Beside { prefix: ".flannel-", suffix: "", mode: None };
        let put = || replace(&self.path, beside, |file| file.write_all(config));
        match put() {
            Err((Step::Replace, error)) if error.kind() == io::ErrorKind::IsADirectory => {
                fs::remove_dir(&self.path)?;
                put()
            }
            done => done,
        }
        .map_err(|(_, error)| error)
    }

    /// What was kept.
    pub(super) fn load(&self) -> Result<Saved, CniError> {
        match fs::read(&self.path) {
            Ok(text) => Ok(object(&text).map_or(Saved::Damaged, |config| Saved::Config(config, text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Saved::Nothing),
            // A container runtime makes one for a mount whose source is not there.
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => Ok(Saved::Damaged),
            Err(error) => Err(self.failed("read", &error)),
        }
    }

    /// Forgets the container. Where that fails, the next DEL finds the file once more, which does no harm. A directory
    /// with something in it is not ours to empty.
    pub(super) fn remove(&self) {
        if fs::remove_file(&self.path).is_err_and(|error| error.kind() == io::ErrorKind::IsADirectory) {
            let _ = fs::remove_dir(&self.path);
        }
    }

    fn failed(&self, doing: &str, error: &io::Error) -> CniError {
        let path = self.path.display();
        CniError::new(
            Code::Io,
            format!("dataDir: cannot {doing} the configuration of the delegate in {path}: {error}"),
        )
    }
}

/// Forgets the containers of the network of `conf` that are not among `valid`.
pub(super) fn forget_all_but(conf: &NetConf, valid: &BTreeSet<String>) -> Result<(), CniError> {
    let listing = match fs::read_dir(&conf.data_dir) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            let path = conf.data_dir.display();
            return Err(CniError::new(Code::Io, format!("dataDir: cannot list {path}: {error}")));
        }
    };
    for name in listing.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        if !is_identifier(&name) || valid.contains(&name) {
            continue;
        }
        let state = State::of(conf, &name);
        // The directory may serve several networks.
        if let Ok(Saved::Config(config, _)) = state.load()
            && config.get("name").is_some_and(|name| *name == conf.name)
        {
            state.remove();
        }
    }
    Ok(())
}
