//! Running the programs that change rules.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{io::AsyncWriteExt as _, process::Command, time::timeout};

/// How long a program may take. Most of it is for others that hold the lock of the tables.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where systems keep what only root needs; a unit's `PATH` may lack them.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// A program did not do what it was run for.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExecError {
    /// It is not on this machine.
    #[error("{program} is not installed: install the package {package}")]
    Missing {
        /// What was looked for.
        program: String,
        /// What Debian and most others call its package.
        package: &'static str,
    },
    /// It did not run.
    #[error("{program} cannot be run: {source}")]
    NotRun {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It did not end.
    #[error("{program} has not ended within {PATIENCE:?}: perhaps another program holds /run/xtables.lock")]
    TimedOut {
        /// The program.
        program: String,
    },
    /// It ended with an error.
    #[error("{program}: {stderr}")]
    Failed {
        /// The program and its arguments.
        program: String,
        /// What it wrote, in one line.
        stderr: String,
    },
}

/// Runs programs: on the machine, or for tests in memory.
pub(super) trait Exec {
    /// Runs `program` with `input` on its standard input; its standard output.
    fn run(
        &mut self,
        program: &str,
        arguments: &[&str],
        input: &str,
    ) -> impl Future<Output = Result<String, ExecError>> + Send;

    /// Whether there is such a program.
    fn has(&self, program: &str) -> bool;
}

/// The machine's own programs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Machine;

impl Exec for Machine {
    async fn run(&mut self, program: &str, arguments: &[&str], input: &str) -> Result<String, ExecError> {
        let path = find(program).ok_or_else(|| ExecError::Missing {
            program: program.to_owned(),
            package: if program == "nft" { "nftables" } else { "iptables" },
        })?;
        let not_run = |source| ExecError::NotRun { program: program.to_owned(), source };
        let mut child = Command::new(path)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(not_run)?;
        let stdin = child.stdin.take();
        let work = async {
            let write = async {
                if let Some(mut stdin) = stdin {
                    // One that ends without reading all says why on its standard error.
                    let _ = stdin.write_all(input.as_bytes()).await;
                }
            };
            tokio::join!(write, child.wait_with_output()).1
        };
        let output = timeout(PATIENCE, work)
            .await
            .map_err(|_| ExecError::TimedOut { program: program.to_owned() })?
            .map_err(not_run)?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            let stderr = if lines.is_empty() { output.status.to_string() } else { lines.join("; ") };
            let program = [&[program], arguments].concat().join(" ");
            return Err(ExecError::Failed { program, stderr });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn has(&self, program: &str) -> bool {
        find(program).is_some()
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SYSTEM_DIRECTORIES.map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| Path::is_file(candidate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn input_is_read_and_output_returned() {
        let long = "rule\n".repeat(100_000);
        assert_eq!(Machine.run("cat", &[], &long).await.unwrap(), long);
        // One that does not read its input is no worse for it.
        assert_eq!(Machine.run("echo", &["done"], &long).await.unwrap(), "done\n");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_end_is_given_up() {
        let error = Machine.run("sleep", &["1000"], "").await.unwrap_err();
        assert!(error.to_string().contains("xtables.lock"), "{error}");
    }

    #[tokio::test]
    async fn failures_say_what_the_program_said() {
        let error = Machine.run("sh", &["-c", "echo one >&2; echo two >&2; exit 3"], "").await.unwrap_err();
        assert_eq!(error.to_string(), "sh -c echo one >&2; echo two >&2; exit 3: one; two");
        let error = Machine.run("sh", &["-c", "exit 3"], "").await.unwrap_err();
        assert!(error.to_string().ends_with("exit status: 3"), "{error}");
        let error = Machine.run("no-such-program", &[], "").await.unwrap_err();
        assert!(matches!(error, ExecError::Missing { .. }), "{error}");
        assert!(Machine.has("sh") && !Machine.has("no-such-program"));
    }
}
