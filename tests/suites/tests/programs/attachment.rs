//! The programs at their hooks.

use anyhow::{Context as _, Result, ensure};
use aya::programs::{
    SchedClassifier, TcAttachType,
    links::{FdLink, LinkInfo, PinnedLink},
};
use flannel_agent::bpf::{LogLevel, Pins, Programs};
use flannel_common::path::Hook;
use flannel_common_testing::interface;

use crate::sandbox::{add_veth, eventually, in_sandbox, ip};

const POD: &str = "pod";

fn link(pins: &Pins, interface: &str, hook: Hook) -> Result<LinkInfo> {
    Ok(FdLink::from(PinnedLink::from_pin(pins.link(interface, hook))?).info()?)
}

/// Ids of the programs at a side of `interface`.
fn running(interface: &str, side: TcAttachType) -> Result<Vec<u32>> {
    let (_, programs) = SchedClassifier::query_tcx(interface, side)?;
    Ok(programs.iter().map(aya::programs::ProgramInfo::id).collect())
}

fn id(programs: &mut Programs, hook: Hook) -> Result<u32> {
    Ok(programs.program(hook)?.info()?.id())
}

#[test]
fn each_program_at_its_side() {
    in_sandbox(|sandbox| {
        let mut programs = Programs::load(sandbox.pins()?, LogLevel::Off)?;
        ensure!(programs.attached()?.is_empty());
        let hooks = [
            (POD, Hook::FromPod, TcAttachType::Ingress),
            ("overlay", Hook::ToOverlay, TcAttachType::Egress),
            ("underlay", Hook::FromUnderlay, TcAttachType::Ingress),
            ("underlay", Hook::ToUnderlay, TcAttachType::Egress),
        ];
        for (interface, hook, side) in hooks {
            programs.attach(interface, hook)?;
            let id = id(&mut programs, hook)?;
            ensure!(running(interface, side)? == [id], "{}", hook.program());
            ensure!(link(&sandbox.pins()?, interface, hook)?.program_id() == id);
        }
        ensure!(running(POD, TcAttachType::Egress)?.is_empty());
        let expected = hooks.map(|(interface, hook, _)| (interface.to_owned(), hook));
        ensure!(programs.attached()? == expected.into(), "{:?}", programs.attached()?);
        Ok(())
    });
}

#[test]
fn programs_stay_without_their_loader() {
    in_sandbox(|sandbox| {
        let mut programs = Programs::load(sandbox.pins()?, LogLevel::Off)?;
        programs.attach(POD, Hook::FromPod)?;
        let id = id(&mut programs, Hook::FromPod)?;
        drop(programs);
        ensure!(running(POD, TcAttachType::Ingress)? == [id]);
        Ok(())
    });
}

#[test]
fn a_second_load_replaces_the_program_in_its_link() {
    in_sandbox(|sandbox| {
        let pins = sandbox.pins()?;
        let mut first = Programs::load(pins.clone(), LogLevel::Off)?;
        first.attach(POD, Hook::FromPod)?;
        let before = link(&pins, POD, Hook::FromPod)?;
        drop(first);

        let mut second = Programs::load(pins.clone(), LogLevel::Off)?;
        ensure!(second.attached()?.is_empty(), "the hook runs the first agent's program");
        second.attach(POD, Hook::FromPod)?;
        let after = link(&pins, POD, Hook::FromPod)?;
        ensure!(after.id() == before.id(), "a hook without a program in between");
        ensure!(after.program_id() != before.program_id());
        ensure!(running(POD, TcAttachType::Ingress)? == [id(&mut second, Hook::FromPod)?]);
        ensure!(second.attached()? == [(POD.to_owned(), Hook::FromPod)].into());

        // Once more changes nothing.
        second.attach(POD, Hook::FromPod)?;
        let again = link(&pins, POD, Hook::FromPod)?;
        ensure!((again.id(), again.program_id()) == (after.id(), after.program_id()));
        Ok(())
    });
}

#[test]
fn an_interface_made_anew_under_its_name_is_attached_anew() {
    in_sandbox(|sandbox| {
        let pins = sandbox.pins()?;
        let mut first = Programs::load(pins.clone(), LogLevel::Off)?;
        first.attach(POD, Hook::FromPod)?;
        let before = link(&pins, POD, Hook::FromPod)?.id();
        ip(&format!("link del {POD}\n{}", add_veth(POD, interface::POD + 10)))?;
        ensure!(first.attached()?.is_empty(), "the new interface has no program yet");

        // By the same process, and by one that finds only the pin.
        first.attach(POD, Hook::FromPod)?;
        ensure!(running(POD, TcAttachType::Ingress)? == [id(&mut first, Hook::FromPod)?]);
        ensure!(link(&pins, POD, Hook::FromPod)?.id() != before);
        ip(&format!("link del {POD}\n{}", add_veth(POD, interface::POD + 20)))?;
        drop(first);
        let mut second = Programs::load(pins, LogLevel::Off)?;
        second.attach(POD, Hook::FromPod)?;
        ensure!(running(POD, TcAttachType::Ingress)? == [id(&mut second, Hook::FromPod)?]);
        Ok(())
    });
}

#[test]
fn an_interface_that_takes_the_name_of_another_is_attached() {
    in_sandbox(|sandbox| {
        let mut programs = Programs::load(sandbox.pins()?, LogLevel::Off)?;
        programs.attach(POD, Hook::FromPod)?;
        ip(&format!("link set {POD} name renamed\n{}", add_veth("extra", interface::POD + 10)))?;
        // The pin of the old name holds a link of an interface that has another name now.
        ip("link set extra name pod")?;
        ensure!(programs.attached()?.is_empty(), "the interface of that name has no program yet");
        programs.attach(POD, Hook::FromPod)?;
        let id = id(&mut programs, Hook::FromPod)?;
        ensure!(running(POD, TcAttachType::Ingress)? == [id]);
        // Whoever attaches knows the renamed one by its new name.
        eventually(|| Ok(running("renamed", TcAttachType::Ingress)?.is_empty()))?;
        Ok(())
    });
}

#[test]
fn detached_is_gone() {
    in_sandbox(|sandbox| {
        let pins = sandbox.pins()?;
        let mut programs = Programs::load(pins.clone(), LogLevel::Off)?;
        programs.attach(POD, Hook::FromPod)?;
        programs.attach("underlay", Hook::FromUnderlay)?;
        programs.detach(POD, Hook::FromPod)?;
        // The kernel frees an unpinned link in its own time.
        eventually(|| Ok(running(POD, TcAttachType::Ingress)?.is_empty()))?;
        ensure!(!pins.links().join(POD).exists(), "the directory of the interface stayed");
        ensure!(programs.attached()? == [("underlay".to_owned(), Hook::FromUnderlay)].into());
        programs.detach(POD, Hook::FromPod).context("what is not attached is detached already")?;
        Ok(())
    });
}

#[test]
fn an_unknown_interface_is_named() {
    in_sandbox(|sandbox| {
        let mut programs = Programs::load(sandbox.pins()?, LogLevel::Off)?;
        let Err(error) = programs.attach("nosuch", Hook::FromPod) else { anyhow::bail!("attached") };
        let text = error.to_string();
        ensure!(text.contains("nosuch") && text.contains("from_pod"), "{text}");
        ensure!(sandbox.pins()?.pinned_links()?.is_empty());
        Ok(())
    });
}
