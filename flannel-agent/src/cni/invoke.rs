//! Running the delegate.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use nix::errno::Errno;
use serde_json::{Map, Value};

use super::{
    error::{CniError, Code},
    invocation::Verb,
};

/// How often a plugin that is just being written is tried again, and how long after.
const BUSY: (usize, Duration) = (5, Duration::from_secs(1));

/// An executable.
#[derive(Debug)]
pub(super) struct Plugin {
    name: String,
    program: PathBuf,
}

impl Plugin {
    /// The plugin that `config` names, in the first of the directories that has it.
    pub(super) fn find(config: &Map<String, Value>, path: &[PathBuf]) -> Result<Self, CniError> {
        Self::named("delegate.type", config.get("type").and_then(Value::as_str).unwrap_or_default(), path)
    }

    /// The plugin of that name, which `field` of the configuration says, in the first of the directories that has it.
    pub(super) fn named(field: &str, name: &str, path: &[PathBuf]) -> Result<Self, CniError> {
        let name = name.to_owned();
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(CniError::new(
                Code::NetworkConfig,
                format!("{field}: {name:?} is no name of a plugin"),
            ));
        }
        let candidates = path.iter().filter(|directory| !directory.as_os_str().is_empty());
        match candidates.map(|directory| directory.join(&name)).find(|file| file.is_file()) {
            Some(program) => Ok(Self { name, program }),
            None => {
                let path: Vec<_> = path.iter().map(|directory| directory.to_string_lossy()).collect();
                Err(CniError::new(
                    Code::Internal,
                    format!("failed to find plugin {name:?} in path [{}]", path.join(" ")),
                )
                .detailed("Debian has the usual ones in containernetworking-plugins"))
            }
        }
    }

    /// Runs it with `config` on standard input and the environment we have; what it writes to standard output. Its
    /// standard error is ours.
    pub(super) fn run(&self, verb: Verb, config: &[u8]) -> Result<Vec<u8>, CniError> {
        let failed = |doing: &str, error: &io::Error| {
            CniError::new(Code::Io, format!("cannot {doing} {}: {error}", self.program.display()))
        };
        let mut child = start(&self.program, verb).map_err(|error| failed("start", &error))?;
        let stdin = child.stdin.take();
        let output = thread::scope(|scope| {
            // Beside reading: neither pipe may fill up while nobody empties it. A plugin that does not read what it
            // is told says why itself.
            scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(config)));
            child.wait_with_output()
        });
        let Output { status, stdout, .. } = output.map_err(|error| failed("wait for", &error))?;
        if status.success() {
            return Ok(stdout);
        }
        Err(CniError::of_delegate(&stdout).unwrap_or_else(|| {
            let said = String::from_utf8_lossy(&stdout);
            let said = crate::values::shorten(said.trim(), 400);
            CniError::new(
                Code::Internal,
                format!("plugin {} failed ({status}) without an error that can be read: {said:?}", self.name),
            )
        }))
    }
}

/// A configuration as plugins are told it.
pub(super) fn render(config: &Map<String, Value>) -> Vec<u8> {
    // Of a map with names for keys this does not fail.
    serde_json::to_vec(config).unwrap_or_default()
}

fn start(program: &Path, verb: Verb) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.env("CNI_COMMAND", verb.name());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let (tries, pause) = BUSY;
    for _ in 1..tries {
        match command.spawn() {
            // Somebody writes to it right now, as `cp` does that installs it.
            Err(error) if error.raw_os_error() == Some(Errno::ETXTBSY as i32) => thread::sleep(pause),
            outcome => return outcome,
        }
    }
    command.spawn()
}
