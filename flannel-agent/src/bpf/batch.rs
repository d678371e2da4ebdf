//! Many entries of a map in one system call: BPF_MAP_LOOKUP_BATCH and BPF_MAP_UPDATE_BATCH (Linux 5.6, tries 5.13).
//!
//! aya has no interface for them. Entry by entry, a map of ten thousand entries costs twenty thousand calls to read, which
//! the agent does again and again to notice what somebody took away; in batches it is a few dozen.
#![expect(unsafe_code, reason = "bpf(2) is asked for what aya does not know; its attributes are pointers")]

use std::{
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use aya::maps::{MapData, MapError};
use bytemuck::AnyBitPattern;
use nix::{errno::Errno, libc};

use super::syscall::bpf;

/// Numbers of the commands (include/uapi/linux/bpf.h, `enum bpf_cmd`).
const LOOKUP_BATCH: libc::c_long = 24;
const UPDATE_BATCH: libc::c_long = 26;
/// Entries asked for at once.
const MOST: usize = 4096;
/// Where the next batch begins: four bytes of a hash map, a key of a trie.
const PLACE: usize = 64;
/// How often a batch is asked for with more room, twice as much each time: one bucket of a hash map must fit.
const GROWTHS: usize = 8;

/// The `batch` part of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    /// Room on the way in, entries done on the way out.
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

const _: () = assert!(size_of::<Attributes>() == 56);

/// A hash map or trie whose keys lie in it as `K`, and whose values as `V`.
#[derive(Debug)]
pub(super) struct Batches<K, V>(OwnedFd, PhantomData<(K, V)>);

impl<K: AnyBitPattern, V: AnyBitPattern> Batches<K, V> {
    /// Batches of `map`; `None` if its keys and values have other sizes.
    ///
    /// # Errors
    /// When the kernel does not tell the sizes, or there are too many open files.
    pub(super) fn of(map: &MapData) -> Result<Option<Self>, MapError> {
        let info = map.info()?;
        let sizes = (info.key_size() as usize, info.value_size() as usize);
        let copied = map.fd().as_fd().try_clone_to_owned().map_err(MapError::IoError)?;
        Ok((sizes == (size_of::<K>(), size_of::<V>())).then_some(Self(copied, PhantomData)))
    }

    /// All entries. What is changed meanwhile may be missing, or be there twice.
    ///
    /// # Errors
    /// The kernel's answer. `EINVAL` or `ENOTSUPP` (524) where it has no batches for this kind of map.
    pub(super) fn entries(&self) -> Result<Vec<(K, V)>, Errno> {
        let mut found = Vec::new();
        self.walk(|keys, values| found.extend(keys.iter().copied().zip(values.iter().copied())))?;
        Ok(found)
    }

    /// How many entries there are, without keeping them.
    ///
    /// # Errors
    /// As [`Batches::entries`].
    pub(super) fn count(&self) -> Result<usize, Errno> {
        let mut found = 0;
        self.walk(|keys, _| found += keys.len())?;
        Ok(found)
    }

    /// Shows `see` all entries, many at a time.
    ///
    /// # Errors
    /// As [`Batches::entries`].
    pub(super) fn walk(&self, mut see: impl FnMut(&[K], &[V])) -> Result<(), Errno> {
        let (mut place, mut next) = ([0u8; PLACE], [0u8; PLACE]);
        let mut begun = false;
        let mut room = MOST;
        let mut growths = 0;
        let (mut keys, mut values) = (vec![K::zeroed(); room], vec![V::zeroed(); room]);
        loop {
            let mut attributes = Attributes {
                in_batch: if begun { place.as_mut_ptr() as u64 } else { 0 },
                out_batch: next.as_mut_ptr() as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: u32::try_from(room).unwrap_or(u32::MAX),
                map_fd: self.descriptor(),
                ..Attributes::default()
            };
            // SAFETY: both vectors have room for `count` keys and values of the map's sizes, which were asked for when
            // it was opened; `place` and `next` have room for any place; all of them outlive the call.
            let done = match unsafe { bpf(LOOKUP_BATCH, &mut attributes) } {
                Ok(_) => false,
                Err(Errno::ENOENT) => true,
                Err(Errno::ENOSPC) if growths < GROWTHS => {
                    growths += 1;
                    room *= 2;
                    (keys, values) = (vec![K::zeroed(); room], vec![V::zeroed(); room]);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let count = (attributes.count as usize).min(room);
            see(&keys[..count], &values[..count]);
            if done {
                return Ok(());
            }
            (place, begun) = (next, true);
        }
    }

    /// Adds or replaces entries in their order, until one is refused: then how many were written, and the kernel's
    /// answer to the next.
    ///
    /// # Errors
    /// As [`Batches::entries`].
    pub(super) fn put(&self, entries: &[(K, V)]) -> Result<(), (usize, Errno)> {
        let mut written = 0;
        for entries in entries.chunks(MOST) {
            let (keys, values): (Vec<K>, Vec<V>) = entries.iter().copied().unzip();
            let mut attributes = Attributes {
                keys: keys.as_ptr() as u64,
                values: values.as_ptr() as u64,
                count: u32::try_from(keys.len()).unwrap_or(u32::MAX),
                map_fd: self.descriptor(),
                ..Attributes::default()
            };
            // SAFETY: both vectors hold `count` keys and values of the map's sizes, which were asked for when it was
            // opened; the kernel only reads them.
            if let Err(error) = unsafe { bpf(UPDATE_BATCH, &mut attributes) } {
                // Where the kernel did not begin, it leaves the count as it was.
                let some = attributes.count as usize;
                return Err((written + if some < keys.len() { some } else { 0 }, error));
            }
            written += keys.len();
        }
        Ok(())
    }

    /// As the kernel's interface has it: one that is open is not negative.
    fn descriptor(&self) -> u32 {
        self.0.as_raw_fd().cast_unsigned()
    }
}
