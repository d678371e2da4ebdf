//! What the maps of the programs say. A map that cannot be read has no numbers: the page is no place to complain.

use std::{collections::BTreeMap, time::Duration};

use flannel_common::{family::V4, family::V6, layout::Hold};
use nix::time::{ClockId, clock_gettime};

use super::{metric, page::Page};
use crate::bpf::{self, Pins, TrieFamily, attached, map_sizes, read_counters};

pub(super) fn add(page: &mut Page, pins: &Pins) {
    if let Ok(hooks) = attached(pins) {
        let mut programs = BTreeMap::<_, u32>::new();
        for at in hooks {
            *programs.entry(at.hook.program()).or_default() += 1;
        }
        for (program, hooks) in programs {
            page.add(&metric::PROGRAMS, [program], hooks.into());
        }
    }
    if let Ok(rows) = read_counters(pins) {
        for row in &rows {
            let labels = [row.direction.label(), row.reason.class().label(), row.reason.label()];
            page.add(&metric::PACKETS, labels, row.packets as f64);
        }
        for row in &rows {
            let labels = [row.direction.label(), row.reason.class().label(), row.reason.label()];
            page.add(&metric::PACKET_BYTES, labels, row.bytes as f64);
        }
    }
    let sizes = map_sizes(pins);
    for (map, size) in &sizes {
        page.add(&metric::MAP_ENTRIES, [map], size.entries as f64);
    }
    for (map, size) in &sizes {
        page.add(&metric::MAP_CAPACITY, [map], size.capacity.into());
    }
    if let Ok(tables) = bpf::Tables::open(pins)
        && let Ok(Some(hold)) = tables.hold.get()
        && hold != Hold::FOREVER
        && let Some(now) = now()
    {
        page.add(&metric::FAST_PATH_HOLD, [], seconds(hold.until.saturating_sub(now)));
    }
}

/// When the tunnels to peers were last looked at.
pub(super) fn add_tunnels(page: &mut Page, pins: &Pins) {
    if let (Ok(tables), Some(now)) = (bpf::Tables::open(pins), now()) {
        add_tunnels_of::<V4>(page, &tables.v4, now);
        add_tunnels_of::<V6>(page, &tables.v6, now);
    }
}

fn add_tunnels_of<F: TrieFamily>(page: &mut Page, tables: &bpf::FamilyTables<F>, now: u64) {
    for (vtep, tunnel) in tables.tunnels.entries().unwrap_or_default() {
        let vtep = F::address(vtep).to_string();
        for (direction, seen) in [("egress", tunnel.egress), ("ingress", tunnel.ingress)] {
            if seen != 0 {
                page.add(&metric::PEER_TUNNEL, [&vtep, direction], seconds(now.saturating_sub(seen)));
            }
        }
    }
}

/// Now, ns on the programs' clock.
fn now() -> Option<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?;
    u64::try_from(Duration::from(now).as_nanos()).ok()
}

fn seconds(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds).as_secs_f64()
}
