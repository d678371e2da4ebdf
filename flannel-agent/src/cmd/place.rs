//! Which agent a command is about.

use std::path::{Path, PathBuf};

use clap::Args;

use super::Format;
use crate::control::Client;

/// Which agent, and how to print.
#[derive(Clone, Debug, Args)]
pub struct Place {
    /// Subnet file of the agent, which its control socket is beside. Default: the agent's.
    #[arg(long, value_name = "FILE")]
    pub subnet_file: Option<PathBuf>,
    /// Mount point of the BPF file system. Default: the agent's.
    #[arg(long, value_name = "DIR")]
    pub bpffs: Option<PathBuf>,
    /// How to print.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Format,
}

/// What an agent would have that was started with the same flags and variables.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// `--subnet-file`.
    pub subnet_file: PathBuf,
    /// `--bpffs`.
    pub bpffs: PathBuf,
}

impl Place {
    /// The subnet file.
    pub(super) fn subnet_file<'a>(&'a self, defaults: &'a Defaults) -> &'a Path {
        self.subnet_file.as_deref().unwrap_or(&defaults.subnet_file)
    }

    /// Asks its agent.
    pub(super) fn client(&self, defaults: &Defaults) -> Client {
        Client::beside(self.subnet_file(defaults))
    }

    /// The BPF file system, of which the agent says `agent`.
    pub(super) fn bpffs(&self, agent: Option<PathBuf>, defaults: &Defaults) -> PathBuf {
        bpffs(self.bpffs.as_deref(), agent, defaults)
    }
}

/// The BPF file system: as told, as the agent says, or as it would be.
pub(super) fn bpffs(told: Option<&Path>, agent: Option<PathBuf>, defaults: &Defaults) -> PathBuf {
    let agent = agent.filter(|path| !path.as_os_str().is_empty());
    told.map(Path::to_owned).or(agent).unwrap_or_else(|| defaults.bpffs.clone())
}
