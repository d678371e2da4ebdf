//! `bugreport`: one archive with all that tells how this node stands, and no secret.

mod parts;
mod secrets;

use std::{
    fs::File,
    io::Write,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use clap::Args;
use flate2::{Compression, write::GzEncoder};
use serde::Serialize;
use tokio::runtime;

use super::{CannotLook, Defaults, bpf::enter, output::print, place::bpffs};
use crate::control::Client;
use parts::{Outcome, Part, Sources};
use secrets::Secrets;

/// `flannel-agent bugreport ...`.
#[derive(Debug, Args)]
pub struct BugreportOptions {
    /// Where to write the archive; - for standard output. Default: flannel-bugreport-SECONDS.tar.gz here.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Leave out what takes long or much room: rules, connection tracking, single entries of maps, and the log.
    #[arg(long)]
    pub quick: bool,
    /// Subnet file of the agent, which its control socket is beside. Default: the agent's.
    #[arg(long, value_name = "FILE")]
    pub subnet_file: Option<PathBuf>,
    /// Mount point of the BPF file system. Default: the agent's.
    #[arg(long, value_name = "DIR")]
    pub bpffs: Option<PathBuf>,
    /// File with the log, where no journal has it; repeatable.
    #[arg(long, value_name = "FILE")]
    pub log: Vec<PathBuf>,
    /// Network namespace of the node, by its name in /run/netns.
    #[arg(long, value_name = "NAME")]
    pub netns: Option<String>,
}

/// What stands at the top of the archive.
#[derive(Debug, Serialize)]
struct Contents {
    version: &'static str,
    /// Seconds since 1970.
    written: u64,
    quick: bool,
    /// Each part, and why it is absent where it is.
    parts: Vec<(String, Option<String>)>,
}

/// Runs `bugreport`.
///
/// # Errors
/// [`CannotLook`], where the archive cannot be written. A part that cannot be had is named in the archive.
pub fn run(options: &BugreportOptions, defaults: &Defaults) -> anyhow::Result<ExitCode> {
    write(options, defaults).map_err(CannotLook)?;
    Ok(ExitCode::SUCCESS)
}

fn write(options: &BugreportOptions, defaults: &Defaults) -> anyhow::Result<()> {
    enter(options.netns.clone())?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let path =
        options.file.clone().unwrap_or_else(|| format!("flannel-bugreport-{}.tar.gz", now.as_secs()).into());
    let to_stdout = path.as_os_str() == "-";
    // Before anything is gathered: whoever has no room learns it at once.
    let out: Box<dyn Write> = if to_stdout {
        Box::new(std::io::stdout())
    } else {
        let file = File::options().write(true).create_new(true).open(&path);
        Box::new(file.with_context(|| format!("--file {}", path.display()))?)
    };
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let (secrets, parts) = runtime.block_on(async {
        let subnet_file = options.subnet_file.as_ref().unwrap_or(&defaults.subnet_file);
        let client = Client::beside(subnet_file);
        let snapshot = client.snapshot().await.ok();
        let of_agent = snapshot.as_ref().map(|snapshot| snapshot.agent.bpffs.clone());
        let bpffs = bpffs(options.bpffs.as_deref(), of_agent, defaults);
        let from = Sources { subnet_file, bpffs: &bpffs, logs: &options.log, quick: options.quick };
        let secrets = Secrets::of(snapshot.as_ref().map(|snapshot| snapshot.agent.pid))?;
        Ok::<_, anyhow::Error>((secrets, parts::gather(&from, &client, snapshot).await))
    })?;
    if let Err(error) = archive(out, options, &secrets, &parts, now) {
        if to_stdout {
            return Err(error.context("cannot write the archive to standard output"));
        }
        // Half an archive looks like a whole one.
        let left = match std::fs::remove_file(&path) {
            Ok(()) => "what was written of it is removed".to_owned(),
            Err(error) => format!("what was written of it is still there, for it cannot be removed: {error}"),
        };
        let advice = "give a place with more room by --file, or take --quick";
        return Err(error.context(format!("cannot write {}; {left}; {advice}", path.display())));
    }
    if !to_stdout {
        let absent = parts.iter().filter(|part| matches!(part.outcome, Outcome::Absent(_))).count();
        print(&format!(
            "{}: {} parts, {absent} could not be had (contents.json says why)\n\
             Passwords, keys and tokens are removed. Addresses and names of nodes and interfaces are in it.\n",
            path.display(),
            parts.len()
        ))?;
    }
    Ok(())
}

fn archive(
    out: Box<dyn Write>,
    options: &BugreportOptions,
    secrets: &Secrets,
    parts: &[Part],
    now: Duration,
) -> anyhow::Result<()> {
    let mut archive = tar::Builder::new(GzEncoder::new(out, Compression::default()));
    let mut add = |name: &str, text: &str| -> anyhow::Result<()> {
        let bytes = text.as_bytes();
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(bytes.len())?);
        header.set_mode(0o600);
        header.set_mtime(now.as_secs());
        Ok(archive.append_data(&mut header, format!("flannel-bugreport/{name}"), bytes)?)
    };
    let why = |part: &Part| match &part.outcome {
        Outcome::Text(_) => None,
        Outcome::Absent(why) => Some(secrets.removed_from(why)),
    };
    let contents = Contents {
        version: env!("CARGO_PKG_VERSION"),
        written: now.as_secs(),
        quick: options.quick,
        parts: parts.iter().map(|part| (part.name.clone(), why(part))).collect(),
    };
    add("contents.json", &serde_json::to_string_pretty(&contents)?)?;
    for part in parts {
        if let Outcome::Text(text) = &part.outcome {
            add(&part.name, &secrets.removed_from(text))?;
        }
    }
    let mut out = archive.into_inner()?.finish()?;
    out.flush()?;
    ensure!(!parts.is_empty(), "nothing was gathered");
    Ok(())
}
