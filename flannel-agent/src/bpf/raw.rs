//! Keys and values as the kernel has them: bytes, which are a value of their type or not.
#![expect(unsafe_code, reason = "aya and bytemuck know no such thing of types with parameters")]

use bytemuck::{AnyBitPattern, CheckedBitPattern, NoUninit, Zeroable};

/// The bytes of a `T`, which a foreign hand may have made none.
#[repr(transparent)]
pub(super) struct Raw<T: CheckedBitPattern>(T::Bits);

impl<T: CheckedBitPattern> Clone for Raw<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: CheckedBitPattern> Copy for Raw<T> {}

// SAFETY: `T::Bits` is, and there is nothing else in it.
unsafe impl<T: CheckedBitPattern> Zeroable for Raw<T> {}

// SAFETY: as above.
unsafe impl<T: CheckedBitPattern + 'static> AnyBitPattern for Raw<T> {}

// SAFETY: whatever the kernel writes is one: it is `AnyBitPattern`. What the kernel reads is initialised: one is made
// of zeros, of what the kernel wrote, or of a `T`, which is `NoUninit`.
unsafe impl<T: CheckedBitPattern + 'static> aya::Pod for Raw<T> {}

impl<T: CheckedBitPattern> Raw<T> {
    /// Those of `value`.
    pub(super) fn of(value: T) -> Self
    where
        T: NoUninit,
    {
        Self(bytemuck::cast(value))
    }

    /// What they are, if anything.
    pub(super) fn value(&self) -> Option<T> {
        if !T::is_valid_bit_pattern(&self.0) {
            return None;
        }
        // SAFETY: `T` has the layout of its bits, and these are of a valid one.
        Some(unsafe { std::ptr::from_ref(&self.0).cast::<T>().read() })
    }
}
