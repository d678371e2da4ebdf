//! What pages say of flags, reasons and maps comes from the code.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use clap::{Arg, CommandFactory as _};
use flannel_agent::{
    backend::{kind::Support, table::KINDS},
    cli::Cli,
    metrics::METRICS,
};
use flannel_common::{map::PINNED_MAPS, reason::Reason};

use super::{hold, read};

/// The page with what stands between its marks of that name replaced.
fn with(page: &str, name: &str, part: &str) -> Result<String> {
    let [begin, end] = ["begin", "end"].map(|mark| format!("<!-- {mark} generated: {name} -->\n"));
    let text = read(page)?;
    let (before, rest) = text.split_once(&begin).with_context(|| format!("{page} has no {begin}"))?;
    let (_, after) = rest.split_once(&end).with_context(|| format!("{page} has no {end}"))?;
    Ok(format!("{before}{begin}\n{part}\n{end}{after}"))
}

#[test]
fn the_table_of_reasons_is_the_codes() -> Result<()> {
    const PAGE: &str = "flannel-agent/docs/troubleshooting.md";
    let mut table = String::from("| reason | path | meaning |\n|---|---|---|\n");
    for reason in Reason::ALL {
        let (label, class, meaning) = (reason.label(), reason.class().label(), reason.sentence());
        writeln!(table, "| `{label}` | {class} | {} |", in_a_cell(meaning))?;
    }
    hold(PAGE, &with(PAGE, "reasons", &table)?)
}

#[test]
fn the_table_of_metrics_is_the_codes() -> Result<()> {
    const PAGE: &str = "flannel-agent/docs/metrics.md";
    let mut table = String::from("| metric | kind | labels | meaning |\n|---|---|---|---|\n");
    for metric in METRICS {
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let asked = if metric.of_peers { " With `--metrics-peers`." } else { "" };
        let (name, kind, help) = (metric.name(), metric.kind.label(), in_a_cell(metric.help));
        writeln!(table, "| `{name}` | {kind} | {} | {help}{asked} |", labels.join(", "))?;
    }
    hold(PAGE, &with(PAGE, "metrics", &table)?)
}

#[test]
fn the_table_of_flags_is_the_codes() -> Result<()> {
    const PAGE: &str = "flannel-agent/docs/flags.md";
    let command = Cli::command();
    let mut headings = Vec::new();
    for flag in command.get_arguments() {
        let heading = flag.get_help_heading().unwrap_or("General");
        if !headings.contains(&heading) && flag.get_help_heading().is_some() {
            headings.push(heading);
        }
    }
    let mut text = String::new();
    for heading in headings {
        writeln!(text, "## {heading}\n\n| flag | default | what it does |\n|---|---|---|")?;
        for flag in command.get_arguments().filter(|flag| flag.get_help_heading() == Some(heading)) {
            writeln!(text, "{}", row(flag)?)?;
        }
        writeln!(text)?;
    }
    let mut contents = String::new();
    for heading in text.lines().filter_map(|line| line.strip_prefix("## ")) {
        writeln!(contents, "- [{heading}](#{})", heading.to_lowercase())?;
    }
    hold(PAGE, &with(PAGE, "flags", &format!("{contents}\n{}", text.trim_end()))?)
}

#[test]
fn the_table_of_backends_is_the_codes() -> Result<()> {
    const PAGE: &str = "flannel-agent/docs/running.md";
    let mut table = String::from("| backend | how packets reach other nodes\' pods |\n|---|---|\n");
    for kind in KINDS {
        let what = match kind.support {
            Support::Built(_) => kind.what.to_owned(),
            Support::Refused(instead) => format!("{}: not built, {}", kind.what, instead.replace('"', "`")),
        };
        writeln!(table, "| `{}` | {} |", kind.name, in_a_cell(&what))?;
    }
    hold(PAGE, &with(PAGE, "backends", &table)?)
}

fn row(flag: &Arg) -> Result<String> {
    let name = flag.get_long().context("a flag has a name")?;
    let values = flag.get_value_names().unwrap_or_default().join(" ");
    let shown =
        if values == "BOOL" { format!("`--{name}`") } else { format!("`--{name}` {}", in_a_cell(&values)) };
    let variable = format!("`FLANNELD_{}`", name.to_uppercase().replace('-', "_"));
    let defaults: Vec<_> =
        flag.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
    let mut help = flag.get_help().map(ToString::to_string).unwrap_or_default();
    let possible = flag.get_possible_values();
    for value in possible.iter().filter(|_| values != "BOOL") {
        let meaning = value.get_help().map(ToString::to_string).unwrap_or_default();
        write!(help, "<br>`{}`: {meaning}", value.get_name())?;
    }
    Ok(format!("| {shown}<br>{variable} | {} | {} |", defaults.join(" "), in_a_cell(&help)))
}

fn in_a_cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// Whoever looks at a map finds it on the page.
#[test]
fn every_pinned_map_is_explained() -> Result<()> {
    let page = read("flannel-agent/docs/troubleshooting.md")?;
    let (_, chapter) = page.split_once("\n## The maps\n").context("the chapter")?;
    let chapter = chapter.split("\n## ").next().unwrap_or_default();
    let missing: Vec<_> = PINNED_MAPS.iter().filter(|map| !chapter.contains(&format!("`{map}`"))).collect();
    ensure!(missing.is_empty(), "not in the table of maps: {missing:?}");
    Ok(())
}
