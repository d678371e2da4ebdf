//! The pins, and the programs as the kernel loaded them.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use aya::{
    maps::MapInfo,
    programs::{SchedClassifier, TcAttachType},
};
use flannel_agent::bpf::{LogLevel, Pins, ProgramSummary, Programs};
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
            ensure!(text.contains("--bpffs") && text.contains("mount -t bpf"), "{text}");
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
