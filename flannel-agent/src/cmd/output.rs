//! How commands print: a table for people, JSON or YAML for programs, once or again and again.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use comfy_table::{Cell, Color, ContentArrangement, Table, presets::NOTHING};
use serde::Serialize;

use super::{Health, value::whole};
use crate::telemetry::{output, visible};
pub(super) use crate::values::span;

/// So wide is what is not printed on a terminal, and nothing is wider.
const WIDTH: u16 = 100;

/// Home, and then all below is cleared: the screen does not flicker.
pub(super) const CLEAR: &str = "\u{1b}[H\u{1b}[J";

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table for people.
    Table,
    /// JSON for programs.
    Json,
    /// YAML, the same.
    Yaml,
}

impl Format {
    /// `found` in this format; `render` makes the text for people.
    pub(super) fn text<T: Serialize>(
        self,
        found: &T,
        render: impl Fn(&T) -> String,
    ) -> anyhow::Result<String> {
        Ok(match self {
            Self::Table => render(found),
            Self::Json => format!("{}\n", serde_json::to_string(found)?),
            Self::Yaml => format!("---\n{}", serde_saphyr::to_string(found)?),
        })
    }
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, Args)]
pub struct Watch {
    /// Print again every so many seconds until interrupted, 1 to 3600.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2",
          value_parser = whole::<u64>("seconds", 1..=3600))]
    pub watch: Option<u64>,
}

/// How good what a word says is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// As it should be.
    Good,
    /// To be looked at.
    Notable,
    /// Wrong.
    Bad,
}

/// Whether colours are wanted: on a terminal whose owner does not mind.
pub(super) fn colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A cell in the colour of `tone`.
pub(super) fn toned(text: &str, tone: Tone) -> Cell {
    Cell::new(text).fg(match tone {
        Tone::Good => Color::Green,
        Tone::Notable => Color::Yellow,
        Tone::Bad => Color::Red,
    })
}

/// A table without lines, as wide as fits.
pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    if !colours() {
        table.force_no_tty();
    }
    if !header.is_empty() {
        table.set_header(header.iter().map(|name| name.to_uppercase()));
    }
    table
}

/// The text of a table without what only fills its last column up.
pub(super) fn lines(table: &Table) -> String {
    let mut text = String::new();
    for line in table.trim_fmt().lines() {
        text.push_str(line.strip_prefix(' ').unwrap_or(line).trim_end());
        text.push('\n');
    }
    text
}

/// A sentence at the width of everything, its further lines indented.
pub(super) fn wrapped(text: &str, indent: usize) -> String {
    let text = visible(&text);
    let mut all = String::new();
    let mut column = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > usize::from(WIDTH) {
            all.push('\n');
            all.push_str(&" ".repeat(indent));
            column = indent;
        } else if column > 0 {
            all.push(' ');
            column += 1;
        }
        all.push_str(word);
        column += length;
    }
    all
}

/// Prints what `look` finds, as `format` says, once or as `watch` says; how the last look went. `render` makes the text
/// for people.
pub(super) async fn show<T: Serialize>(
    format: Format,
    watch: Watch,
    mut look: impl AsyncFnMut() -> anyhow::Result<(T, Health)>,
    render: impl Fn(&T) -> String,
) -> anyhow::Result<Health> {
    loop {
        let (found, health) = look().await?;
        let text = format.text(&found, &render)?;
        let again = format == Format::Table && watch.watch.is_some() && io::stdout().is_terminal();
        let before = if again { CLEAR } else { "" };
        if !print(&format!("{before}{text}"))? {
            return Ok(health);
        }
        let Some(seconds) = watch.watch else { return Ok(health) };
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

/// Prints; whether anybody reads on. Whoever does not has seen enough: `flannel-agent status --watch | head`.
///
/// # Errors
/// When it cannot be written.
pub(super) fn print(text: &str) -> anyhow::Result<bool> {
    output::print(text).context("cannot write to standard output")
}

/// Lines for as long as somebody reads, up to a number.
pub(super) struct Lines {
    /// How many more; `None` for any number.
    pub(super) left: Option<u64>,
}

impl Lines {
    /// Prints a line; whether there may be another one.
    ///
    /// # Errors
    /// As [`print`].
    pub(super) fn print(&mut self, line: &str) -> anyhow::Result<bool> {
        if !print(&format!("{line}\n"))? {
            return Ok(false);
        }
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(1);
        }
        Ok(self.left != Some(0))
    }
}

/// With a prefix of thousands.
pub(super) fn number(value: f64) -> String {
    match value {
        value if value >= 1e9 => format!("{:.2} G", value / 1e9),
        value if value >= 1e6 => format!("{:.2} M", value / 1e6),
        value if value >= 1e3 => format!("{:.1} k", value / 1e3),
        value => format!("{value:.0}"),
    }
}

/// Runs an inquiry in a runtime of its own.
pub(super) fn run<T>(inquiry: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(inquiry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_short() {
        let text = wrapped(&"word ".repeat(50), 4);
        assert!(text.lines().count() > 2 && text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert!(text.lines().skip(1).all(|line| line.starts_with("    word")));
        assert_eq!(wrapped("a\u{1b}[2Jb", 0), "a\\u{1b}[2Jb", "what others wrote moves no cursor");
    }
}
