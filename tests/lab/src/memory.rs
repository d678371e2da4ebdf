//! What a process takes of memory.

use std::fs;

use anyhow::{Context as _, Result};

/// Resident memory, KiB (proc_pid_status(5)).
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Now.
    pub resident: u64,
    /// Of that, what the process has allocated; the rest is its program file.
    pub anonymous: u64,
    /// The most there ever was.
    pub peak: u64,
}

impl Memory {
    /// That of a process.
    ///
    /// # Errors
    /// When there is none of this number.
    pub fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path).with_context(|| path.clone())?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let line = line.with_context(|| format!("{path}: no {name}"))?;
            let number = line.split_whitespace().next().and_then(|number| number.parse().ok());
            number.with_context(|| format!("{path}: {name}{line}"))
        };
        Ok(Self { resident: field("VmRSS:")?, anonymous: field("RssAnon:")?, peak: field("VmHWM:")? })
    }
}
