//! `speed.svg` is drawn from the README's table, so that both show the same figures.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};

use super::{hold, read};

const PICTURE: &str = "flannel-agent/docs/speed.svg";

const WIDTH: usize = 760;
const MARGIN: usize = 16;
/// Two panels beside each other.
const PANEL: usize = (WIDTH - 3 * MARGIN) / 2;
const NAMES: usize = 108;
const FIGURES: usize = 62;
const BAR: usize = 16;
const GAP: usize = 6;
const HEAD: usize = 40;

/// Of middle lightness, so that it can be read on white and on black.
const TEXT: &str = "#7a828e";

/// Names and colours of the table's rows, in its order.
const ROWS: [(&str, &str); 4] = [
    ("bare network", "#8a93a0"),
    ("nodes with rules", "#8a93a0"),
    ("stock flannel", "#c98a3d"),
    ("flannel-ebpf", "#2f7fd1"),
];

/// A column of the table: its heading, and each row's figure as it stands there.
struct Figure {
    title: String,
    cells: Vec<String>,
}

impl Figure {
    fn values(&self) -> Result<Vec<f64>> {
        let number = |cell: &String| -> Result<f64> {
            let number = cell.split(' ').next().unwrap_or_default();
            number.parse().with_context(|| format!("{cell} is no figure"))
        };
        self.cells.iter().map(number).collect()
    }
}

fn table() -> Result<Vec<Figure>> {
    let readme = read("README.md")?;
    let (_, chapter) = readme.split_once("\n## How fast it is\n").context("the chapter")?;
    let rows: Vec<Vec<String>> = chapter
        .lines()
        .skip_while(|line| !line.starts_with("| dataplane"))
        .take_while(|line| line.starts_with('|'))
        .filter(|line| !line.starts_with("|---"))
        .map(|line| {
            line.trim_matches('|').split('|').map(|cell| cell.replace("**", "").trim().to_owned()).collect()
        })
        .collect();
    let (titles, rows) = rows.split_first().context("a table")?;
    ensure!(rows.len() == ROWS.len(), "the table has {} rows", rows.len());
    let column = |at: usize| -> Result<Figure> {
        let cells = rows.iter().map(|row| row.get(at).cloned().context("a row is too short"));
        Ok(Figure { title: titles[at].clone(), cells: cells.collect::<Result<_>>()? })
    };
    (1..titles.len()).map(column).collect()
}

fn text(to: &mut String, (x, y): (usize, usize), style: &str, words: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(to, "<text x=\"{x}\" y=\"{y}\" fill=\"{TEXT}\" {style}>{words}</text>");
}

fn panel(to: &mut String, figure: &Figure, (x, y): (usize, usize)) -> Result<()> {
    let better = if figure.title.contains("ping-pong") { "shorter is better" } else { "longer is better" };
    text(to, (x, y + 14), "font-size=\"13\" font-weight=\"600\"", &figure.title);
    text(to, (x, y + 29), "font-size=\"11\"", better);
    let values = figure.values()?;
    let most = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    for (at, ((value, cell), (name, colour))) in values.iter().zip(&figure.cells).zip(ROWS).enumerate() {
        let top = y + HEAD + at * (BAR + GAP);
        let length = (value / most * (PANEL - NAMES - FIGURES) as f64).round() as usize;
        let weight =
            if at + 1 == ROWS.len() { "font-size=\"11\" font-weight=\"600\"" } else { "font-size=\"11\"" };
        text(to, (x + NAMES - 8, top + BAR - 4), &format!("{weight} text-anchor=\"end\""), name);
        let left = x + NAMES;
        writeln!(
            to,
            "<rect x=\"{left}\" y=\"{top}\" width=\"{length}\" height=\"{BAR}\" rx=\"2\" fill=\"{colour}\"/>"
        )?;
        text(to, (left + length + 6, top + BAR - 4), weight, cell);
    }
    Ok(())
}

#[test]
fn the_chart_shows_the_readmes_figures() -> Result<()> {
    let figures = table()?;
    ensure!(figures.len() == 4, "the table has {} figures", figures.len());
    let height = HEAD + ROWS.len() * (BAR + GAP) + MARGIN;
    let mut body = String::new();
    for (at, figure) in figures.iter().enumerate() {
        panel(&mut body, figure, (MARGIN + at % 2 * (PANEL + MARGIN), MARGIN + at / 2 * height))?;
    }
    let total = MARGIN + figures.len().div_ceil(2) * height;
    let picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{total}\" viewBox=\"0 0 {WIDTH} {total}\" \
         font-family=\"system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif\">\n{body}</svg>\n"
    );
    hold(PICTURE, &picture)
}
