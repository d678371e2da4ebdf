//! The figures as a picture: bars for each figure, the bare network and stock flannel as lines through them.
//!
//! Its colours are of middle lightness, so that it can be read on white and on black.

use std::fmt::Write as _;

use super::{Case, Figure, Mode, Report, Scenario};

/// Panels beside each other.
const COLUMNS: usize = 3;
const WIDTH: usize = 1260;
const MARGIN: usize = 24;
const PANEL: usize = (WIDTH - MARGIN) / COLUMNS - MARGIN;
const BAR: usize = 18;
const GAP: usize = 6;
/// Title and unit above the bars of a panel.
const HEAD: usize = 46;
/// Room left of the bars for the names of modes, and right of them for figures.
const NAMES: usize = 118;
const FIGURES: usize = 106;

const TEXT: &str = "#7a828e";
const FAINT: &str = "#98a0ab";

/// Draws every scenario of `report`.
pub(super) fn draw(report: &Report) -> String {
    let figures: Vec<Figure> = report.figures().into_iter().filter(|figure| is_telling(*figure)).collect();
    let mut body = String::new();
    let mut y = MARGIN + 20;
    text(&mut body, MARGIN, y, 20, TEXT, "start", true, "Pod to pod between two nodes");
    y += 22;
    let note = format!(
        "medians of {} interleaved rounds; × is the multiple of the bare network between the nodes; solid line: bare \
         network, dashed: stock flannel",
        report.rounds()
    );
    text(&mut body, MARGIN, y, 12, FAINT, "start", false, &note);
    y += 30;
    for scenario in report.scenarios() {
        y = section(&mut body, report, scenario, &figures, y);
    }
    text(&mut body, MARGIN, y, 11, FAINT, "start", false, &report.surroundings().to_string());
    let height = y + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif\">\n{body}</svg>\n"
    )
}

/// The slowest in a hundred, and what mostly measures how CPUs wake, are for tables.
fn is_telling(figure: Figure) -> bool {
    !matches!(
        figure,
        Figure::TcpPingPongTail
            | Figure::UdpPingPongTail
            | Figure::TcpPingPongCross
            | Figure::TcpPingPongCrossTail
            | Figure::UdpPingPongCross
            | Figure::UdpPingPongCrossTail
            | Figure::ConnectAgent
    )
}

/// Draws a scenario from `y` down; where the next may begin.
fn section(
    body: &mut String,
    report: &Report,
    scenario: Scenario,
    figures: &[Figure],
    mut y: usize,
) -> usize {
    text(body, MARGIN, y, 16, TEXT, "start", true, scenario.name());
    y += 14;
    let cases = report.cases(scenario);
    let height = HEAD + cases.len() * (BAR + GAP) + 26;
    for row in figures.chunks(COLUMNS) {
        for (column, figure) in row.iter().enumerate() {
            panel(body, report, &cases, *figure, (MARGIN + column * (PANEL + MARGIN), y));
        }
        y += height;
    }
    y + 16
}

fn panel(body: &mut String, report: &Report, cases: &[Case], figure: Figure, (x, y): (usize, usize)) {
    text(body, x, y + 18, 13, TEXT, "start", true, figure.title());
    let better = if figure.more_is_better() { "longer is better" } else { "shorter is better" };
    text(body, x, y + 34, 11, FAINT, "start", false, &format!("{}, {better}", figure.unit()));
    let values: Vec<(Case, f64)> =
        cases.iter().filter_map(|case| Some((*case, report.median(*case, figure)?))).collect();
    let most = values.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let room = (PANEL - NAMES - FIGURES) as f64;
    let length = |value: f64| value / most * room;
    let top = y + HEAD;
    for (place, (case, value)) in values.iter().enumerate() {
        let at = top + place * (BAR + GAP);
        text(body, x + NAMES - 8, at + BAR - 5, 11, TEXT, "end", false, name(case.mode));
        // Writing to a string cannot fail.
        let _ = writeln!(
            body,
            "<rect x=\"{}\" y=\"{at}\" width=\"{:.1}\" height=\"{BAR}\" rx=\"2\" fill=\"{}\"/>",
            x + NAMES,
            length(*value).max(1.0),
            colour(case.mode)
        );
        let ratio =
            report.ratio(*case, figure, Mode::Bare).map_or(String::new(), |ratio| format!("  {ratio:.2}×"));
        let digits = figure.precision();
        let label = format!("{value:.digits$}{ratio}");
        let end = (x + NAMES) as f64 + length(*value) + 6.0;
        text(body, end as usize, at + BAR - 5, 11, TEXT, "start", case.mode == Mode::Flow, &label);
    }
    let bottom = top + values.len() * (BAR + GAP) - GAP + 3;
    for (mode, dashes) in [(Mode::Bare, "none"), (Mode::KernelRules, "3 3")] {
        let Some((_, value)) = values.iter().find(|(case, _)| case.mode == mode) else { continue };
        let at = (x + NAMES) as f64 + length(*value);
        let _ = writeln!(
            body,
            "<line x1=\"{at:.1}\" y1=\"{}\" x2=\"{at:.1}\" y2=\"{bottom}\" stroke=\"{FAINT}\" stroke-width=\"1\" \
             stroke-dasharray=\"{dashes}\"/>",
            top - 3
        );
    }
}

fn name(mode: Mode) -> &'static str {
    match mode {
        Mode::Bare => "bare network",
        Mode::BareRules => "nodes with rules",
        Mode::Kernel => "kernel, no rules",
        Mode::KernelRules => "stock flannel",
        Mode::Flowtable => "nft flowtable",
        Mode::Off => "ours, off",
        Mode::Overlay => "ours, overlay",
        Mode::Flow => "ours, flow",
        Mode::All => "ours, all",
    }
}

fn colour(mode: Mode) -> &'static str {
    match mode {
        Mode::Bare | Mode::BareRules => "#8a93a0",
        Mode::Kernel | Mode::KernelRules | Mode::Flowtable => "#c98a3d",
        Mode::Off | Mode::Overlay => "#7fa8d6",
        Mode::Flow => "#2f7fd1",
        Mode::All => "#5a97d8",
    }
}

#[expect(clippy::too_many_arguments, reason = "a place, a look and the words: one call per label")]
fn text(
    body: &mut String,
    x: usize,
    y: usize,
    size: usize,
    fill: &str,
    anchor: &str,
    bold: bool,
    words: &str,
) {
    let weight = if bold { " font-weight=\"600\"" } else { "" };
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(
        body,
        "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\" fill=\"{fill}\" text-anchor=\"{anchor}\"{weight} \
         xml:space=\"preserve\">{words}</text>"
    );
}
