//! Building the workspace's own packages.

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use flannel_ebpf_toolchain::workspace_root;

use crate::failure::{failure, said};

/// Cargo's name of a profile.
#[derive(Clone, Copy)]
pub(crate) enum Profile {
    Dev,
    Release,
}

/// The cargo that started us, at the workspace's root.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
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
    let mut cargo = cargo();
    cargo.args(["build", "--package", "flannel-agent", "--bins"]);
    cargo.arg("--message-format=json-render-diagnostics");
    match profile {
        Profile::Dev => {}
        Profile::Release => drop(cargo.arg("--release")),
    }
    let output = cargo
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo to build the agent")?;
    if !output.status.success() {
        return Err(said(output.status));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    executable(&messages).map(PathBuf::from).ok_or_else(|| {
        failure(
            "cargo built the agent but does not say where",
            "look at the output of `cargo build -p flannel-agent`",
        )
    })
}

/// The agent among the executables of cargo's messages, one JSON object each line.
fn executable(messages: &str) -> Option<&str> {
    let path = |line: &'_ str| -> Option<(usize, usize)> {
        let start = line.find(r#""executable":""#)? + r#""executable":""#.len();
        Some((start, start + line[start..].find('"')?))
    };
    let mut executables =
        messages.lines().filter_map(|line| path(line).map(|(start, end)| &line[start..end]));
    executables.rfind(|file| file.ends_with("/flannel-agent"))
}

#[cfg(test)]
mod tests {
    use super::executable;

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
        assert_eq!(executable(messages), Some("/t/debug/flannel-agent"));
        assert_eq!(executable("{}"), None);
    }
}
