//! The pins, and the programs as the kernel loaded them.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::MapInfo,
    programs::{SchedClassifier, TcAttachType},
};
use flannel_agent::bpf::{LogLevel, Pins, ProgramSummary, Programs, detach_all};
use flannel_common::{
    map::{PINNED_MAPS, TO_POD, TO_UNDERLAY, XDP_GENERIC, XDP_UNDERLAY},
    path::Hook,
};

use crate::sandbox::{Sandbox, eventually, in_sandbox};

/// Names in the root of the bpffs but those the kernel puts there (BPF_PRELOAD).
fn left(sandbox: &Sandbox) -> Result<BTreeSet<String>> {
    const KERNELS: [&str; 2] = ["maps.debug", "progs.debug"];
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(&sandbox.bpffs)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !KERNELS.contains(&name.as_str()) {
            names.insert(name);
        }
    }
    Ok(names)
}

#[test]
fn remove_all_leaves_nothing() {
    in_sandbox(|sandbox| {
        let pins = sandbox.pins()?;
        ensure!(left(sandbox)?.is_empty());
        let mut programs = Programs::load(pins.clone(), LogLevel::Off)?;
        programs.attach("pod", Hook::FromPod)?;
        programs.attach("other_pod", Hook::FromPod)?;
        programs.attach("underlay", Hook::FromUnderlay)?;
        ensure!(left(sandbox)? == ["flannel".to_owned()].into());
        ensure!(pins.pinned_links()?.len() == 3);
        ensure!(programs.attach("nosuch", Hook::FromPod).is_err());
        ensure!(!pins.links().join("nosuch").exists(), "a failed attachment left a directory");
        pins.remove_all()?;
        ensure!(left(sandbox)?.is_empty(), "left: {:?}", left(sandbox)?);
        ensure!(programs.attached()?.is_empty());
        for interface in ["pod", "other_pod", "underlay"] {
            // The kernel frees an unpinned link in its own time.
            eventually(|| {
                let (_, running) = SchedClassifier::query_tcx(interface, TcAttachType::Ingress)?;
                Ok(running.is_empty())
            })?;
        }
        // Nothing left to remove is no error.
        pins.remove_all()?;
        Ok(())
    });
}

/// Makes what is pinned that of an agent with another layout of maps, whose programs run on.
fn age(pins: &Pins) -> Result<()> {
    let maps = pins.maps();
    let root = maps.parent().context("no directory of the layout")?;
    Ok(std::fs::rename(root, root.with_file_name("v0"))?)
}

#[test]
fn programs_of_another_layout_are_replaced_in_place_and_its_maps_removed() {
    in_sandbox(|sandbox| {
        let pins = sandbox.pins()?;
        let mut old = Programs::load(pins.clone(), LogLevel::Off)?;
        let ids = || -> Result<Vec<u32>> {
            PINNED_MAPS.iter().map(|name| Ok(MapInfo::from_pin(pins.map(name))?.id())).collect()
        };
        let maps = ids()?;
        for hook in [Hook::FromPod, Hook::ToPod] {
            old.attach("pod", hook)?;
        }
        old.attach("other_pod", Hook::FromPod)?;
        drop(old);
        // A hook that only the other version knows.
        let unknown = pins.link("other_pod", Hook::FromPod);
        std::fs::rename(&unknown, unknown.with_file_name("no_hook"))?;
        age(&pins)?;
        ensure!(pins.pinned_links()?.is_empty() && pins.of_other_layouts()?.len() == 1);

        let mut new = Programs::load(pins.clone(), LogLevel::Off)?;
        ensure!(ids()?.iter().all(|id| !maps.contains(id)), "maps of another layout were adopted");
        let running = |interface| -> Result<Vec<u32>> {
            let (_, programs) = SchedClassifier::query_tcx(interface, TcAttachType::Ingress)?;
            Ok(programs.iter().map(|program| program.id()).collect())
        };
        let before = running("pod")?;
        new.adopt()?;
        let hooks = [Hook::FromPod, Hook::ToPod].map(|hook| ("pod".to_owned(), hook));
        ensure!(new.attached()? == hooks.clone().into(), "{:?}", new.attached()?);
        ensure!(running("pod")?.len() == 1 && running("pod")? != before, "not in place");
        ensure!(pins.of_other_layouts()?.is_empty());
        eventually(|| Ok(running("other_pod")?.is_empty()))?;

        // Where no programs are wanted, those of another layout go, too.
        drop(new);
        age(&pins)?;
        detach_all(&pins)?;
        ensure!(left(sandbox)?.is_empty(), "left: {:?}", left(sandbox)?);
        eventually(|| Ok(running("pod")?.is_empty()))
    });
}

#[test]
fn the_pin_of_a_map_that_was_removed_or_replaced_comes_back() {
    in_sandbox(|sandbox| {
        let pins = sandbox.pins()?;
        let programs = Programs::load(pins.clone(), LogLevel::Off)?;
        let ids = || -> Result<Vec<u32>> {
            PINNED_MAPS.iter().map(|name| Ok(MapInfo::from_pin(pins.map(name))?.id())).collect()
        };
        let before = ids()?;
        for name in PINNED_MAPS {
            std::fs::remove_file(pins.map(name))?;
            programs.restore_pins()?;
            ensure!(ids()? == before, "{name}");
        }
        // Another process loads while the pins are away, and has maps of its own.
        pins.remove_all()?;
        let other = Programs::load(pins.clone(), LogLevel::Off)?;
        ensure!(ids()?.iter().all(|id| !before.contains(id)));
        drop(other);
        programs.restore_pins()?;
        ensure!(ids()? == before);
        pins.remove_all()?;
        programs.restore_pins()?;
        ensure!(ids()? == before);
        Ok(())
    });
}

#[test]
fn another_file_system_is_refused_with_the_remedy() {
    in_sandbox(|sandbox| {
        for path in ["/", "/proc"] {
            let Err(error) = Pins::under(path.as_ref()) else { anyhow::bail!("{path} was accepted") };
            let text = error.to_string();
            ensure!(text.contains("--bpffs"), "{text}");
            // Something else is there.
            ensure!(!text.contains(&format!("mount -t bpf bpf {path}`")), "{text}");
        }
        let Err(error) = Pins::under(&sandbox.bpffs.join("nosuch")) else { anyhow::bail!("accepted") };
        ensure!(error.to_string().contains("nosuch"), "{error}");
        Ok(())
    });
}

#[test]
fn programs_that_log_nothing_have_no_log_code() {
    in_sandbox(|sandbox| {
        let load = |log| -> Result<Vec<ProgramSummary>> {
            let mut programs = Programs::load(sandbox.pins()?, log)?;
            Ok(programs.summaries()?)
        };
        let (off, warn, debug) = (load(LogLevel::Off)?, load(LogLevel::Warn)?, load(LogLevel::Debug)?);
        for ((off, warn), debug) in off.iter().zip(&warn).zip(&debug) {
            if [TO_POD, TO_UNDERLAY, XDP_UNDERLAY, XDP_GENERIC].contains(&off.name) {
                // The first two decide nothing; XDP counts, and what it lets pass tc has its say about.
                continue;
            }
            ensure!(off.name == debug.name && off.id != debug.id);
            let size = |summary: &ProgramSummary| summary.translated_bytes;
            ensure!(size(off) < size(warn), "{}: {:?} and {:?} bytes", off.name, size(off), size(warn));
            ensure!(size(warn) < size(debug), "{}: {:?} and {:?} bytes", off.name, size(warn), size(debug));
            let verified = |summary: &ProgramSummary| summary.verified_instructions;
            ensure!(verified(off) < verified(debug), "{}: {off:?} {debug:?}", off.name);
        }
        Ok(())
    });
}
