//! Running other programs: to their end with a bound on time, or in the background with a log.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Where Debian keeps what only root needs; `su` leaves them out of `PATH`.
pub(crate) const SYSTEM_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];

/// How long a program that only configures something may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A command that finds `program` also where only root's `PATH` points, and so does whatever it starts.
pub fn tool(program: &str) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(SYSTEM_DIRECTORIES.map(PathBuf::from));
    if let Ok(path) = std::env::join_paths(directories) {
        command.env("PATH", path);
    }
    command
}

/// Runs `command` to its end; its standard output, or an error with its standard error.
pub fn run(command: &mut Command) -> Result<String> {
    run_with(command, "", PATIENCE)
}

/// Like [`run`], with `input` on standard input and a bound of `timeout`, after which the program is killed.
pub fn run_with(command: &mut Command, input: &str, timeout: Duration) -> Result<String> {
    let shown = show(command);
    let output = collect(command, input, timeout).with_context(|| shown.clone())?;
    if !output.status.success() {
        bail!(
            "{shown}: {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim(),
            String::from_utf8_lossy(&output.stdout).trim()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("{shown}: output is not UTF-8"))
}

/// `command` as one would type it.
pub fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn collect(command: &mut Command, input: &str, timeout: Duration) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("not started")?;
    let stdin = child.stdin.take();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        // Each pipe has a thread of its own: a full one must not stop the others.
        scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(input.as_bytes())));
        let stdout = scope.spawn(move || drain(stdout));
        let stderr = scope.spawn(move || drain(stderr));
        let status = wait(&mut child, timeout)?;
        if status.is_none() {
            child.kill().context("not killed")?;
        }
        let ended = child.wait().context("not waited for")?;
        let stdout = stdout.join().unwrap_or_default();
        let stderr = stderr.join().unwrap_or_default();
        if status.is_none() {
            bail!("did not end within {timeout:?}: {}", String::from_utf8_lossy(&stderr).trim());
        }
        Ok(Output { status: ended, stdout, stderr })
    })
}

fn drain(pipe: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // A broken pipe ends the output; what came before it still counts.
        let _ = pipe.read_to_end(&mut bytes);
    }
    bytes
}

/// Waits up to `timeout` for `child` to end.
fn wait(child: &mut Child, timeout: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait().context("not waited for")? {
            return Ok(Some(status));
        }
        if start.elapsed() >= timeout {
            return Ok(None);
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// A program in the background. Killed, by its id, when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    shown: String,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`; what it writes is appended to the file `log`.
    pub fn spawn(command: &mut Command, log: &Path) -> Result<Self> {
        let shown = show(command);
        let mut file = append(log)?;
        writeln!(file, "# {shown}").with_context(|| format!("write {}", log.display()))?;
        let errors = file.try_clone().with_context(|| format!("open {}", log.display()))?;
        // A group of its own: an interrupt typed at a terminal is for the lab's owner to act on.
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("start {shown}"))?;
        Ok(Self { child, shown, log: log.to_owned() })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// File its output goes to.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// All it has written, with what earlier runs wrote to the same file.
    pub fn log(&self) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut file) = File::open(&self.log) {
            let _ = file.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Fails, with the end of the log, if it is no longer running.
    pub fn check_running(&mut self) -> Result<()> {
        match self.child.try_wait().context("not waited for")? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}:\n{}", self.shown, last_lines(&self.log(), 15)),
        }
    }

    /// SIGKILL; returns when it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill {}", self.shown))?;
        self.child.wait().with_context(|| format!("wait for {}", self.shown))?;
        Ok(())
    }

    /// Sends `signal` and waits up to `timeout` for the end.
    pub fn signal(&mut self, signal: Signal, timeout: Duration) -> Result<ExitStatus> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).context("process id")?);
        kill(pid, signal).with_context(|| format!("{signal} to {}", self.shown))?;
        self.wait(timeout)?.with_context(|| {
            format!(
                "{} did not end within {timeout:?} of {signal}:\n{}",
                self.shown,
                last_lines(&self.log(), 15)
            )
        })
    }

    /// Waits up to `timeout` for it to end by itself.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<ExitStatus>> {
        wait(&mut self.child, timeout)
    }

    /// Leaves it running: dropping no longer kills it.
    pub(crate) fn release(self) {
        std::mem::forget(self);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn append(path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.with_context(|| format!("open {}", path.display()))
}

/// The last `count` lines of `text`.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
