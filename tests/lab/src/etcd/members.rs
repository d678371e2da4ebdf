//! Several etcds that are one cluster.

use anyhow::{Result, anyhow};

use super::{Etcd, Options};

impl Etcd {
    /// Three members of one cluster on loopback, open to all.
    pub fn start_three() -> Result<[Self; 3]> {
        let mut last = None;
        // Somebody else may take a port between its choice and its use.
        for _ in 0..5 {
            let options = Options::default();
            let mut members = [Self::prepare(&options)?, Self::prepare(&options)?, Self::prepare(&options)?];
            let cluster =
                members.each_ref().map(|member| format!("{}={}", member.name(), member.peer_url())).join(",");
            for member in &mut members {
                member.cluster = Some(cluster.clone());
            }
            match Self::start_all(&mut members) {
                Ok(()) => return Ok(members),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow!("etcd was never started")))
    }

    /// Starts members together: one alone would wait for the others.
    pub fn start_all(members: &mut [Self]) -> Result<()> {
        members.iter_mut().try_for_each(Self::launch)?;
        members.iter_mut().try_for_each(Self::await_ready)
    }
}
