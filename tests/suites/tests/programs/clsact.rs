//! Programs attached by filters of a clsact qdisc, and what others have there.

use std::{collections::BTreeSet, process::Command};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use flannel_agent::bpf::{Attachment, LogLevel, Programs, TcAttach, remove_all};
use flannel_common::path::Hook;

use crate::sandbox::{Sandbox, add_veth, eventually, in_sandbox, ip};

const POD: &str = "pod";
const UNDERLAY: &str = "underlay";

/// Runs `tc`; a colon in a program's text stands for a space.
fn tc(words: &str) -> Result<String> {
    let words = words.split_whitespace().map(|word| match word.split_once(',') {
        Some(_) => word.replace(':', " "),
        None => word.to_owned(),
    });
    let output = Command::new("tc").args(words).output().context("tc")?;
    ensure!(output.status.success(), "tc: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn load(sandbox: &Sandbox) -> Result<Programs> {
    let mut programs = Programs::load(sandbox.pins()?, LogLevel::Off)?;
    let by = programs.attach_by(TcAttach::Clsact);
    ensure!(by == Ok(Attachment::Clsact), "{by:?}");
    Ok(programs)
}

fn id(programs: &mut Programs, hook: Hook) -> Result<u32> {
    Ok(programs.program(hook)?.info()?.id())
}

/// The filters with programs at `interface`: side, name there, and the program's id.
fn running(interface: &str) -> Result<Vec<(&'static str, String, u32)>> {
    let mut found = Vec::new();
    for side in ["ingress", "egress"] {
        let output = Command::new("tc").args(["-j", "filter", "show", "dev", interface, side]).output()?;
        let listing: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap_or_default();
        for options in listing.iter().map(|filter| &filter["options"]) {
            if let (Some(name), Some(id)) = (options["bpf_name"].as_str(), options["prog"]["id"].as_u64()) {
                found.push((side, name.to_owned(), u32::try_from(id)?));
            }
        }
    }
    Ok(found)
}

/// The ids of the programs in tcx links at ingress.
fn linked(interface: &str) -> Result<Vec<u32>> {
    let (_, programs) = SchedClassifier::query_tcx(interface, TcAttachType::Ingress)?;
    Ok(programs.iter().map(aya::programs::ProgramInfo::id).collect())
}

fn has_clsact(interface: &str) -> Result<bool> {
    Ok(tc(&format!("qdisc show dev {interface}"))?.contains("clsact"))
}

#[test]
fn the_next_load_replaces_the_program_in_its_filter() {
    in_sandbox(|sandbox| {
        let mut first = load(sandbox)?;
        first.attach(POD, Hook::FromPod)?;
        first.attach(UNDERLAY, Hook::FromUnderlay)?;
        first.attach(UNDERLAY, Hook::ToUnderlay)?;
        let old = id(&mut first, Hook::FromPod)?;
        drop(first);
        let at_pod = |id| [("ingress", "flannel_from_pod".to_owned(), id)];
        ensure!(running(POD)? == at_pod(old), "gone with its loader: {:?}", running(POD)?);
        ensure!(running(UNDERLAY)?.len() == 2, "{:?}", running(UNDERLAY)?);

        let mut second = load(sandbox)?;
        ensure!(second.attached()?.is_empty(), "the hooks run the first agent's programs");
        second.adopt()?;
        ensure!(running(POD)? == at_pod(id(&mut second, Hook::FromPod)?), "{:?}", running(POD)?);
        let all = [(POD, Hook::FromPod), (UNDERLAY, Hook::FromUnderlay), (UNDERLAY, Hook::ToUnderlay)];
        let all = all.map(|(interface, hook)| (interface.to_owned(), hook));
        ensure!(second.attached()? == all.into(), "{:?}", second.attached()?);
        ensure!(sandbox.pins()?.pinned_links()?.is_empty());
        Ok(())
    });
}

#[test]
fn either_way_replaces_the_other() {
    in_sandbox(|sandbox| {
        let pins = sandbox.pins()?;
        let mut by_filter = load(sandbox)?;
        by_filter.attach(POD, Hook::FromPod)?;
        let mut by_link = Programs::load(pins.clone(), LogLevel::Off)?;
        ensure!(by_link.attach_by(TcAttach::Auto) == Ok(Attachment::Tcx));
        by_link.adopt()?;
        ensure!(linked(POD)? == [id(&mut by_link, Hook::FromPod)?]);
        ensure!(running(POD)?.is_empty(), "{:?}", running(POD)?);
        ensure!(pins.pinned_links()?.len() == 1);

        let mut by_filter = load(sandbox)?;
        by_filter.adopt()?;
        ensure!(pins.pinned_links()?.is_empty());
        let there = [("ingress", "flannel_from_pod".to_owned(), id(&mut by_filter, Hook::FromPod)?)];
        ensure!(running(POD)? == there, "{:?}", running(POD)?);
        // The kernel frees an unpinned link in its own time.
        eventually(|| Ok(linked(POD)?.is_empty()))?;
        Ok(())
    });
}

#[test]
fn qdiscs_of_ours_go_with_all_the_rest() {
    in_sandbox(|sandbox| {
        let mut programs = load(sandbox)?;
        programs.attach(UNDERLAY, Hook::FromUnderlay)?;
        programs.attach(UNDERLAY, Hook::ToUnderlay)?;
        programs.detach(UNDERLAY, Hook::FromUnderlay)?;
        ensure!(has_clsact(UNDERLAY)? && running(UNDERLAY)?.len() == 1);
        programs.detach(UNDERLAY, Hook::ToUnderlay)?;
        ensure!(has_clsact(UNDERLAY)? && running(UNDERLAY)?.is_empty(), "to remove it costs packets");
        programs.detach(UNDERLAY, Hook::ToUnderlay).context("what is not attached is detached already")?;

        programs.attach(POD, Hook::FromPod)?;
        programs.attach(UNDERLAY, Hook::FromUnderlay)?;
        tc(&format!("filter del dev {POD} ingress"))?;
        ensure!(programs.attached()? == [(UNDERLAY.to_owned(), Hook::FromUnderlay)].into());
        // What is left of an interface that is gone is nobody's.
        ip(&format!("link del {UNDERLAY}\n{}", add_veth(UNDERLAY, 77)))?;
        ensure!(programs.attached()?.is_empty());
        remove_all(&sandbox.pins()?)?;
        ensure!(!has_clsact(POD)? && !has_clsact(UNDERLAY)?);
        ensure!(!sandbox.pins()?.maps().exists(), "pins stayed");
        Ok(())
    });
}

/// Whoever else has filters keeps them, and the qdisc, whether it was there first or not.
#[test]
fn what_others_have_there_stays() {
    const BEFORE: &str = "protocol all prio 1 bpf da bytecode 1,6:0:0:4294967295,";
    const BEHIND: &str = "protocol ip prio 49000 u32 match ip protocol 6 0xff classid 1:1";
    in_sandbox(|sandbox| {
        let show = |side: &str| tc(&format!("filter show dev {UNDERLAY} {side}"));
        tc(&format!("qdisc add dev {UNDERLAY} clsact"))?;
        tc(&format!("filter add dev {UNDERLAY} ingress {BEFORE}"))?;
        tc(&format!("filter add dev {UNDERLAY} egress {BEHIND}"))?;
        let others = [show("ingress")?, show("egress")?];
        let mut programs = load(sandbox)?;
        programs.attach(UNDERLAY, Hook::FromUnderlay)?;
        programs.attach(UNDERLAY, Hook::ToUnderlay)?;
        let ingress = show("ingress")?;
        ensure!(ingress.find("bytecode") < ingress.find("flannel_from_underlay"), "{ingress}");
        ensure!(programs.attached()?.len() == 2);
        programs.detach(UNDERLAY, Hook::FromUnderlay)?;
        remove_all(&sandbox.pins()?)?;
        ensure!([show("ingress")?, show("egress")?] == others, "{}{}", show("ingress")?, show("egress")?);

        // And one that came to a qdisc of ours.
        let mut programs = load(sandbox)?;
        programs.attach(POD, Hook::FromPod)?;
        tc(&format!("filter add dev {POD} egress {BEHIND}"))?;
        programs.detach(POD, Hook::FromPod)?;
        remove_all(&sandbox.pins()?)?;
        ensure!(running(POD)?.is_empty() && tc(&format!("filter show dev {POD} egress"))?.contains("u32"));
        // It is no longer ours to remove.
        tc(&format!("filter del dev {POD} egress"))?;
        remove_all(&sandbox.pins()?)?;
        ensure!(has_clsact(POD)? && has_clsact(UNDERLAY)?);
        Ok(())
    });
}

#[test]
fn what_is_in_the_way_is_named() {
    in_sandbox(|sandbox| {
        let mut programs = load(sandbox)?;
        tc(&format!("qdisc add dev {UNDERLAY} ingress"))?;
        programs.attach(UNDERLAY, Hook::FromUnderlay).context("an ingress qdisc is good for ingress")?;
        ensure!(programs.attached()? == [(UNDERLAY.to_owned(), Hook::FromUnderlay)].into());
        let Err(error) = programs.attach(UNDERLAY, Hook::ToUnderlay) else { anyhow::bail!("attached") };
        ensure!(error.to_string().contains("clsact"), "{error}");
        // Such a qdisc has one list, whichever side is asked for.
        let names =
            || anyhow::Ok(running(UNDERLAY)?.into_iter().map(|(_, name, _)| name).collect::<BTreeSet<_>>());
        let ours = BTreeSet::from(["flannel_from_underlay".to_owned()]);
        ensure!(names()? == ours, "{:?}", names()?);
        programs.detach(UNDERLAY, Hook::ToUnderlay)?;
        ensure!(names()? == ours, "{:?}", names()?);

        tc(&format!("qdisc add dev {POD} clsact"))?;
        tc(&format!(
            "filter add dev {POD} ingress protocol all prio 8472 handle 1 bpf da bytecode 1,6:0:0:0,"
        ))?;
        let Err(error) = programs.attach(POD, Hook::FromPod) else { anyhow::bail!("attached") };
        ensure!(error.to_string().contains("8472"), "{error}");
        ensure!(tc(&format!("filter show dev {POD} ingress"))?.contains("bytecode"));
        let Err(error) = programs.attach("nosuch", Hook::FromPod) else { anyhow::bail!("attached") };
        ensure!(error.to_string().contains("nosuch"), "{error}");
        Ok(())
    });
}
