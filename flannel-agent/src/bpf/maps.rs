//! Kinds of maps, typed. Those of prefixes are in [`super::prefixes`].

use std::collections::BTreeMap;

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use bytemuck::{CheckedBitPattern, NoUninit, Zeroable as _};
use nix::errno::Errno;

use super::{Pins, batch::Batches, error::chain, raw::Raw};

/// A map that could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum MapFault {
    /// The kernel's answer.
    #[error("map {map}: {}", chain(.error))]
    Kernel {
        /// Which.
        map: &'static str,
        /// Its error.
        error: MapError,
    },
    /// The map is full.
    #[error("map {map} is full")]
    Full {
        /// Which.
        map: &'static str,
    },
    /// The clock could not be read.
    #[error("the monotonic clock: {0}")]
    Clock(Errno),
}

/// A hash map of `K` to `V`.
pub struct Table<K: CheckedBitPattern, V: CheckedBitPattern> {
    name: &'static str,
    map: HashMap<MapData, Raw<K>, Raw<V>>,
    batches: Option<Batches<Raw<K>, Raw<V>>>,
}

impl<K, V> Table<K, V>
where
    K: NoUninit + CheckedBitPattern + Ord,
    V: NoUninit + CheckedBitPattern,
{
    pub(super) fn open(pins: &Pins, name: &'static str, kind: fn(MapData) -> Map) -> Result<Self, MapFault> {
        let failed = |error| MapFault::Kernel { map: name, error };
        let map = MapData::from_pin(pins.map(name)).map_err(failed)?;
        let batches = Batches::of(&map).map_err(failed)?;
        Ok(Self { name, map: HashMap::try_from(kind(map)).map_err(failed)?, batches })
    }

    /// Its name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// How many entries there are: none of a map that cannot be read.
    pub fn count(&self) -> usize {
        match self.batches.as_ref().map(Batches::count) {
            Some(Ok(count)) => count,
            // A kernel without batches.
            _ => self.map.keys().flatten().count(),
        }
    }

    /// All entries. One whose bytes are no valid key or value, which only a foreign hand can have
    /// written, is left out, so that it is written anew.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn entries(&self) -> Result<BTreeMap<K, V>, MapFault> {
        if let Some(Ok(raw)) = self.batches.as_ref().map(Batches::entries) {
            return Ok(raw
                .into_iter()
                .filter_map(|(key, value)| Some((key.value()?, value.value()?)))
                .collect());
        }
        // A kernel without batches.
        let mut entries = BTreeMap::new();
        for entry in self.map.iter() {
            let Some((key, value)) = present(self.name, entry)? else { continue };
            if let (Some(key), Some(value)) = (key.value(), value.value()) {
                entries.insert(key, value);
            }
        }
        Ok(entries)
    }

    /// The keys of the entries that are `wanted`; some may be missing, or be there twice, that change meanwhile.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn keys_of(&self, wanted: impl Fn(&K, &V) -> bool) -> Result<Vec<K>, MapFault> {
        let wanted = |key: &Raw<K>, value: &Raw<V>| {
            let (key, value) = (key.value()?, value.value()?);
            wanted(&key, &value).then_some(key)
        };
        let mut keys = Vec::new();
        let see = |some: &[Raw<K>], values: &[Raw<V>]| {
            keys.extend(some.iter().zip(values).filter_map(|(key, value)| wanted(key, value)));
        };
        if let Some(Ok(())) = self.batches.as_ref().map(|batches| batches.walk(see)) {
            return Ok(keys);
        }
        // A kernel without batches.
        keys.clear();
        for entry in self.map.iter() {
            let Some((key, value)) = present(self.name, entry)? else { continue };
            keys.extend(wanted(&key, &value));
        }
        Ok(keys)
    }

    /// Adds or replaces many entries, each in one step for the programs; one result for each.
    pub fn put_all(&mut self, entries: &[(K, V)]) -> Vec<Result<(), MapFault>> {
        let raw: Vec<_> = entries.iter().map(|(key, value)| (Raw::of(*key), Raw::of(*value))).collect();
        let mut results = Vec::with_capacity(entries.len());
        while results.len() < entries.len() {
            let written = match self.batches.as_ref().map(|batches| batches.put(&raw[results.len()..])) {
                Some(Ok(())) => entries.len() - results.len(),
                Some(Err((written, _))) => written,
                None => 0,
            };
            results.extend((0..written).map(|_| Ok(())));
            if results.len() < entries.len() {
                // Once more by itself, where an answer is one about this entry.
                let (key, value) = entries[results.len()];
                results.push(self.put(&key, &value));
            }
        }
        results
    }

    /// The value of `key`, if there is a valid one.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn get(&self, key: &K) -> Result<Option<V>, MapFault> {
        let value = present(self.name, self.map.get(&Raw::of(*key), 0))?;
        Ok(value.and_then(|value| value.value()))
    }

    /// Adds or replaces an entry, in one step for the programs.
    ///
    /// # Errors
    /// When the map is full, or cannot be written.
    pub fn put(&mut self, key: &K, value: &V) -> Result<(), MapFault> {
        let put = self.map.insert(Raw::of(*key), Raw::of(*value), 0);
        put.map_err(|error| refused(self.name, Errno::E2BIG, error))
    }

    /// Removes an entry; one that is absent is gone already.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn remove(&mut self, key: &K) -> Result<(), MapFault> {
        gone(self.name, self.map.remove(&Raw::of(*key)))
    }

    /// Removes every entry whose key `is_old`; how many.
    ///
    /// # Errors
    /// When the map cannot be read or written.
    pub fn remove_all(&mut self, is_old: impl Fn(&K) -> bool) -> Result<usize, MapFault> {
        let is_old = |key: &Raw<K>| key.value().is_some_and(|key| is_old(&key));
        let mut old = Vec::new();
        if let Some(Ok(raw)) = self.batches.as_ref().map(Batches::entries) {
            old.extend(raw.into_iter().map(|(key, _)| key).filter(is_old));
        } else {
            for key in self.map.keys() {
                // The programs remove entries too: one that goes meanwhile ends the walk, or starts it anew.
                let Some(key) = present(self.name, key)? else { break };
                old.extend(Some(key).filter(is_old));
            }
        }
        for key in &old {
            gone(self.name, self.map.remove(key))?;
        }
        Ok(old.len())
    }
}

/// An entry, unless it was removed between its key and its value.
pub(super) fn present<T>(map: &'static str, entry: Result<T, MapError>) -> Result<Option<T>, MapFault> {
    match entry {
        Ok(entry) => Ok(Some(entry)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(MapFault::Kernel { map, error }),
    }
}

/// Why an entry was not taken; `full` is the error of this kind of map when it has no room.
pub(super) fn refused(map: &'static str, full: Errno, error: MapError) -> MapFault {
    match &error {
        MapError::SyscallError(call) if call.io_error.raw_os_error() == Some(full as i32) => {
            MapFault::Full { map }
        }
        _ => MapFault::Kernel { map, error },
    }
}

/// The outcome of a removal, in which absent is as good as removed.
pub(super) fn gone(map: &'static str, removed: Result<(), MapError>) -> Result<(), MapFault> {
    match removed {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(call)) if call.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(MapFault::Kernel { map, error }),
    }
}

/// A map of one value.
pub struct Setting<V: CheckedBitPattern + 'static> {
    name: &'static str,
    map: Array<MapData, Raw<V>>,
}

impl<V: NoUninit + CheckedBitPattern + PartialEq> Setting<V> {
    pub(super) fn open(pins: &Pins, name: &'static str) -> Result<Self, MapFault> {
        let failed = |error| MapFault::Kernel { map: name, error };
        let map = MapData::from_pin(pins.map(name)).map_err(failed)?;
        Ok(Self { name, map: Array::try_from(Map::Array(map)).map_err(failed)? })
    }

    /// Its name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The value; `None` while it is all zero, as the kernel creates it, or no valid one.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn get(&self) -> Result<Option<V>, MapFault> {
        let raw = self.map.get(&0, 0).map_err(|error| MapFault::Kernel { map: self.name, error })?;
        Ok(raw.value().filter(|value| Raw::<V>::zeroed().value().as_ref() != Some(value)))
    }

    /// Makes the value all zero: none.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn clear(&mut self) -> Result<(), MapFault> {
        self.set(Raw::zeroed())
    }

    /// Replaces the value.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn put(&mut self, value: &V) -> Result<(), MapFault> {
        self.set(Raw::of(*value))
    }

    fn set(&mut self, raw: Raw<V>) -> Result<(), MapFault> {
        self.map.set(0, raw, 0).map_err(|error| MapFault::Kernel { map: self.name, error })
    }
}
