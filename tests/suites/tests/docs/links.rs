//! Links between pages, and from pages to files.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use flannel_ebpf_toolchain::workspace_root;
use regex::Regex;

use super::{Page, pages};

/// What follows `#` in links to the headings of a page, as GitHub makes it.
fn anchors(page: &Page) -> BTreeSet<String> {
    let headings = prose(&page.text).into_iter().filter(|line| line.starts_with('#'));
    let words = headings.map(|line| line.trim_start_matches('#').trim().to_lowercase());
    let kept = |letter: &char| letter.is_alphanumeric() || "-_ ".contains(*letter);
    words.map(|heading| heading.chars().filter(kept).collect::<String>().replace(' ', "-")).collect()
}

/// The lines outside of fenced blocks.
fn prose(text: &str) -> Vec<&str> {
    let mut inside = false;
    let lines = text.lines().filter(|line| {
        let fence = line.starts_with("```");
        inside ^= fence;
        !inside && !fence
    });
    lines.collect()
}

/// Each link to a file leads to one, and each link to a heading to a heading.
#[test]
fn every_link_leads_somewhere() -> Result<()> {
    let link = Regex::new(r"\]\(([^)\s]+)\)")?;
    let pages = pages()?;
    let mut found = 0;
    let mut wrong = Vec::new();
    for page in &pages {
        let directory =
            workspace_root().join(&page.name).parent().context("a page has a directory")?.to_owned();
        let text = prose(&page.text).join("\n");
        for target in link.captures_iter(&text).filter_map(|link| link.get(1)).map(|link| link.as_str()) {
            if target.contains("://") {
                continue;
            }
            found += 1;
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { workspace_root().join(&page.name) } else { directory.join(file) };
            let Ok(path) = path.canonicalize() else {
                wrong.push(format!("{}: {target}: no such file", page.name));
                continue;
            };
            if heading.is_empty() {
                continue;
            }
            let name = path.strip_prefix(workspace_root().canonicalize()?)?.to_string_lossy().into_owned();
            let there = pages.iter().find(|page| page.name == name);
            if !there.is_some_and(|page| anchors(page).contains(heading)) {
                wrong.push(format!("{}: {target}: no such heading", page.name));
            }
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    ensure!(found > 100, "only {found} links were found");
    Ok(())
}

/// A reader finds a page's chapters at its top, and the pages in the index.
#[test]
fn every_page_has_a_table_of_contents_and_is_in_the_index() -> Result<()> {
    const DIRECTORY: &str = "flannel-agent/docs/";
    let pages = pages()?;
    let index = pages.iter().find(|page| page.name == format!("{DIRECTORY}README.md")).context("an index")?;
    for page in &pages {
        let Some(file) = page.name.strip_prefix(DIRECTORY).filter(|file| *file != "README.md") else {
            continue;
        };
        ensure!(index.text.contains(&format!("]({file})")), "{} is not in the index", page.name);
        let headings: Vec<&str> =
            prose(&page.text).into_iter().filter_map(|line| line.strip_prefix("## ")).collect();
        let contents: Vec<&str> = prose(&page.text)
            .into_iter()
            .filter_map(|line| line.strip_prefix("- [")?.split_once("](#"))
            .map(|(heading, _)| heading)
            .collect();
        ensure!(headings == contents, "{}: chapters {headings:?}, contents {contents:?}", page.name);
    }
    Ok(())
}
