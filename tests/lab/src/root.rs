//! Root directories, for programs whose paths are fixed: a container's, or a node's own.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{Netns, make_dir};

/// What the programs of a root directory are found by.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A directory that is `/` for what is started in it, with this machine's programs and libraries below `/usr`. Its
/// mounts are made anew for each start, in a mount namespace that nobody else is in.
#[derive(Clone, Debug)]
pub struct Root {
    directory: PathBuf,
    mounts: Vec<(PathBuf, String)>,
    /// `/proc/sys` cannot be written.
    sealed: bool,
}

impl Root {
    /// Makes `directory` one; what is there stays.
    pub fn new(directory: PathBuf) -> Result<Self> {
        for made in ["usr", "etc/alternatives", "dev", "proc", "sys"] {
            make_dir(&directory.join(made))?;
        }
        for link in ["bin", "sbin", "lib", "lib64"] {
            let link_path = directory.join(link);
            if fs::symlink_metadata(&link_path).is_err() {
                symlink(format!("usr/{link}"), &link_path)
                    .with_context(|| link_path.display().to_string())?;
            }
        }
        Ok(Self { directory, mounts: Vec::new(), sealed: false })
    }

    /// With `what` of this machine, and what is mounted below it, at `at`.
    pub fn mount(mut self, what: &Path, at: &str) -> Self {
        self.mounts.push((what.to_owned(), at.trim_end_matches('/').to_owned()));
        self
    }

    /// With a `/proc/sys` that cannot be written, as container runtimes have it.
    pub fn sealed(mut self) -> Self {
        self.sealed = true;
        self
    }

    /// Where it is on this machine.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A program and its first arguments that end in starting the command that follows them, with these variables and
    /// no others. It keeps its process id.
    pub fn words(&self, variables: &[(String, String)]) -> Vec<String> {
        let root = self.directory.display();
        let mut script = format!(
            "set -e\nmount --bind /usr {root}/usr\nmount --bind /etc/alternatives {root}/etc/alternatives\n\
             mount --rbind /dev {root}/dev\nmount -t proc proc {root}/proc\n\
             mount -t sysfs -o ro sysfs {root}/sys\n"
        );
        if self.sealed {
            script += &format!(
                "mount --bind {root}/proc/sys {root}/proc/sys\nmount -o remount,bind,ro {root}/proc/sys\n"
            );
        }
        for (what, at) in &self.mounts {
            // A file in place of a directory, or the other way round, fails at the mount.
            let make = if what.is_dir() { "mkdir -p" } else { "touch" };
            script += &format!("{make} {root}{at}\nmount --rbind {} {root}{at}\n", what.display());
        }
        script += &format!("exec chroot {root} /usr/bin/env -i PATH={PATH} \"$@\"\n");
        let unshare = ["unshare", "--mount", "--propagation=private", "sh", "-c", &script, "sh"];
        let variables = variables.iter().map(|(name, value)| format!("{name}={value}"));
        unshare.into_iter().map(str::to_owned).chain(variables).collect()
    }

    /// A command in it and in `netns`.
    pub fn command(
        &self,
        netns: &Netns,
        variables: &[(String, String)],
        words: &[impl AsRef<OsStr>],
    ) -> Result<Command> {
        let before = self.words(variables);
        let (program, arguments) = before.split_first().context("nothing to start")?;
        let mut command = netns.command(program);
        command.args(arguments).args(words);
        Ok(command)
    }
}
