//! `fuzz`: libFuzzer at each kind of input from outside, from the inputs that are kept in the tree on.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use flannel_ebpf_toolchain::workspace_root;

use crate::{
    cargo::{Profile, build_with, target_directory},
    failure::failure,
    setup,
    ui::{Step, print},
};

/// A single input that takes longer is a finding, seconds.
const PATIENCE: u32 = 20;
/// The longest input, bytes: longer than a packet, and than what fits a page of rules.
const LONGEST: u32 = 4096;
/// A kept corpus is no larger, bytes: it is in the tree.
const KEPT: u64 = 64 << 10;

/// Options of `fuzz`.
#[derive(Args)]
pub(crate) struct Options {
    /// Kinds of input; all unless given
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// Minutes for each kind
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    minutes: Option<u64>,
    /// Seconds for each kind
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Keep inputs that reach new code in tests/fuzz/corpus, as few and as short ones as do
    #[arg(long)]
    keep: bool,
    /// Run this input only, such as one that was found; one TARGET is to be given with it
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
}

/// The program, and where its inputs are.
struct Fuzzer {
    program: PathBuf,
    /// What is kept in the tree.
    corpus: PathBuf,
    /// What is found on this machine.
    work: PathBuf,
}

/// What came of one kind.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    executions: u64,
    /// Edges of our code that were reached.
    covered: u64,
    /// Edges of all our code in the program.
    edges: u64,
    /// Inputs of which each reaches something that no other does.
    inputs: u64,
}

/// Builds the fuzzer, runs it, and prints a table.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(setup::Scope::Build)?;
    setup::ensure_programs(&[("g++", "g++")])?;
    let fuzzer = Fuzzer {
        program: build()?,
        corpus: workspace_root().join("tests/fuzz/corpus"),
        work: target_directory().join("fuzz-work"),
    };
    let known = fuzzer.targets()?;
    let targets = if options.targets.is_empty() { known.clone() } else { options.targets.clone() };
    if let Some(unknown) = targets.iter().find(|name| !known.contains(name)) {
        return Err(failure(
            format!("there is no kind of input {unknown}"),
            format!("give some of: {}", known.join(", ")),
        ));
    }
    if let Some(input) = &options.input {
        return fuzzer.once(&targets, input);
    }
    let time = Duration::from_secs(options.minutes.map_or(options.seconds, |minutes| minutes * 60));
    let mut lines = vec![line(["input", "executions", "a second", "edges reached", "of", "inputs"])];
    let mut failed = Vec::new();
    for name in &targets {
        let step = Step::start(format!("Fuzzing {name} for {} s", time.as_secs()));
        match fuzzer.fuzz(&step, name, time) {
            Ok(found) => {
                step.done(&format!("{} executions", found.executions));
                lines.push(found.line(name, time));
                if options.keep {
                    fuzzer.keep(name)?;
                }
            }
            Err(error) => {
                step.print(&format!("{error:#}"));
                failed.push(name.as_str());
            }
        }
    }
    print(&lines.concat())?;
    if failed.is_empty() {
        return Ok(());
    }
    Err(failure(
        format!("fuzzing found something in: {}", failed.join(", ")),
        "run the input that is named above again by `cargo xtask fuzz TARGET --input FILE`, mend what it shows, and put it \
         into tests/fuzz/corpus/TARGET, where tests run it",
    ))
}

/// Compiles the fuzzer: only the workspace's own crates tell libFuzzer what they do.
fn build() -> Result<PathBuf> {
    let target = &format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let upper = target.to_uppercase().replace('-', "_");
    let wrapper = workspace_root().join("tests/fuzz/instrumented-rustc");
    let variables = [
        ("RUSTC_WORKSPACE_WRAPPER".to_owned(), wrapper.into()),
        (format!("CARGO_TARGET_{upper}_RUSTFLAGS"), "--cfg=fuzzing".into()),
    ];
    let arguments = ["--package", "flannel-fuzz", "--target", target];
    build_with(Profile::Fuzz, "the fuzzer", &arguments, &variables)?.executable("flannel-fuzz")
}

impl Fuzzer {
    /// All kinds of input.
    fn targets(&self) -> Result<Vec<String>> {
        let output = Command::new(&self.program).output();
        let output = output.with_context(|| format!("cannot run {}", self.program.display()))?;
        ensure!(output.status.success(), "{}: {}", self.program.display(), output.status);
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.env("FLANNEL_FUZZ_TARGET", name).stdin(Stdio::null());
        command.arg(format!("-timeout={PATIENCE}")).arg(format!("-max_len={LONGEST}"));
        command
    }

    fn once(&self, targets: &[String], input: &Path) -> Result<()> {
        let [name] = targets else {
            return Err(failure("--input is of one kind of input", "give its TARGET before it"));
        };
        let status = self.command(name).arg(input).status().context("cannot run the fuzzer")?;
        ensure!(status.success(), "{}: {status}", input.display());
        Ok(())
    }

    fn fuzz(&self, step: &Step, name: &str, time: Duration) -> Result<Found> {
        let (work, artifacts) = (self.work.join("corpus").join(name), self.work.join("found"));
        for directory in [&work, &artifacts] {
            fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        }
        let mut command = self.command(name);
        command.env("FLANNEL_FUZZ_SEEDS", &work).arg(&work);
        let kept = self.corpus.join(name);
        if kept.is_dir() {
            command.arg(kept);
        }
        command.arg(format!("-max_total_time={}", time.as_secs().max(1)));
        command.arg(format!("-artifact_prefix={}/{name}-", artifacts.display()));
        command.args(["-print_final_stats=1", "-use_value_profile=1", "-reduce_inputs=1"]);
        let mut child =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("cannot run the fuzzer")?;
        let mut said = Vec::new();
        if let Some(lines) = child.stderr.take() {
            // Paths and inputs of a finding may be any bytes.
            for line in BufReader::new(lines).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                step.show(line.trim());
                said.push(line);
            }
        }
        let status = child.wait().context("waiting for the fuzzer")?;
        if !status.success() {
            let from = said.iter().position(|line| line.contains("panicked at")).unwrap_or_default();
            let from = from.max(said.len().saturating_sub(60));
            anyhow::bail!("{name}: {status}\n{}", said[from..].join("\n"));
        }
        Ok(Found::read(&said))
    }

    /// Puts the inputs of this machine that reach something new beside those that are kept, while there is room.
    fn keep(&self, name: &str) -> Result<()> {
        let kept = self.corpus.join(name);
        fs::create_dir_all(&kept).with_context(|| kept.display().to_string())?;
        let merged = self.work.join("merged").join(name);
        let _ = fs::remove_dir_all(&merged);
        fs::create_dir_all(&merged).with_context(|| merged.display().to_string())?;
        let mut command = self.command(name);
        command.arg("-set_cover_merge=1").arg(&merged).arg(&kept).arg(self.work.join("corpus").join(name));
        let output = command.output().context("cannot run the fuzzer")?;
        ensure!(
            output.status.success(),
            "merging {name}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let mut inputs: Vec<(u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&merged)? {
            let path = entry?.path();
            inputs.push((fs::metadata(&path)?.len(), path));
        }
        inputs.sort();
        let before: Vec<_> = fs::read_dir(&kept)?.flatten().map(|entry| entry.path()).collect();
        before.iter().try_for_each(fs::remove_file).with_context(|| kept.display().to_string())?;
        let mut room = KEPT;
        for (len, path) in inputs {
            let Some(left) = room.checked_sub(len) else { break };
            room = left;
            let to = kept.join(path.file_name().unwrap_or_default());
            fs::copy(&path, &to).with_context(|| to.display().to_string())?;
        }
        Ok(())
    }
}

impl Found {
    /// From what libFuzzer says.
    fn read(said: &[String]) -> Self {
        let number = |line: &str, before: &str| -> Option<u64> {
            let (_, rest) = line.split_once(before)?;
            let digits = rest.trim_start().split(|letter: char| !letter.is_ascii_digit()).next()?;
            digits.parse().ok()
        };
        let last = |before: &str| said.iter().rev().find_map(|line| number(line, before)).unwrap_or_default();
        Self {
            executions: last("stat::number_of_executed_units:"),
            covered: last(" cov:"),
            edges: said
                .iter()
                .find_map(|line| number(line.split_once("modules")?.1, "("))
                .unwrap_or_default(),
            inputs: last(" corp:"),
        }
    }

    fn line(&self, name: &str, time: Duration) -> String {
        let each = self.executions / time.as_secs().max(1);
        line([
            name,
            &self.executions.to_string(),
            &each.to_string(),
            &self.covered.to_string(),
            &self.edges.to_string(),
            &self.inputs.to_string(),
        ])
    }
}

fn line([name, executions, each, covered, edges, inputs]: [&str; 6]) -> String {
    format!("{name:<16}{executions:>14}{each:>12}{covered:>16}{edges:>10}{inputs:>9}\n")
}

#[cfg(test)]
mod tests {
    use super::Found;

    #[test]
    fn what_libfuzzer_says_is_read() {
        let said = [
            "INFO: Running with entropic power schedule (0xFF, 100).",
            "INFO: Loaded 1 modules   (36410 inline 8-bit counters): 36410 [0x5, 0x6), ",
            "#2\tINITED cov: 3 ft: 4 corp: 1/1b exec/s: 0 rss: 42Mb",
            "#524288\tpulse  cov: 812 ft: 2311 corp: 390/41Kb lim: 4096 exec/s: 87381 rss: 80Mb",
            "Done 600000 runs in 7 second(s)",
            "stat::number_of_executed_units: 600000",
        ]
        .map(str::to_owned);
        let expected = Found { executions: 600_000, covered: 812, edges: 36_410, inputs: 390 };
        assert_eq!(Found::read(&said), expected);
        assert_eq!(Found::read(&[]), Found::default());
    }
}
