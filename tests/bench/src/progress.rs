//! What is going on, on stderr: a spinner on a terminal, a line per step elsewhere.

use std::{
    cell::Cell,
    io::{IsTerminal as _, stderr},
    time::{Duration, Instant},
};

use anyhow::Result;
use flannel_lab::output::say;
use indicatif::{ProgressBar, ProgressStyle};

/// Between two lines of one step where there is no terminal.
const LINE: Duration = Duration::from_secs(20);

/// Shows steps as they go.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    terminal: bool,
}

impl Progress {
    /// On a terminal a spinner, else plain lines.
    pub fn new() -> Self {
        Self { terminal: stderr().is_terminal() }
    }

    /// Runs `work` as one step called `what`.
    pub fn step<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.follow(what, |_| work())
    }

    /// Like [`Progress::step`], with a function that shows what the step is doing just now.
    pub fn follow<T>(&self, what: &str, work: impl FnOnce(&dyn Fn(&str)) -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let bar = self.terminal.then(|| spinner(what));
        if bar.is_none() {
            say(format_args!("... {what}"));
        }
        let last = Cell::new(start);
        let outcome = work(&|now| match &bar {
            Some(bar) => bar.set_message(format!("{what}: {now}")),
            None if last.get().elapsed() < LINE => {}
            None => {
                last.set(Instant::now());
                say(format_args!("... {what}: {now}"));
            }
        });
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let mark = if outcome.is_ok() { "ok " } else { "NO " };
        say(format_args!("{mark} {what} ({:.1} s)", start.elapsed().as_secs_f64()));
        outcome
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

fn spinner(what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} ({elapsed}) {wide_msg}");
    let bar = ProgressBar::new_spinner().with_message(what.to_owned());
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
