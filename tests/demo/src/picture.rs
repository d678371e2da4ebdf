//! What a person sees who looks at a node, as a picture: the words of the commands themselves, drawn as a terminal has them.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flannel_bench::Progress;
use flannel_lab::{AgentOptions, Cluster, FastPath, Lab, Member, agent_binary, eventually, traffic::tcp};

/// Nodes of the cluster, with a pod each.
const NODES: usize = 3;
/// For a node to probe two others.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes in one go of the traffic that is looked at.
const BURST: u64 = 8 << 20;

/// Size of a letter and a line, in units of the picture.
const LETTER: f64 = 7.25;
const LINE: usize = 17;
const MARGIN: usize = 14;
/// Of a terminal: what is behind all, letters, commands, what is good.
const BACKGROUND: &str = "#161b22";
const TEXT: &str = "#c9d1d9";
const COMMAND: &str = "#79c0ff";
const GOOD: &str = "#7ee787";
/// Words that are good to see.
const GOOD_WORDS: [&str; 2] = ["healthy", "in place"];

/// What is shown: each command, and how many of its lines there are at most.
const SHOWN: [(&[&str], usize); 3] =
    [(&["status"], 24), (&["peers", "--traffic"], 8), (&["top", "--count=1"], 20)];

/// Brings a cluster up, looks at its first node under traffic, and draws that into `file`.
pub(crate) fn draw(file: &Path, progress: &Progress) -> Result<()> {
    let lab = Lab::new()?;
    let cluster = progress.step("etcd, three nodes with an agent and a pod each", || {
        Cluster::start(&lab, NODES, 1, AgentOptions::new(FastPath::Flow, &["--ip-masq", "--peer-probes=3"]))
    })?;
    progress.step("waiting until pods take the fast path", || {
        (1..NODES).try_for_each(|node| cluster.await_fast_path(0, node, FastPath::Flow))
    })?;
    progress.step("waiting until the first node has probed the others", || {
        eventually(PATIENCE, "each peer is probed", || {
            let output = program(&cluster.members[0], &["peers", "-o", "json"])?.output()?;
            let text = String::from_utf8(output.stdout)?;
            ensure!(!text.contains("\"probe\":null"), "not yet");
            Ok(())
        })
    })?;
    let enough = AtomicBool::new(false);
    let screens = progress.step("looking at the first node", || {
        thread::scope(|scope| {
            let mut senders = Vec::new();
            for other in &cluster.members[1..] {
                let (from, to) = (cluster.members[0].pod()?, other.pod()?);
                let enough = &enough;
                senders.push(scope.spawn(move || -> Result<()> {
                    while !enough.load(Ordering::Relaxed) {
                        tcp::bulk(&from, &to, BURST)?;
                    }
                    Ok(())
                }));
            }
            let screens = SHOWN.map(|(words, most)| screen(&cluster.members[0], words, most));
            enough.store(true, Ordering::Relaxed);
            for sender in senders {
                sender.join().map_err(|_| anyhow::anyhow!("a sender panicked"))??;
            }
            screens.into_iter().collect::<Result<Vec<_>>>()
        })
    })?;
    drop(cluster);
    lab.close()?;
    fs::write(file, picture(&screens)).with_context(|| format!("cannot write {}", file.display()))
}

/// A command and what it prints.
struct Screen {
    command: String,
    lines: Vec<String>,
}

/// The agent's program with these words, on a node.
fn program(member: &Member, words: &[&str]) -> Result<Command> {
    let program = agent_binary()?;
    let mut command: Command =
        member.node.netns().command(program.to_str().context("the path of the agent")?);
    command.args(words).arg(format!("--subnet-file={}", member.node.subnet_file().display()));
    if words[0] != "top" {
        command.arg(format!("--bpffs={}", member.node.bpffs().display()));
    }
    Ok(command)
}

fn screen(member: &Member, words: &[&str], most: usize) -> Result<Screen> {
    let output = program(member, words)?.output().context("the agent's program")?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(!text.is_empty(), "{words:?} says {}", String::from_utf8_lossy(&output.stderr));
    let lines = text.lines().take(most).map(str::to_owned).collect();
    Ok(Screen { command: format!("flannel-agent {}", words.join(" ")), lines })
}

fn picture(screens: &[Screen]) -> String {
    let longest = screens.iter().flat_map(|screen| &screen.lines).map(|line| line.chars().count()).max();
    let width = (longest.unwrap_or_default() as f64 * LETTER).ceil() as usize + 2 * MARGIN;
    let (mut body, mut y) = (String::new(), MARGIN);
    let mut line = |colour: &str, text: &str| {
        y += LINE;
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let text = GOOD_WORDS
            .iter()
            .fold(text, |text, word| text.replace(word, &format!("<tspan fill=\"{GOOD}\">{word}</tspan>")));
        // Writing to a string cannot fail.
        let _ = writeln!(body, "<text x=\"{MARGIN}\" y=\"{y}\" fill=\"{colour}\">{text}</text>");
    };
    for (at, screen) in screens.iter().enumerate() {
        if at > 0 {
            line(TEXT, "");
        }
        line(COMMAND, &format!("# {}", screen.command));
        for text in &screen.lines {
            line(TEXT, text);
        }
    }
    let height = y + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace\" font-size=\"12\" \
         xml:space=\"preserve\">\n<rect width=\"{width}\" height=\"{height}\" rx=\"6\" fill=\"{BACKGROUND}\"/>\n{body}</svg>\n"
    )
}
