//! The maps, typed. The only file that names aya's map types.

use std::{collections::BTreeMap, marker::PhantomData};

use aya::maps::{
    Array, HashMap, Map, MapData, MapError,
    lpm_trie::{Key, LpmTrie},
};
use bytemuck::{CheckedBitPattern, NoUninit};
use flannel_common::{
    layout::{
        AddressV6, Config, ConfigV6, Exempt, FlowV4, FlowV6, Forwarder, Hold, PeerV4, PeerV6, Permit,
        PodPlace, SubnetV4, SubnetV6, Tunnel, VtepV4, VtepV6,
    },
    map::{
        CONFIG, CONFIG_V6, FLOWS_V4, FLOWS_V6, FORWARDERS, HOLD, PODS_V4, PODS_V6, ROUTES_V4, ROUTES_V6,
        SNAT_EXEMPT_V4, SNAT_EXEMPT_V6, TUNNELS_V4, TUNNELS_V6, VTEPS, VTEPS_V6,
    },
};

use nix::errno::Errno;

use super::{Pins, batch::Batches, error::chain};

/// A map that could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum MapFault {
    /// The kernel's answer.
    #[error("map {map}: {}", chain(.error))]
    Kernel {
        /// Which.
        map: &'static str,
        /// What it said.
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

/// The maps the agent writes.
pub struct Tables {
    /// Pod subnet to peer.
    pub routes: Table<SubnetV4, PeerV4, 8, 40>,
    /// A peer's public address to its lease.
    pub vteps: Table<[u8; 4], VtepV4, 4, 8>,
    /// A local pod's address to its place.
    pub pods: Table<[u8; 4], PodPlace, 4, 16>,
    /// Prefix that pods reach with their own address, to why.
    pub exempt: Prefixes<SubnetV4, Exempt, 4, 8, 4>,
    /// Flow that netfilter has accepted, to when. The programs write it.
    pub flows: Table<FlowV4, Permit, 16, 24>,
    /// `tunnels_v4`.
    pub tunnels: Table<[u8; 4], Tunnel, 4, 32>,
    /// The pods that forward for others, by the index of their veth. The programs write it.
    pub forwarders: Table<u32, Forwarder, 4, 8>,
    /// This node's settings.
    pub config: Setting<Config, 68>,
    /// Until when the programs act.
    pub hold: Setting<Hold, 8>,
    /// Those for IPv6.
    pub v6: TablesV6,
}

/// The maps with `_v6` in their names.
pub struct TablesV6 {
    /// Pod subnet to peer.
    pub routes: Table<SubnetV6, PeerV6, 24, 64>,
    /// A peer's public address to its lease.
    pub vteps: Table<AddressV6, VtepV6, 16, 24>,
    /// A local pod's address to its place.
    pub pods: Table<AddressV6, PodPlace, 16, 16>,
    /// Prefix that pods reach with their own address, to why.
    pub exempt: Prefixes<SubnetV6, Exempt, 16, 20, 4>,
    /// Flow that netfilter has accepted, to when. The programs write it.
    pub flows: Table<FlowV6, Permit, 40, 24>,
    /// `tunnels_v6`.
    pub tunnels: Table<AddressV6, Tunnel, 16, 32>,
    /// This node's settings.
    pub config: Setting<ConfigV6, 112>,
}

impl Tables {
    /// The maps pinned at `pins`.
    ///
    /// # Errors
    /// When one of them is not there, or is not what it should be.
    pub fn open(pins: &Pins) -> Result<Self, MapFault> {
        Ok(Self {
            routes: Table::open(pins, ROUTES_V4, Map::HashMap)?,
            vteps: Table::open(pins, VTEPS, Map::HashMap)?,
            pods: Table::open(pins, PODS_V4, Map::HashMap)?,
            flows: Table::open(pins, FLOWS_V4, Map::LruHashMap)?,
            tunnels: Table::open(pins, TUNNELS_V4, Map::HashMap)?,
            forwarders: Table::open(pins, FORWARDERS, Map::LruHashMap)?,
            exempt: Prefixes::open(pins, SNAT_EXEMPT_V4)?,
            config: Setting::open(pins, CONFIG)?,
            hold: Setting::open(pins, HOLD)?,
            v6: TablesV6 {
                routes: Table::open(pins, ROUTES_V6, Map::HashMap)?,
                vteps: Table::open(pins, VTEPS_V6, Map::HashMap)?,
                pods: Table::open(pins, PODS_V6, Map::HashMap)?,
                flows: Table::open(pins, FLOWS_V6, Map::LruHashMap)?,
                tunnels: Table::open(pins, TUNNELS_V6, Map::HashMap)?,
                exempt: Prefixes::open(pins, SNAT_EXEMPT_V6)?,
                config: Setting::open(pins, CONFIG_V6)?,
            },
        })
    }
}

/// A hash map of `K` (of `KN` bytes) to `V` (of `VN` bytes).
pub struct Table<K, V, const KN: usize, const VN: usize> {
    name: &'static str,
    map: HashMap<MapData, [u8; KN], [u8; VN]>,
    batches: Option<Batches<KN, VN>>,
    types: PhantomData<(K, V)>,
}

impl<K, V, const KN: usize, const VN: usize> Table<K, V, KN, VN>
where
    K: NoUninit + CheckedBitPattern + Ord,
    V: NoUninit + CheckedBitPattern,
{
    fn open(pins: &Pins, name: &'static str, kind: fn(MapData) -> Map) -> Result<Self, MapFault> {
        const { assert!(size_of::<K>() == KN && size_of::<V>() == VN) };
        let failed = |error| MapFault::Kernel { map: name, error };
        let map = MapData::from_pin(pins.map(name)).map_err(failed)?;
        let batches = Batches::of(&map).map_err(failed)?;
        Ok(Self { name, map: HashMap::try_from(kind(map)).map_err(failed)?, batches, types: PhantomData })
    }

    /// All entries. One whose bytes are no valid key or value, which only a foreign hand can have
    /// written, is left out, so that it is written anew.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn entries(&self) -> Result<BTreeMap<K, V>, MapFault> {
        if let Some(Ok(raw)) = self.batches.as_ref().map(Batches::entries) {
            return Ok(raw.into_iter().filter_map(|(key, value)| valid(&key, &value)).collect());
        }
        // A kernel without batches.
        let mut entries = BTreeMap::new();
        for entry in self.map.iter() {
            let Some((key, value)) = present(self.name, entry)? else { continue };
            if let Some((key, value)) = valid(&key, &value) {
                entries.insert(key, value);
            }
        }
        Ok(entries)
    }

    /// Adds or replaces many entries, each in one step for the programs; one result for each.
    pub fn put_all(&mut self, entries: &[(K, V)]) -> Vec<Result<(), MapFault>> {
        let raw: Vec<_> =
            entries.iter().map(|(key, value)| (bytes::<K, KN>(key), bytes::<V, VN>(value))).collect();
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
        let value = present(self.name, self.map.get(&bytes::<K, KN>(key), 0))?;
        Ok(value.and_then(|value| bytemuck::checked::try_pod_read_unaligned(&value).ok()))
    }

    /// Adds or replaces an entry, in one step for the programs.
    ///
    /// # Errors
    /// When the map is full, or cannot be written.
    pub fn put(&mut self, key: &K, value: &V) -> Result<(), MapFault> {
        let put = self.map.insert(bytes::<K, KN>(key), bytes::<V, VN>(value), 0);
        put.map_err(|error| refused(self.name, Errno::E2BIG, error))
    }

    /// Removes an entry; one that is absent is gone already.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn remove(&mut self, key: &K) -> Result<(), MapFault> {
        gone(self.name, self.map.remove(&bytes::<K, KN>(key)))
    }
}

impl<K, V, const KN: usize, const VN: usize> Table<K, V, KN, VN>
where
    K: NoUninit + CheckedBitPattern + Ord,
{
    /// Removes every entry whose key `is_old`; how many.
    ///
    /// # Errors
    /// When the map cannot be read or written.
    pub fn remove_all(&mut self, is_old: impl Fn(&K) -> bool) -> Result<usize, MapFault> {
        let is_old =
            |key: &[u8; KN]| bytemuck::checked::try_pod_read_unaligned(key).is_ok_and(|key| is_old(&key));
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

/// A prefix as tries have it.
pub trait Prefix<const AN: usize>: Ord {
    /// The prefix of `prefix_len` bits of `network`.
    fn of_key(prefix_len: u32, network: [u8; AN]) -> Self;
    /// Its length in bits, and the network.
    fn to_key(&self) -> Key<[u8; AN]>;
}

impl Prefix<4> for SubnetV4 {
    fn of_key(prefix_len: u32, network: [u8; 4]) -> Self {
        Self { prefix_len, network }
    }

    fn to_key(&self) -> Key<[u8; 4]> {
        Key::new(self.prefix_len, self.network)
    }
}

impl Prefix<16> for SubnetV6 {
    fn of_key(prefix_len: u32, network: [u8; 16]) -> Self {
        Self { prefix_len: prefix_len.into(), network: AddressV6::new(network) }
    }

    fn to_key(&self) -> Key<[u8; 16]> {
        // No prefix has more bits; one that says so is refused by the kernel.
        Key::new(u32::try_from(self.prefix_len).unwrap_or(u32::MAX), self.network.octets)
    }
}

/// A trie of prefixes `P` of addresses of `AN` bytes, which makes keys of `KN`, to `V` (of `VN` bytes), in which the
/// programs find the longest that holds an address.
pub struct Prefixes<P, V, const AN: usize, const KN: usize, const VN: usize> {
    name: &'static str,
    map: LpmTrie<MapData, [u8; AN], [u8; VN]>,
    batches: Option<Batches<KN, VN>>,
    types: PhantomData<(P, V)>,
}

impl<P: Prefix<AN>, V: NoUninit + CheckedBitPattern, const AN: usize, const KN: usize, const VN: usize>
    Prefixes<P, V, AN, KN, VN>
{
    fn open(pins: &Pins, name: &'static str) -> Result<Self, MapFault> {
        const { assert!(size_of::<V>() == VN && KN == AN + 4) };
        let failed = |error| MapFault::Kernel { map: name, error };
        let map = MapData::from_pin(pins.map(name)).map_err(failed)?;
        let batches = Batches::of(&map).map_err(failed)?;
        let map = LpmTrie::try_from(Map::LpmTrie(map)).map_err(failed)?;
        Ok(Self { name, map, batches, types: PhantomData })
    }

    /// All entries, as [`Table::entries`].
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn entries(&self) -> Result<BTreeMap<P, V>, MapFault> {
        if let Some(Ok(raw)) = self.batches.as_ref().map(Batches::entries) {
            let entries = raw.into_iter().filter_map(|(key, value)| {
                // A key is the length, native, and the address.
                let (prefix_len, network) = key.split_first_chunk()?;
                let prefix = P::of_key(u32::from_ne_bytes(*prefix_len), network.try_into().ok()?);
                Some((prefix, bytemuck::checked::try_pod_read_unaligned(&value).ok()?))
            });
            return Ok(entries.collect());
        }
        let mut entries = BTreeMap::new();
        for entry in self.map.iter() {
            let Some((key, value)) = present(self.name, entry)? else { continue };
            if let Ok(value) = bytemuck::checked::try_pod_read_unaligned(&value) {
                entries.insert(P::of_key(key.prefix_len(), key.data()), value);
            }
        }
        Ok(entries)
    }

    /// Adds or replaces an entry, in one step for the programs.
    ///
    /// # Errors
    /// When the map is full, or cannot be written.
    pub fn put(&mut self, prefix: &P, value: &V) -> Result<(), MapFault> {
        let put = self.map.insert(&prefix.to_key(), bytes::<V, VN>(value), 0);
        // A trie says so in another word than a hash map (kernel/bpf/lpm_trie.c, `trie_update_elem`).
        put.map_err(|error| refused(self.name, Errno::ENOSPC, error))
    }

    /// Removes an entry; one that is absent is gone already.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn remove(&mut self, prefix: &P) -> Result<(), MapFault> {
        gone(self.name, self.map.remove(&prefix.to_key()))
    }
}

/// An entry of a map, unless it is none.
fn valid<K: CheckedBitPattern, V: CheckedBitPattern>(key: &[u8], value: &[u8]) -> Option<(K, V)> {
    Some((
        bytemuck::checked::try_pod_read_unaligned(key).ok()?,
        bytemuck::checked::try_pod_read_unaligned(value).ok()?,
    ))
}

/// An entry, unless it was removed between its key and its value.
fn present<T>(map: &'static str, entry: Result<T, MapError>) -> Result<Option<T>, MapFault> {
    match entry {
        Ok(entry) => Ok(Some(entry)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(MapFault::Kernel { map, error }),
    }
}

/// Why an entry was not taken; `full` is what this kind of map says when it has no room.
fn refused(map: &'static str, full: Errno, error: MapError) -> MapFault {
    match &error {
        MapError::SyscallError(call) if call.io_error.raw_os_error() == Some(full as i32) => {
            MapFault::Full { map }
        }
        _ => MapFault::Kernel { map, error },
    }
}

/// The outcome of a removal, in which absent is as good as removed.
fn gone(map: &'static str, removed: Result<(), MapError>) -> Result<(), MapFault> {
    match removed {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(call)) if call.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(MapFault::Kernel { map, error }),
    }
}

/// A map of one value.
pub struct Setting<V, const VN: usize> {
    name: &'static str,
    map: Array<MapData, [u8; VN]>,
    types: PhantomData<V>,
}

impl<V: NoUninit + CheckedBitPattern, const VN: usize> Setting<V, VN> {
    pub(super) fn open(pins: &Pins, name: &'static str) -> Result<Self, MapFault> {
        const { assert!(size_of::<V>() == VN) };
        let failed = |error| MapFault::Kernel { map: name, error };
        let map = MapData::from_pin(pins.map(name)).map_err(failed)?;
        Ok(Self { name, map: Array::try_from(Map::Array(map)).map_err(failed)?, types: PhantomData })
    }

    /// The value; `None` while it is all zero, as the kernel creates it, or no valid one.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn get(&self) -> Result<Option<V>, MapFault> {
        let bytes = self.map.get(&0, 0).map_err(|error| MapFault::Kernel { map: self.name, error })?;
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        Ok(bytemuck::checked::try_pod_read_unaligned(&bytes).ok())
    }

    /// Makes the value all zero: none.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn clear(&mut self) -> Result<(), MapFault> {
        self.map.set(0, [0; VN], 0).map_err(|error| MapFault::Kernel { map: self.name, error })
    }

    /// Replaces the value.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn put(&mut self, value: &V) -> Result<(), MapFault> {
        self.map.set(0, bytes::<V, VN>(value), 0).map_err(|error| MapFault::Kernel { map: self.name, error })
    }
}

fn bytes<T: NoUninit, const N: usize>(value: &T) -> [u8; N] {
    let mut all = [0; N];
    all.copy_from_slice(bytemuck::bytes_of(value));
    all
}
