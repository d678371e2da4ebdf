//! The agent in as much memory as flannel's manifest asks for.

use anyhow::{Result, ensure};
use flannel_agent::bpf::{Pins, Tables};
use flannel_bench::control_plane;
use flannel_lab::{AgentOptions, FastPath, MemoryGroup, in_lab};

const MIB: u64 = 1 << 20;

/// Maps are counted as well: with `CAP_BPF` they are the container's, whoever's packets they serve. A restart adopts
/// them, and reads all leases beside them.
#[test]
fn a_thousand_leases_with_the_fast_path_on_fit_in_the_memory_that_the_manifest_asks_for() -> Result<()> {
    const PEERS: u32 = 1_000;
    in_lab(|lab| {
        let (server, node) = lab.pair()?;
        let etcd = lab.etcd_on(&server)?;
        control_plane::fill(&server, &etcd, PEERS)?;
        let group = MemoryGroup::new(lab, 50 * MIB)?;
        let mut agent = node.prepared_agent(&etcd, AgentOptions::new(FastPath::Flow, &["--ip-masq"]));
        agent.join(&group);
        for _ in 0..2 {
            agent.start_again()?;
            // What does not fit is refused, and the kernel's path taken.
            let tables = Tables::open(&Pins::under(&node.bpffs())?)?;
            let peers = tables.v4.routes.entries()?.len();
            ensure!(peers == PEERS as usize, "{peers} peers in the map; the agent's log:\n{}", agent.log());
            let used = group.used()? / MIB;
            println!("{used} MiB");
            // So that a kernel that counts more, or what a start takes for a moment, has some left.
            ensure!(used < 30, "{used} MiB of 50 are used");
            agent.check_running()?;
            agent.kill()?;
        }
        Ok(())
    })
}
