//! The clock; and the process itself, under the names that all exporters use.

use std::fs;

use nix::{
    sys::resource::{UsageWho, getrusage},
    sys::time::TimeValLike as _,
    unistd::{SysconfVar, sysconf},
};

use super::{metric, page::Page};
use crate::host::clock::clock;

pub(super) fn add(page: &mut Page, started: u64) {
    if let Some(clock) = clock() {
        page.add(&metric::CLOCK, [], f64::from(u8::from(clock.synchronised)));
        page.add(&metric::CLOCK_ERROR, [], clock.error.as_secs_f64());
    }
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        let microseconds = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        page.add(&metric::CPU, [], microseconds as f64 / 1e6);
    }
    if let Some(bytes) = resident() {
        page.add(&metric::MEMORY, [], bytes);
    }
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        // The directory itself is open, too.
        page.add(&metric::OPEN_FILES, [], files.count().saturating_sub(1) as f64);
    }
    page.add(&metric::START, [], started as f64);
}

/// Resident memory, bytes (proc_pid_statm(5)).
fn resident() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u32 = text.split_whitespace().nth(1)?.parse().ok()?;
    let size = sysconf(SysconfVar::PAGE_SIZE).ok()??;
    Some(f64::from(pages) * size as f64)
}
