//! The programs' clock, and the world's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::{
    errno::Errno,
    time::{ClockId, clock_gettime},
};

use crate::values::with_nanoseconds;

/// When the programs' clock was zero, since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Duration);

impl Clock {
    /// As it is now: a step of the world's clock shows in what is read later.
    ///
    /// # Errors
    /// When the programs' clock cannot be read.
    pub fn now() -> Result<Self, Errno> {
        let monotonic = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
        let world = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self(world.saturating_sub(monotonic)))
    }

    #[cfg(test)]
    pub(super) const fn starting_at(zero: Duration) -> Self {
        Self(zero)
    }

    /// The time of the world, in UTC.
    pub fn world() -> String {
        with_nanoseconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    /// A time of the programs, in UTC.
    pub fn utc(&self, monotonic: Duration) -> String {
        with_nanoseconds(self.0 + monotonic)
    }
}
