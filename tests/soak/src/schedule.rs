//! Which fault comes when: the same for the same seed.

use clap::ValueEnum as _;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use crate::fault::{Fault, Kind};

/// Faults without end.
pub(crate) struct Schedule {
    /// What it is drawn from.
    pub(crate) seed: u64,
    random: StdRng,
    kinds: Vec<Kind>,
    /// Those of this turn, so that each kind comes before one comes again.
    left: Vec<Kind>,
}

impl Schedule {
    /// Of all `kinds`, or of all there are.
    pub(crate) fn new(seed: u64, kinds: &[Kind]) -> Self {
        let kinds = if kinds.is_empty() { Kind::value_variants() } else { kinds }.to_vec();
        Self { seed, random: StdRng::seed_from_u64(seed), kinds, left: Vec::new() }
    }
}

impl Iterator for Schedule {
    type Item = Fault;

    fn next(&mut self) -> Option<Fault> {
        if self.left.is_empty() {
            self.left.clone_from(&self.kinds);
        }
        let kind = *self.left.choose(&mut self.random)?;
        self.left.retain(|left| *left != kind);
        // The last node's agent is never ended: its memory is watched.
        let nodes = if kind.ends_the_agent() { 2 } else { 3 };
        let node = self.random.random_range(0..nodes);
        Some(Fault { kind, node, seconds: self.random.random_range(1..=6) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_faults_and_each_kind_comes_in_its_turn() {
        let draw = |seed| Schedule::new(seed, &[]).take(100).collect::<Vec<_>>();
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let kinds = Kind::value_variants().len();
        let mut first: Vec<_> = draw(7).into_iter().take(kinds).map(|fault| fault.kind as u8).collect();
        first.sort_unstable();
        first.dedup();
        assert_eq!(first.len(), kinds);
        assert!(draw(7).iter().all(|fault| fault.node < 2 || !fault.kind.ends_the_agent()));
    }
}
