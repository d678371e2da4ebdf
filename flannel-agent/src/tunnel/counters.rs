//! How many packets went which way, and why others did not.

use std::sync::atomic::{AtomicU64, Ordering};

use flannel_common::reason::{COUNTERS, Direction, Reason, slot};

/// Packets and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// How many.
    pub packets: u64,
    /// Bytes of their inner packets.
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct Cell {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Cell {
    fn add(&self, packets: u64, bytes: u64) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn get(&self) -> Count {
        Count { packets: self.packets.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

/// Counts of the tunnel since it was made. An aggregate counts as its pieces.
#[derive(Debug)]
pub struct Counters {
    /// By direction: what was sent to other nodes, what was given to the kernel.
    carried: [Cell; 2],
    /// Slots as those of the programs' counters.
    reasons: Vec<Cell>,
}

impl Counters {
    pub(super) fn new() -> Self {
        let reasons = (0..COUNTERS).map(|_| Cell::default()).collect();
        Self { carried: Default::default(), reasons }
    }

    pub(super) fn carry(&self, direction: Direction, packets: u64, bytes: u64) {
        self.carried[direction as usize].add(packets, bytes);
    }

    pub(super) fn note(&self, direction: Direction, reason: Reason, bytes: usize) {
        if let Some(cell) = self.reasons.get(slot(direction, reason) as usize) {
            cell.add(1, bytes as u64);
        }
    }

    /// What was carried in a direction.
    pub fn carried(&self, direction: Direction) -> Count {
        self.carried[direction as usize].get()
    }

    /// What was not carried for `reason`, or carried though that was found with it: what
    /// [`Reason::UnknownVtep`] and [`Reason::InnerSource`] are noted of is given to the kernel all the same.
    pub fn noted(&self, direction: Direction, reason: Reason) -> Count {
        self.reasons.get(slot(direction, reason) as usize).map(Cell::get).unwrap_or_default()
    }
}
