//! `trace` shows packets at each hook in order, and leaves the running programs as they were.

use std::{
    collections::BTreeSet,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flannel_agent::trace::Event;
use flannel_common::{
    path::Hook,
    reason::{Direction, Reason},
};
use flannel_lab::{
    AgentOptions, CONVERGENCE, Cluster, FastPath, Member, Xdp, agent_binary,
    command::{run, tool},
    eventually, in_lab,
    traffic::{ping::ping, udp},
};
use serde_json::Value;

use crate::cluster;

fn command(member: &Member, words: &[&str]) -> Result<Command> {
    let mut command = member.node.netns().command(&agent_binary()?.display().to_string());
    command.args(words).arg("--subnet-file").arg(member.node.subnet_file());
    command.arg("--bpffs").arg(member.agent.bpffs());
    Ok(command)
}

/// `trace`, once it looks.
struct Trace(Child);

impl Trace {
    fn start(member: &Member, words: &[&str], said: &Path) -> Result<Self> {
        let mut command = command(member, &["trace", "-o", "json"])?;
        // None outlives a test that has failed for long.
        command.args(words).args(["--for", "60"]).stdout(Stdio::piped());
        command.stderr(std::fs::File::create(said)?);
        command.env("NODE_NAME", member.node.name());
        let mut child = command.spawn()?;
        eventually(CONVERGENCE, "trace looks at the programs", || {
            let text = std::fs::read_to_string(said)?;
            ensure!(text.contains("looking at packets") || child.try_wait()?.is_some(), "not yet");
            Ok(())
        })?;
        let text = std::fs::read_to_string(said)?;
        ensure!(text.contains("looking at packets"), "{text}");
        Ok(Self(child))
    }

    /// What it has shown, ended as by Ctrl-C: whatever has passed by then is shown.
    fn events(self) -> Result<(String, Vec<Event>)> {
        // One that has ended by itself is still there, for nobody has waited for it.
        run(tool("kill").args(["-INT", &self.0.id().to_string()]))?;
        let output = self.0.wait_with_output()?;
        ensure!(output.status.success(), "the interrupt ended it: {}", output.status);
        let text = String::from_utf8(output.stdout)?;
        let events =
            text.lines().map(serde_json::from_str).collect::<Result<_, _>>().context(text.clone())?;
        Ok((text, events))
    }
}

/// The kernel's ids of the programs that a node's links hold: of each hook one, at however many pods.
fn programs(member: &Member) -> Result<BTreeSet<(Hook, u32)>> {
    member.node.netns().inside(|| {
        let pins = flannel_agent::bpf::Pins::under(member.agent.bpffs())?;
        let attached = flannel_agent::bpf::attached(&pins)?;
        Ok(attached.into_iter().map(|at| (at.hook, at.id)).collect())
    })
}

#[test]
fn trace_shows_packets_at_each_hook_in_order() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, FastPath::Flow.with(Xdp::Native), 2)?;
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        let directory = tempfile::tempdir()?;
        let said = |name: &str| directory.path().join(name);
        let before = programs(a)?;
        let ends = [a.pods[0].address().to_string(), b.pods[0].address().to_string()];
        let words = [ends[0].as_str(), &ends[1], "--proto", "udp"];
        let at_a = Trace::start(a, &words, &said("a"))?;
        let at_b = Trace::start(b, &words, &said("b"))?;
        ensure!(programs(a)? != before, "links hold the same programs");
        udp::echo(&a.pod()?, &b.pod()?, 56, 4)?;
        // Not of those ends.
        udp::echo(&a.pods[1].endpoint(), &b.pods[1].endpoint(), 56, 2)?;
        let (text_a, at_a) = at_a.events()?;
        let (text_b, at_b) = at_b.events()?;
        for event in at_a.iter().chain(&at_b) {
            let (source, destination) = (event.source.context("IP")?, event.destination.context("IP")?);
            let [source, destination] = [source, destination].map(|address| address.to_string());
            ensure!(ends.contains(&source) && ends.contains(&destination), "{event}");
        }
        let has = |events: &[Event], hook: Hook, reason: Option<Reason>| {
            events.iter().any(|event| {
                event.hook == hook.program() && event.reason.as_deref() == reason.map(Reason::label)
            })
        };
        // A flow begins on the kernel path, and then is fast.
        for (events, hook, reason) in [
            (&at_a, Hook::FromPod, Some(Reason::EncapPod)),
            (&at_a, Hook::ToUnderlay, None),
            (&at_b, Hook::FromUnderlay, Some(Reason::DeliverPod)),
        ] {
            ensure!(has(events, hook, reason), "nothing at {}: {text_a}{text_b}", hook.program());
        }
        let slow = at_a.iter().find(|event| event.reason.as_deref() != Some(Reason::EncapPod.label()));
        let slow = slow.context("a packet that begins the flow")?;
        ensure!(slow.hook == Hook::FromPod.program() && slow.action == "pass", "{slow}");

        // Both nodes' by time: of one packet first the sender's.
        std::fs::write(said("a.json"), &text_a)?;
        std::fs::write(said("b.json"), &text_b)?;
        let mut merge = Command::new(agent_binary()?);
        merge.arg("trace").args(["-o", "json"]);
        for name in ["b.json", "a.json"] {
            merge.arg("--merge").arg(said(name));
        }
        let merged = String::from_utf8(merge.output()?.stdout)?;
        let merged: Vec<Event> = merged.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        ensure!(merged.len() == at_a.len() + at_b.len(), "{} lines", merged.len());
        ensure!(merged.is_sorted_by_key(|event| event.time.clone()), "not by time");
        ensure!(
            merged[0].node == a.node.name() && merged[0].hook == Hook::FromPod.program(),
            "{}",
            merged[0]
        );

        // Whoever is killed while looking leaves nothing behind.
        let mut killed = Trace::start(a, &[], &said("killed"))?;
        killed.0.kill()?;
        killed.0.wait()?;
        let is_back = || {
            ensure!(programs(a)? == before, "links hold other programs");
            Ok(())
        };
        eventually(CONVERGENCE, "the programs are back", is_back)?;
        let counted = a.counted(|| udp::echo(&a.pod()?, &b.pod()?, 56, 4))?;
        ensure!(counted.get(Direction::Egress, Reason::EncapPod).packets > 0, "{counted}");
        // One after the other, not both.
        let first = Trace::start(a, &[], &said("first"))?;
        let second = command(a, &["trace", "--for", "2"])?.output()?;
        let refused = String::from_utf8_lossy(&second.stderr);
        ensure!(second.status.code() == Some(2) && refused.contains("looks at packets already"), "{refused}");
        first.events()?;
        eventually(CONVERGENCE, "the programs are back", is_back)?;
        by_reason_and_count(a, b, &said("reason"))?;
        while_the_agent_is_busy(a, b, &said("busy"))?;
        who_cannot_look_says_why(a)
    })
}

fn by_reason_and_count(a: &Member, b: &Member, said: &Path) -> Result<()> {
    let words = ["--reason", Reason::FlowProtocol.label(), "--hook", "from_pod", "--count", "1"];
    let trace = Trace::start(a, &words, said)?;
    udp::echo(&a.pod()?, &b.pod()?, 56, 2)?;
    ping(&a.pod()?, &b.pod()?, 56)?;
    let (text, events) = trace.events()?;
    let [event] = events.as_slice() else { anyhow::bail!("not one line: {text}") };
    ensure!(event.protocol.as_deref() == Some("icmp"), "{event}");
    Ok(())
}

/// Whoever shows packets waits for no answer of the agent meanwhile.
fn while_the_agent_is_busy(a: &Member, b: &Member, said: &Path) -> Result<()> {
    let pid = a.agent.pid()?.to_string();
    let signal = |signal: &str| run(tool("kill").args([signal, &pid])).map(drop);
    let trace = Trace::start(a, &["--hook", "from_pod"], said)?;
    signal("-STOP")?;
    // It is asked again each second.
    std::thread::sleep(Duration::from_secs(2));
    let sent = ping(&a.pod()?, &b.pod()?, 56);
    let events = trace.events();
    signal("-CONT")?;
    sent?;
    let (text, events) = events?;
    ensure!(events.iter().any(|event| event.protocol.as_deref() == Some("icmp")), "{text}");
    Ok(())
}

/// With the pins of somebody else's.
fn run_elsewhere(member: &Member, look: &str) -> Result<(Option<i32>, String)> {
    let mut command = member.node.netns().command(&agent_binary()?.display().to_string());
    command.args([look, "--bpffs=/tmp", "--count=1"]).arg("--subnet-file").arg(member.node.subnet_file());
    let output = command.output()?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn who_cannot_look_says_why(member: &Member) -> Result<()> {
    let run = |words: &[&str]| -> Result<(Option<i32>, String)> {
        let output = command(member, words)?.output()?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    for look in ["trace", "monitor", "top"] {
        let (status, error) = run_elsewhere(member, look)?;
        ensure!(status == Some(2) && error.contains("pins under"), "{look}: {status:?}: {error}");
    }
    let (status, error) = run(&["trace", "10.0.0.1", "fd00::1"])?;
    ensure!(status == Some(2) && error.contains("give two of one"), "{status:?}: {error}");
    let mut elsewhere = Command::new(agent_binary()?);
    let output = elsewhere.args(["trace", "--subnet-file", "/nonexistent/subnet.env"]).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(2) && error.contains("no agent answers"), "{error}");
    Ok(())
}

#[test]
fn monitor_tells_what_happens() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, FastPath::Flow.with(Xdp::Off), 1)?;
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        let directory = tempfile::tempdir()?;
        let [said, told] = ["said", "told"].map(|name| directory.path().join(name));
        // None outlives a test that has failed for long.
        let mut command = command(a, &["monitor", "-o", "json", "--for", "60"])?;
        command.stdout(std::fs::File::create(&told)?).stderr(std::fs::File::create(&said)?);
        let mut monitor = command.spawn()?;
        eventually(CONVERGENCE, "it monitors", || {
            ensure!(std::fs::read_to_string(&said)?.contains("monitoring"), "not yet");
            Ok(())
        })?;
        let new = flannel_lab::traffic::udp_pair(&a.pod()?, &b.pod()?)?;
        for (from, to) in [(&new.0, &new.1), (&new.1, &new.0), (&new.0, &new.1), (&new.1, &new.0)] {
            from.send(b"hello")?;
            eventually(CONVERGENCE, "hello", || Ok(to.recv(&mut [0; 9])?))?;
        }
        let subnet = b.node.subnet_env()?.subnet;
        a.node.netns().ip(&format!("route del {}/{}", subnet.network(), subnet.prefix()))?;
        let has = |kind: &str, part: &str| -> Result<()> {
            let text = std::fs::read_to_string(&told)?;
            // The last line may be half written.
            let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let is_it = |line: &Value| line["text"].as_str().is_some_and(|text| text.contains(part));
            let mut of_kind = lines.filter(|line| line["kind"] == kind);
            ensure!(of_kind.any(|line| is_it(&line)), "no {kind} {part} in {text}");
            Ok(())
        };
        eventually(CONVERGENCE, "it tells of both", || {
            has("packet", Reason::FlowLearned.label())?;
            has("repair", &subnet.to_string())
        })?;
        run(tool("kill").args(["-INT", &monitor.id().to_string()]))?;
        ensure!(monitor.wait()?.success(), "the interrupt ended it");
        Ok(())
    })
}

#[test]
fn top_shows_what_passes() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, FastPath::Flow.with(Xdp::Off), 1)?;
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        let mut top = command(a, &["top", "-o", "json", "--count", "1", "--every", "4"])?;
        let top = top.stdout(Stdio::piped()).spawn()?;
        let done = std::sync::atomic::AtomicBool::new(false);
        let output = std::thread::scope(|scope| {
            // All the time that it looks.
            let sending = scope.spawn(|| -> Result<()> {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    udp::echo(&a.pod()?, &b.pod()?, 56, 20)?;
                }
                Ok(())
            });
            let output = top.wait_with_output();
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            sending.join().map_err(|_| anyhow::anyhow!("panicked"))??;
            Ok::<_, anyhow::Error>(output?)
        })?;
        let found: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(found["pods"][0]["name"] == a.pods[0].address().to_string(), "{found:#}");
        for way in ["out", "into"] {
            ensure!(found["peers"][0][way]["packets"].as_f64().is_some_and(|rate| rate > 0.0), "{found:#}");
        }
        ensure!(found["fast_share"].as_f64().is_some_and(|share| share > 0.3), "{found:#}");
        let programs = found["programs"].as_array().context("programs")?;
        let of = |name: &str| programs.iter().find(|row| row["program"] == name);
        let cost = of("from_pod").and_then(|row| row["nanoseconds"].as_f64()).unwrap_or_default();
        ensure!(cost > 0.0, "{found:#}");
        Ok(())
    })
}

#[test]
fn a_bug_report_holds_no_secret() -> Result<()> {
    const SECRET: &str = "korrekt-horse-battery";
    in_lab(|lab| {
        let options =
            AgentOptions::new(FastPath::Flow.with(Xdp::Off), &["--etcd-password=korrekt-horse-battery"]);
        let cluster = Cluster::start(lab, 2, 1, options)?;
        let a = &cluster.members[0];
        let directory = tempfile::tempdir()?;
        let log = directory.path().join("agent.log");
        std::fs::write(&log, format!("given {SECRET} and Authorization: Bearer abc.defghijkl\n"))?;
        for quick in [false, true] {
            let file = directory.path().join(format!("report-{quick}.tar.gz"));
            let mut command = command(a, &["bugreport"])?;
            command.arg("--file").arg(&file).arg("--log").arg(&log);
            if quick {
                command.arg("--quick");
            }
            let output = command.output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let unpacked = directory.path().join(format!("unpacked-{quick}"));
            std::fs::create_dir(&unpacked)?;
            let mut tar = Command::new("tar");
            tar.arg("-xzf").arg(&file).arg("-C").arg(&unpacked);
            ensure!(tar.status()?.success(), "tar");
            let mut grep = Command::new("grep");
            grep.args(["-rlE", "korrekt|abc\\.defghijkl"]).arg(&unpacked);
            let found = String::from_utf8(grep.output()?.stdout)?;
            ensure!(found.is_empty(), "secrets are in {found}");
            let report = unpacked.join("flannel-bugreport");
            let read =
                |name: &str| std::fs::read_to_string(report.join(name)).with_context(|| name.to_owned());
            ensure!(
                read("agent/command-line.txt")?.contains("--etcd-password=(removed)"),
                "the command line"
            );
            ensure!(read("log/agent.log")?.starts_with("given (removed)"), "the log");
            ensure!(read("net/routes.json")?.contains("flannel.1"), "the routes");
            ensure!(read("bpf/counters.json")?.contains("\"direction\""), "the counters");
            ensure!(report.join("rules/nftables.txt").exists() != quick, "the rules");
            let contents: Value = serde_json::from_str(&read("contents.json")?)?;
            let parts = contents["parts"].as_array().context("parts")?;
            for part in parts {
                let name = part[0].as_str().context("a name")?;
                ensure!(part[1].is_string() != report.join(name).exists(), "{part}");
            }
            let again = command_again(a, &file)?;
            ensure!(again.contains("exists"), "an archive is overwritten: {again}");
        }
        Ok(())
    })
}

fn command_again(member: &Member, file: &Path) -> Result<String> {
    let mut command = command(member, &["bugreport", "--quick"])?;
    let output = command.arg("--file").arg(file).output()?;
    ensure!(output.status.code() == Some(2), "{}", output.status);
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}
