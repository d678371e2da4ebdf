//! One network namespace.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::command::{run, run_with, tool};

/// Where `ip netns` keeps its handles.
pub(crate) const DIRECTORY: &str = "/run/netns";

/// A named network namespace, as `ip netns` makes them, so that a person can enter it by name.
///
/// A handle only: the [`super::Lab`] that made it removes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    name: String,
}

impl Netns {
    pub(crate) fn create(name: String) -> Result<Self> {
        run(tool("ip").args(["netns", "add", &name]))?;
        let netns = Self { name };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// The namespace that the process `pid` is in, under a name of ours.
    pub(crate) fn of_process(name: String, pid: u32) -> Result<Self> {
        run(tool("ip").args(["netns", "attach", &name, &pid.to_string()]))?;
        Ok(Self { name })
    }

    /// Its name for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// A command that will run in here, with a `/sys` that shows this namespace. The process id of the
    /// child is that of `program`.
    pub fn command(&self, program: &str) -> Command {
        let mut command = tool("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs a program in here; its standard output.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        run(self.command(program).args(args))
    }

    /// `ip -n <name> <words>`; its standard output.
    pub fn ip(&self, words: &str) -> Result<String> {
        run(tool("ip").args(["-n", &self.name]).args(words.split_whitespace()))
    }

    /// `bridge -n <name> <words>`; its standard output.
    pub fn bridge(&self, words: &str) -> Result<String> {
        run(tool("bridge").args(["-n", &self.name]).args(words.split_whitespace()))
    }

    /// Several `ip` commands, one a line, in one process. Stops at the first that fails.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        let mut command = tool("ip");
        command.args(["-n", &self.name, "-batch", "-"]);
        run_with(&mut command, lines, Duration::from_secs(30)).with_context(|| lines.to_owned())?;
        Ok(())
    }

    /// Sets a sysctl given as a path below `/proc/sys`, e.g. `net/ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.inside(|| {
            fs::write(&path, value).with_context(|| format!("write {value} to {}", path.display()))
        })
    }

    /// What a sysctl is, given as in [`Netns::sysctl`].
    pub fn read_sysctl(&self, key: &str) -> Result<String> {
        let path = Path::new("/proc/sys").join(key);
        let text =
            self.inside(|| fs::read_to_string(&path).with_context(|| format!("read {}", path.display())))?;
        Ok(text.trim().to_owned())
    }

    /// Runs `work` on a thread that is in here. Sockets it opens stay in here, whoever uses them.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let path = self.path();
                let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
                setns(&file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", self.name))?;
                work()
            });
            thread.join().map_err(|_| anyhow!("panicked inside {}", self.name))?
        })
        .with_context(|| format!("in namespace {}", self.name))
    }
}
