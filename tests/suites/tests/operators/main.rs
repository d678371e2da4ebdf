//! What a person sees who looks after nodes: the commands that look at a running agent, and at a node without one.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_lab::{Member, Node, command::tool};
use serde_json::Value;

mod faults;
mod screens;
mod store;

/// What a command printed, and how it ended.
struct Seen {
    status: i32,
    text: String,
    errors: String,
}

impl Seen {
    /// Whether it says `part`, however its lines are broken.
    fn says(&self, part: &str) -> bool {
        self.text.split_whitespace().collect::<Vec<_>>().join(" ").contains(part)
    }

    fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.text).with_context(|| format!("{}{}", self.text, self.errors))
    }
}

/// Runs `flannel-agent <words>` on `node`.
fn look_on(node: &Node, words: &[&str]) -> Result<Seen> {
    let mut command: Command =
        node.netns().command(flannel_lab::agent_binary()?.to_str().context("the path of the agent")?);
    command.args(words);
    command.arg(format!("--subnet-file={}", node.subnet_file().display()));
    command.arg(format!("--bpffs={}", node.bpffs().display()));
    let output = command.output().context("flannel-agent")?;
    Ok(Seen {
        status: output.status.code().context("ended by a signal")?,
        text: String::from_utf8(output.stdout)?,
        errors: String::from_utf8(output.stderr)?,
    })
}

fn look(member: &Member, words: &[&str]) -> Result<Seen> {
    look_on(&member.node, words)
}
