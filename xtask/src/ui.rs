//! Progress: a spinner with the last line of output on a terminal, plain lines elsewhere.

use std::{
    io::{BufRead as _, BufReader, IsTerminal as _, Read, Write as _},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// How many lines of a failed command are shown.
const TAIL: usize = 40;

/// How much of a step's name the spinner shows.
const PREFIX: usize = 48;

/// One thing that a task does.
pub(crate) struct Step {
    bar: Option<ProgressBar>,
    name: String,
    started: Instant,
}

impl Step {
    /// Announces the step.
    pub(crate) fn start(name: impl Into<String>) -> Self {
        let name = name.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {prefix} {wide_msg:.dim}");
            let bar = ProgressBar::new_spinner().with_prefix(shortened(&name));
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        if bar.is_none() {
            say(format_args!("{name} ..."));
        }
        Self { bar, name, started: Instant::now() }
    }

    /// Prints something in the middle of the step, as it is.
    pub(crate) fn print(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }

    /// Says something in the middle of the step.
    pub(crate) fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(text)),
            None => note(text),
        }
    }

    /// Ends the step with what came of it.
    pub(crate) fn done(self, result: &str) {
        let took = match self.started.elapsed() {
            took if took < Duration::from_secs(1) => String::new(),
            took => format!(" ({} s)", took.as_secs()),
        };
        match &self.bar {
            Some(bar) => {
                bar.finish_and_clear();
                say(format_args!("✓ {}: {result}{took}", self.name));
            }
            None => say(format_args!("  {result}{took}")),
        }
    }

    /// Shows what is being done just now, where there is a terminal.
    pub(crate) fn show(&self, now: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(now.to_owned());
        }
    }

    /// Runs a command to its end while showing what it says; if it fails, the error holds its last lines.
    pub(crate) fn run(&self, command: &mut Command) -> Result<()> {
        let program = command.get_program().to_string_lossy().into_owned();
        self.run_as(&program, command)
    }

    /// The same for a command that people know by another name than its program's.
    pub(crate) fn run_as(&self, program: &str, command: &mut Command) -> Result<()> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {program}"))?;
        let (sender, lines) = mpsc::channel();
        let readers = [
            child.stdout.take().map(|out| read_lines(out, sender.clone())),
            child.stderr.take().map(|err| read_lines(err, sender.clone())),
        ];
        drop(sender);
        let mut said = Vec::new();
        for line in lines {
            self.show(line.trim());
            said.push(line);
        }
        for reader in readers.into_iter().flatten() {
            // A reader only ends; what it read has arrived.
            let _ = reader.join();
        }
        let status = child.wait().with_context(|| format!("waiting for {program}"))?;
        if !status.success() {
            let tail = said.len().saturating_sub(TAIL);
            bail!("{program} failed ({status}):\n{}", said[tail..].join("\n"));
        }
        Ok(())
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What leaves room for the last line of output beside it.
fn shortened(name: &str) -> String {
    match name.char_indices().nth(PREFIX) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

fn read_lines(from: impl Read + Send + 'static, to: mpsc::Sender<String>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let lines = BufReader::new(from).split(b'\n').map_while(Result::ok);
        for line in lines {
            if to.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    })
}

/// Prints a result on standard output. Whoever closes it early, as `head` does, has seen enough.
pub(crate) fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("cannot print"),
        _ => Ok(()),
    }
}

/// Says a line on standard error. Where that cannot be written there is nobody to tell.
pub(crate) fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Says something that is worth knowing but no failure.
pub(crate) fn note(text: &str) {
    say(format_args!("note: {text}"));
}
