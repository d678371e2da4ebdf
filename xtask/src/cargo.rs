//! Building the workspace's own packages.

use std::{
    env,
    ffi::{OsStr, OsString},
    io::{BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result};
use flannel_ebpf_toolchain::workspace_root;

use crate::{
    failure::{failure, said},
    ui::Step,
};

/// Cargo's name of a profile.
#[derive(Clone, Copy)]
pub(crate) enum Profile {
    Dev,
    Release,
    /// What users download, with debug information.
    Dist,
    /// What fuzzers run: fast, with every check that tests have.
    Fuzz,
}

/// Cargo's own directory for what it makes.
pub(crate) fn target_directory() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace_root().join("target"), PathBuf::from)
}

/// The cargo that started us, at the workspace's root.
pub(crate) fn cargo() -> Command {
    at_root(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// A program that calls cargo, at the workspace's root.
pub(crate) fn at_root(program: impl AsRef<OsStr>) -> Command {
    let mut cargo = Command::new(program);
    cargo.current_dir(workspace_root());
    // `cargo run` tells us about our own package. Build scripts that watch these variables (ring's does)
    // would run again, and all that depends on them be compiled again, after each build without us.
    let ours = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(ours)) {
        cargo.env_remove(name);
    }
    cargo
}

/// Builds the agent, with the CNI plugin beside it, and returns its executable, wherever the user's configuration
/// puts it.
pub(crate) fn build_agent(profile: Profile) -> Result<PathBuf> {
    build(profile, "the agent", &["--package", "flannel-agent", "--bins"])?.executable("flannel-agent")
}

/// What a build has made.
pub(crate) struct Built(String);

/// Builds what `arguments` of `cargo build` name, `what` for people, and shows how far it is.
pub(crate) fn build(profile: Profile, what: &str, arguments: &[&str]) -> Result<Built> {
    build_with(profile, what, arguments, &[])
}

/// The same with variables in cargo's environment.
pub(crate) fn build_with(
    profile: Profile,
    what: &str,
    arguments: &[&str],
    variables: &[(String, OsString)],
) -> Result<Built> {
    let step = Step::start(format!("Building {what}"));
    let mut cargo = cargo();
    cargo.arg("build").args(arguments).arg("--message-format=json-render-diagnostics");
    match profile {
        Profile::Dev => {}
        Profile::Release => drop(cargo.arg("--release")),
        Profile::Dist => drop(cargo.args(["--profile", "dist"])),
        Profile::Fuzz => drop(cargo.args(["--profile", "fuzz"])),
    }
    cargo.envs(variables.iter().map(|(name, value)| (name, value)));
    // Its own bar, which knows how much there is to do.
    cargo.env("CARGO_TERM_PROGRESS_WHEN", "always").env("CARGO_TERM_PROGRESS_WIDTH", "100");
    let mut child = cargo
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let messages = child.stdout.take().map(|mut out| {
        thread::spawn(move || {
            let mut text = Vec::new();
            // What is cut short names no executable.
            let _ = out.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        })
    });
    let diagnostics = child.stderr.take().map(|out| follow(out, &step)).unwrap_or_default();
    let messages = messages.and_then(|reader| reader.join().ok()).unwrap_or_default();
    let status = child.wait().context("waiting for cargo")?;
    if !diagnostics.is_empty() {
        step.print(diagnostics.trim_end());
    }
    if !status.success() {
        return Err(said(status));
    }
    step.done("built");
    Ok(Built(messages))
}

/// Reads what cargo says to its end, and returns what is left without its progress.
fn follow(from: impl Read, step: &Step) -> String {
    let mut kept = String::new();
    for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
        // Where a bar was, its line's end overwrites it.
        for part in String::from_utf8_lossy(&line).split('\r') {
            let part = part.replace("\u{1b}[K", "");
            match part.trim_start().split([' ', '[']).next() {
                Some("Building") => step.show(part.trim()),
                Some(word) if PROGRESS.contains(&word) => step.show(part.trim()),
                _ if part.is_empty() && kept.is_empty() => {}
                _ => {
                    kept.push_str(&part);
                    kept.push('\n');
                }
            }
        }
    }
    kept
}

/// How the lines begin in which cargo tells what it does, not what it thinks of it.
const PROGRESS: [&str; 12] = [
    "Updating",
    "Locking",
    "Adding",
    "Downloading",
    "Downloaded",
    "Blocking",
    "Compiling",
    "Checking",
    "Fresh",
    "Dirty",
    "Finished",
    "Fetch",
];

impl Built {
    /// The executable of this name.
    pub(crate) fn executable(&self, name: &str) -> Result<PathBuf> {
        executable(&self.0, name).map(PathBuf::from).ok_or_else(|| {
            failure(
                format!("cargo built {name} but does not say where"),
                format!("look at the output of `cargo build --bin {name}`"),
            )
        })
    }
}

/// The executable `name` among those of cargo's messages, one JSON object each line.
fn executable<'a>(messages: &'a str, name: &str) -> Option<&'a str> {
    let path = |line: &'a str| -> Option<&'a str> {
        let (_, rest) = line.split_once(r#""executable":""#)?;
        rest.split_once('"').map(|(path, _)| path)
    };
    let mut executables = messages.lines().filter_map(path);
    executables.rfind(|file| Path::new(file).file_name().is_some_and(|last| last == name))
}

#[cfg(test)]
mod tests {
    use super::{executable, follow};
    use crate::ui::Step;

    #[test]
    fn what_the_compiler_says_is_kept_and_progress_is_not() {
        let said = "   Compiling a v1.0.0\r\u{1b}[K    Building [==>   ] 1/3: a\r\u{1b}[Kwarning: unused\n\n --> b.rs\n\
                    \u{1b}[K    Finished `dev` profile\n";
        assert_eq!(follow(said.as_bytes(), &Step::start("a test")), "warning: unused\n\n --> b.rs\n");
    }

    #[test]
    fn executable_is_found_among_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","executable":null,"fresh":true}"#,
            "\n",
            r#"{"reason":"compiler-artifact","executable":"/t/debug/flannel-agent","fresh":true}"#,
            "\n",
            r#"{"reason":"compiler-artifact","executable":"/t/debug/flannel","fresh":true}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(executable(messages, "flannel-agent"), Some("/t/debug/flannel-agent"));
        assert_eq!(executable("{}", "flannel-agent"), None);
    }
}
