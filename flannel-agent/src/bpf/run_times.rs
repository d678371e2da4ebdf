//! How long programs run, measured by the kernel while somebody wants to know.

use std::{collections::BTreeMap, os::fd::OwnedFd, time::Duration};

use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use flannel_common::path::Hook;

use super::{HookError, Pins, attached, error::chain};

/// The kernel measures each run of every program until this is dropped, which costs a few ns a run.
#[derive(Debug)]
pub struct RunTimes(OwnedFd);

/// The runs of a program since it was loaded, as far as they were measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// Of all of them.
    pub time: Duration,
    /// How many.
    pub count: u64,
}

impl RunTimes {
    /// From now on the kernel measures.
    ///
    /// # Errors
    /// Its answer, in words: before Linux 5.8 it does so by net.core.bpf_stats_enabled alone.
    pub fn begin() -> Result<Self, String> {
        enable_stats(Stats::RunTime).map(Self).map_err(|error| chain(&error))
    }

    /// The runs of our programs that are attached in this network namespace, by name and id.
    ///
    /// # Errors
    /// When it is not known where they are.
    pub fn read(&self, pins: &Pins) -> Result<BTreeMap<(&'static str, u32), Runs>, HookError> {
        let _kept = &self.0;
        let ours: BTreeMap<u32, Hook> = attached(pins)?.into_iter().map(|at| (at.id, at.hook)).collect();
        let runs = loaded_programs().flatten().filter_map(|program| {
            let hook = ours.get(&program.id())?;
            Some((
                (hook.program(), program.id()),
                Runs { time: program.run_time(), count: program.run_count() },
            ))
        });
        Ok(runs.collect())
    }
}
