//! `build-and-load`: build the agent and let it load the programs it carries.

use std::{os::unix::process::CommandExt as _, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use crate::{
    cargo::{Profile, build_agent},
    host, setup,
};

/// Options of `build-and-load`, most of them handed on to the agent's `bpf load` and `bpf unload`.
#[derive(Args)]
pub(crate) struct Options {
    /// The BPF file system under which programs and maps are pinned
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
    /// The named network namespace of the interface
    #[arg(long, value_name = "NAME")]
    netns: Option<String>,
    /// Attach to this interface; without it the programs are only loaded and pinned
    #[arg(long, value_name = "IF")]
    interface: Option<String>,
    /// Where on the interface; by default, where the program belongs
    #[arg(long, value_enum, requires = "interface")]
    hook: Option<Hook>,
    /// Only this program; may be repeated
    #[arg(long = "program", value_name = "NAME")]
    programs: Vec<String>,
    /// How to print what was loaded
    #[arg(short, long, value_enum)]
    output: Option<Output>,
    /// Detach and unpin instead
    #[arg(long)]
    unload: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Hook {
    Ingress,
    Egress,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Json,
}

/// Becomes the agent, so that its output and exit status are the task's.
pub(crate) fn run(options: &Options) -> Result<()> {
    host::require_root("build-and-load", "loading programs into the kernel is root's")?;
    setup::ensure(setup::Scope::Build)?;
    let agent = build_agent(Profile::Release)?;
    let error = Command::new(&agent).args(arguments(options)).exec();
    Err(error).with_context(|| format!("cannot run {}", agent.display()))
}

fn arguments(options: &Options) -> Vec<std::ffi::OsString> {
    let mut arguments: Vec<std::ffi::OsString> = vec!["bpf".into()];
    arguments.push(if options.unload { "unload" } else { "load" }.into());
    let mut option = |name: &str, value: &std::ffi::OsStr| {
        arguments.push(name.into());
        arguments.push(value.to_owned());
    };
    option("--bpffs", options.bpffs.as_os_str());
    if let Some(netns) = &options.netns {
        option("--netns", netns.as_ref());
    }
    if let Some(interface) = &options.interface {
        option("--interface", interface.as_ref());
    }
    match options.hook {
        Some(Hook::Ingress) => option("--hook", "ingress".as_ref()),
        Some(Hook::Egress) => option("--hook", "egress".as_ref()),
        None => {}
    }
    for program in &options.programs {
        option("--program", program.as_ref());
    }
    match options.output {
        Some(Output::Json) => option("-o", "json".as_ref()),
        None => {}
    }
    arguments
}
