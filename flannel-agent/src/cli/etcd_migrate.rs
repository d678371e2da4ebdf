//! `etcd-migrate`: its options.

use std::ffi::OsString;

use clap::Args;

use super::EtcdFlags;
use crate::cmd::{bpf::Output, etcd_migrate::Task};

/// Options of `flannel-agent etcd-migrate`.
#[derive(Clone, Debug, Args)]
#[command(args_override_self = true)]
pub struct EtcdMigrateOptions {
    /// Show what is in both stores and what would be done, and write nothing.
    #[arg(long, conflicts_with_all = ["finish", "undo"])]
    pub dry_run: bool,
    /// Remove what is in the v2 store, after every node has moved.
    #[arg(long, conflicts_with = "undo")]
    pub finish: bool,
    /// With --finish: also if nodes that may be gone, or that have reservations, are still in v2.
    #[arg(long, requires = "finish")]
    pub force: bool,
    /// Remove the copies from the v3 store, while every node is still in v2, or is there again.
    #[arg(long)]
    pub undo: bool,
    /// Endpoints of another etcd whose v3 store is to have the leases, reached by the same certificates and user.
    /// Default: the etcd of --etcd-endpoints.
    #[arg(long, value_name = "URLS")]
    pub to_etcd_endpoints: Option<String>,
    /// How to print what --dry-run shows.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
    /// Where the v2 store is.
    #[command(flatten)]
    pub etcd: EtcdFlags,
}

impl EtcdMigrateOptions {
    /// Its name on the command line.
    pub(super) const NAME: &str = "etcd-migrate";

    /// What is to be done.
    pub fn task(&self) -> Task {
        match self {
            Self { dry_run: true, output, .. } => Task::Look(*output),
            Self { finish: true, force, .. } => Task::Finish { force: *force },
            Self { undo: true, .. } => Task::Undo,
            _ => Task::KeepInStep,
        }
    }
}

/// The words of a command line with this subcommand: what is said of etcd before it, or by variables, is said to it.
pub(super) fn words(given: impl Iterator<Item = OsString>, words: Vec<OsString>) -> Vec<OsString> {
    let of_etcd = |word: &OsString| word.to_string_lossy().starts_with("--etcd-");
    let (etcd, before): (Vec<_>, Vec<_>) = given.partition(of_etcd);
    let mut words = words.into_iter();
    before.into_iter().chain(words.next()).chain(etcd).chain(words).collect()
}
