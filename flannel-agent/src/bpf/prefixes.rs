//! Maps of prefixes, typed.

use std::collections::BTreeMap;

use aya::maps::{
    Map, MapData,
    lpm_trie::{Key, LpmTrie},
};
use bytemuck::{AnyBitPattern, CheckedBitPattern, NoUninit};
use flannel_common::{
    family::{V4, V6},
    layout::{AddressV6, Subnet},
};
use nix::errno::Errno;

use super::{
    MapFault, Pins,
    batch::Batches,
    maps::{gone, present, refused},
    raw::Raw,
};
use crate::values::IpFamily;

/// A family whose prefixes are keys of tries: the length, native, in four bytes, and the address.
pub trait TrieFamily: IpFamily {
    /// An address, of any alignment.
    type Octets: aya::Pod + AnyBitPattern;
    /// A key as it lies in a trie.
    type Key: AnyBitPattern;

    /// The octets of an address.
    fn octets(address: Self::Address) -> Self::Octets;
    /// The address of octets.
    fn of_octets(octets: Self::Octets) -> Self::Address;
    /// The length and the octets in a key.
    fn split(key: &Self::Key) -> (u32, Self::Octets);
}

impl TrieFamily for V4 {
    type Octets = [u8; 4];
    type Key = [[u8; 4]; 2];

    fn octets(address: Self::Address) -> Self::Octets {
        address
    }

    fn of_octets(octets: Self::Octets) -> Self::Address {
        octets
    }

    fn split([length, octets]: &Self::Key) -> (u32, Self::Octets) {
        (u32::from_ne_bytes(*length), *octets)
    }
}

impl TrieFamily for V6 {
    type Octets = [u8; 16];
    type Key = [[u8; 4]; 5];

    fn octets(address: Self::Address) -> Self::Octets {
        address.octets
    }

    fn of_octets(octets: Self::Octets) -> Self::Address {
        AddressV6::new(octets)
    }

    fn split([length, octets @ ..]: &Self::Key) -> (u32, Self::Octets) {
        (u32::from_ne_bytes(*length), bytemuck::cast(*octets))
    }
}

/// A trie of prefixes to `V`, in which the programs find the longest that holds an address.
pub struct Prefixes<F: TrieFamily, V: CheckedBitPattern> {
    name: &'static str,
    map: LpmTrie<MapData, F::Octets, Raw<V>>,
    batches: Option<Batches<F::Key, Raw<V>>>,
}

impl<F: TrieFamily, V: NoUninit + CheckedBitPattern> Prefixes<F, V> {
    pub(super) fn open(pins: &Pins, name: &'static str) -> Result<Self, MapFault> {
        const { assert!(size_of::<F::Key>() == size_of::<F::Octets>() + 4) };
        let failed = |error| MapFault::Kernel { map: name, error };
        let map = MapData::from_pin(pins.map(name)).map_err(failed)?;
        let batches = Batches::of(&map).map_err(failed)?;
        Ok(Self { name, map: LpmTrie::try_from(Map::LpmTrie(map)).map_err(failed)?, batches })
    }

    /// Its name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The value of the longest prefix that holds `address`, as a program finds it, if there is a valid one.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn holding(&self, address: F::Address) -> Result<Option<V>, MapFault> {
        let length = u32::try_from(8 * size_of::<F::Octets>()).unwrap_or(u32::MAX);
        let value = present(self.name, self.map.get(&Key::new(length, F::octets(address)), 0))?;
        Ok(value.and_then(|value| value.value()))
    }

    /// How many entries there are: none of a map that cannot be read.
    pub fn count(&self) -> usize {
        match self.batches.as_ref().map(Batches::count) {
            Some(Ok(count)) => count,
            // A kernel without batches.
            _ => self.map.keys().flatten().count(),
        }
    }

    /// All entries, as [`Table::entries`].
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn entries(&self) -> Result<BTreeMap<Subnet<F>, V>, MapFault> {
        if let Some(Ok(raw)) = self.batches.as_ref().map(Batches::entries) {
            let entries =
                raw.into_iter().filter_map(|(key, value)| Some((prefix(F::split(&key)), value.value()?)));
            return Ok(entries.collect());
        }
        let mut entries = BTreeMap::new();
        for entry in self.map.iter() {
            let Some((key, value)) = present(self.name, entry)? else { continue };
            if let Some(value) = value.value() {
                entries.insert(prefix((key.prefix_len(), key.data())), value);
            }
        }
        Ok(entries)
    }

    /// Adds or replaces an entry, in one step for the programs.
    ///
    /// # Errors
    /// When the map is full, or cannot be written.
    pub fn put(&mut self, prefix: &Subnet<F>, value: &V) -> Result<(), MapFault> {
        let put = self.map.insert(&key(prefix), Raw::of(*value), 0);
        // A full trie has another error than a full hash map (kernel/bpf/lpm_trie.c, `trie_update_elem`).
        put.map_err(|error| refused(self.name, Errno::ENOSPC, error))
    }

    /// Removes an entry; one that is absent is gone already.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn remove(&mut self, prefix: &Subnet<F>) -> Result<(), MapFault> {
        gone(self.name, self.map.remove(&key(prefix)))
    }
}

/// A prefix as the kernel wrote it.
fn prefix<F: TrieFamily>((length, octets): (u32, F::Octets)) -> Subnet<F> {
    Subnet { prefix_len: length.into(), network: F::of_octets(octets) }
}

/// A prefix as the kernel reads it.
fn key<F: TrieFamily>(prefix: &Subnet<F>) -> Key<F::Octets> {
    let length: u64 = prefix.prefix_len.into();
    // No prefix has more bits; a longer one is refused by the kernel.
    Key::new(u32::try_from(length).unwrap_or(u32::MAX), F::octets(prefix.network))
}
