//! Where programs and maps outlive the agent.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use flannel_common::{
    map::{LAYOUT_VERSION, PIN_DIRECTORY},
    path::Hook,
};
use nix::{
    errno::Errno,
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::mount_place::mount_advice;

/// A directory of pins that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The path is not on a bpffs.
    #[error("{} is not on a BPF file system, so programs could not outlive this process: {}", .0.display(), mount_advice(.0))]
    NotBpffs(PathBuf),
    /// The file system refused.
    #[error("cannot {action} {path}: {error}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What came of it.
        error: io::Error,
    },
}

/// The pins under one bpffs: `flannel/v4/maps/<name>` and
/// `flannel/v4/links/<interface>/<program>`, the dots of the interface's name written as colons. A directory
/// `flannel/v4/clsact/<index>` notes that the clsact qdisc of that interface was made by an agent.
#[derive(Clone, Debug)]
pub struct Pins {
    /// Directory of one version of the layout.
    pub(super) root: PathBuf,
}

impl Pins {
    /// The pins under the bpffs mounted at `bpffs`.
    ///
    /// # Errors
    /// When no bpffs is mounted there.
    pub fn under(bpffs: &Path) -> Result<Self, PinError> {
        match statfs(bpffs) {
            Ok(kind) if kind.filesystem_type() == BPF_FS_MAGIC => {}
            Ok(_) | Err(Errno::ENOENT) => return Err(PinError::NotBpffs(bpffs.to_owned())),
            Err(error) => {
                let (action, path) = ("examine", bpffs.to_owned());
                return Err(PinError::Io { action, path, error: error.into() });
            }
        }
        Ok(Self { root: bpffs.join(PIN_DIRECTORY).join(LAYOUT_VERSION) })
    }

    /// Directory of the maps.
    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// Pin of the map `name`.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Directory of the links, one subdirectory an interface.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Directory of the links of `interface`. A bpffs takes no dots in names (kernel/bpf/inode.c,
    /// `bpf_lookup`), and an interface's name has no colon (`dev_valid_name`), so that stands for the dot.
    fn interface(&self, interface: &str) -> PathBuf {
        self.links().join(interface.replace('.', ":"))
    }

    /// Pin of the link at `hook` of `interface`.
    pub fn link(&self, interface: &str, hook: Hook) -> PathBuf {
        self.interface(interface).join(hook.program())
    }

    /// Every pinned link there is, as interface name and hook; files of other names are not ours.
    ///
    /// # Errors
    /// When a directory cannot be read. One that is absent is empty.
    pub fn pinned_links(&self) -> Result<Vec<(String, Hook)>, PinError> {
        let mut found = Vec::new();
        for directory in entries(&self.links())? {
            let interface = directory.replace(':', ".");
            for name in entries(&self.links().join(&directory))? {
                if let Some(hook) = Hook::ALL.into_iter().find(|hook| hook.program() == name) {
                    found.push((interface.clone(), hook));
                }
            }
        }
        Ok(found)
    }

    /// Directory of the notes about clsact qdiscs.
    fn clsacts(&self) -> PathBuf {
        self.root.join("clsact")
    }

    fn clsact(&self, ifindex: u32) -> PathBuf {
        self.clsacts().join(ifindex.to_string())
    }

    /// Notes that the clsact qdisc of an interface was made here: the kernel does not say by whom.
    pub(super) fn note_clsact(&self, ifindex: u32) -> Result<(), PinError> {
        Self::make(&self.clsact(ifindex))
    }

    /// The interfaces it was noted of.
    pub(super) fn noted_clsacts(&self) -> Result<Vec<u32>, PinError> {
        Ok(entries(&self.clsacts())?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Removes the note.
    pub(super) fn forget_clsact(&self, ifindex: u32) -> Result<(), PinError> {
        let path = self.clsact(ifindex);
        match fs::remove_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(PinError::Io { action: "remove", path, error })
            }
            _ => Ok(()),
        }
    }

    /// Makes the directory `path` and those above it, for root only.
    pub(super) fn make(path: &Path) -> Result<(), PinError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| PinError::Io {
            action: "create",
            path: path.to_owned(),
            error,
        })
    }

    /// Removes the pin of a link, and its interface's directory when that was the last.
    pub(super) fn remove_link(&self, interface: &str, hook: Hook) -> Result<(), PinError> {
        remove(&self.link(interface, hook))?;
        // A directory with other pins in it stays.
        let _ = fs::remove_dir(self.interface(interface));
        Ok(())
    }

    /// Removes every pin: the programs are detached as their links go, then the maps go.
    ///
    /// # Errors
    /// When a pin cannot be removed; what went before it is gone.
    pub fn remove_all(&self) -> Result<(), PinError> {
        for (interface, hook) in self.pinned_links()? {
            self.remove_link(&interface, hook)?;
        }
        for directory in entries(&self.links())? {
            // One with a file that is not ours stays.
            let _ = fs::remove_dir(self.links().join(directory));
        }
        for name in entries(&self.maps())? {
            remove(&self.map(&name))?;
        }
        for directory in [self.links(), self.clsacts(), self.maps(), self.root.clone()] {
            let _ = fs::remove_dir(directory);
        }
        if let Some(parent) = self.root.parent() {
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }
}

/// Names in `directory`, sorted; none when it is absent.
pub(super) fn entries(directory: &Path) -> Result<Vec<String>, PinError> {
    let failed = |error| PinError::Io { action: "list", path: directory.to_owned(), error };
    let listing = match fs::read_dir(directory) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in listing {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Removes a file; one that is absent is gone already.
pub(super) fn remove(path: &Path) -> Result<(), PinError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(PinError::Io { action: "remove", path: path.to_owned(), error })
        }
        _ => Ok(()),
    }
}
