//! The maps of the programs, by name and with their types.

use aya::maps::{Map, MapType};
use flannel_common::{
    family::{V4, V6},
    layout::{
        Config, Counter, Exempt, Flow, Forwarder, Hold, Permit, PodPlace, Route, Subnet, Translation, Tunnel,
        Vtep,
    },
    map::{
        CONFIG_V4, CONFIG_V6, COUNTERS, FLOWS_V4, FLOWS_V6, FORWARDERS, HOLD, PODS_V4, PODS_V6, ROUTES_V4,
        ROUTES_V6, SNAT_EXEMPT_V4, SNAT_EXEMPT_V6, TRANSLATIONS_V4, TRANSLATIONS_V6, TUNNELS_V4, TUNNELS_V6,
        VTEPS_V4, VTEPS_V6,
    },
};

use super::{
    MapFault, Pins,
    maps::{Setting, Table},
    prefixes::{Prefixes, TrieFamily},
};
use crate::values::Family;

/// The maps the agent writes.
pub struct Tables {
    /// Those for IPv4.
    pub v4: FamilyTables<V4>,
    /// Those for IPv6.
    pub v6: FamilyTables<V6>,
    /// The pods that forward for others, by the index of their veth. The programs write it.
    pub forwarders: Table<u32, Forwarder>,
    /// Until when the programs act.
    pub hold: Setting<Hold>,
}

/// The maps for one family.
pub struct FamilyTables<F: TrieFamily> {
    /// Pod subnet to the route there.
    pub routes: Table<Subnet<F>, Route<F>>,
    /// Another node's public address to its lease.
    pub vteps: Table<F::Address, Vtep<F>>,
    /// A local pod's address to its place.
    pub pods: Table<F::Address, PodPlace>,
    /// Prefix that pods reach with their own address, to why.
    pub exempt: Prefixes<F, Exempt>,
    /// Flow that netfilter has accepted, to when. The programs write it.
    pub flows: Table<Flow<F>, Permit>,
    /// Flow that netfilter translates, to how.
    pub translations: Table<Flow<F>, Translation<F>>,
    /// Another node's public address to what the kernel path to it does. The programs write it.
    pub tunnels: Table<F::Address, Tunnel>,
    /// This node's settings.
    pub config: Setting<Config<F>>,
}

/// What a map must be for the programs to work with it.
pub(super) struct Shape {
    /// Which kind of map.
    pub(super) kind: MapType,
    /// Size of a key, bytes.
    pub(super) key: usize,
    /// Size of a value, bytes.
    pub(super) value: usize,
}

impl Shape {
    const fn of<K, V>(kind: MapType) -> Self {
        Self { kind, key: size_of::<K>(), value: size_of::<V>() }
    }
}

/// That of the map `name`; `None` for a name that none has.
pub(super) fn shape(name: &str) -> Option<Shape> {
    let of_all = || {
        Some(match name {
            FORWARDERS => Shape::of::<u32, Forwarder>(MapType::LruHash),
            HOLD => Shape::of::<u32, Hold>(MapType::Array),
            COUNTERS => Shape::of::<u32, Counter>(MapType::PerCpuArray),
            _ => return None,
        })
    };
    NAMES_V4.shape::<V4>(name).or_else(|| NAMES_V6.shape::<V6>(name)).or_else(of_all)
}

/// Names of the maps for one family.
struct Names {
    routes: &'static str,
    vteps: &'static str,
    pods: &'static str,
    exempt: &'static str,
    flows: &'static str,
    translations: &'static str,
    tunnels: &'static str,
    config: &'static str,
}

const NAMES_V4: Names = Names {
    routes: ROUTES_V4,
    vteps: VTEPS_V4,
    pods: PODS_V4,
    exempt: SNAT_EXEMPT_V4,
    flows: FLOWS_V4,
    translations: TRANSLATIONS_V4,
    tunnels: TUNNELS_V4,
    config: CONFIG_V4,
};

const NAMES_V6: Names = Names {
    routes: ROUTES_V6,
    vteps: VTEPS_V6,
    pods: PODS_V6,
    exempt: SNAT_EXEMPT_V6,
    flows: FLOWS_V6,
    translations: TRANSLATIONS_V6,
    tunnels: TUNNELS_V6,
    config: CONFIG_V6,
};

impl Names {
    fn shape<F: TrieFamily>(&self, name: &str) -> Option<Shape> {
        let shapes = [
            (self.routes, Shape::of::<Subnet<F>, Route<F>>(MapType::Hash)),
            (self.vteps, Shape::of::<F::Address, Vtep<F>>(MapType::Hash)),
            (self.pods, Shape::of::<F::Address, PodPlace>(MapType::Hash)),
            (self.exempt, Shape::of::<F::Key, Exempt>(MapType::LpmTrie)),
            (self.flows, Shape::of::<Flow<F>, Permit>(MapType::LruHash)),
            (self.translations, Shape::of::<Flow<F>, Translation<F>>(MapType::Hash)),
            (self.tunnels, Shape::of::<F::Address, Tunnel>(MapType::Hash)),
            (self.config, Shape::of::<u32, Config<F>>(MapType::Array)),
        ];
        shapes.into_iter().find(|(of, _)| *of == name).map(|(_, shape)| shape)
    }
}

impl Tables {
    /// The maps pinned at `pins`.
    ///
    /// # Errors
    /// When one of them is not there, or is not what it should be.
    pub fn open(pins: &Pins) -> Result<Self, MapFault> {
        Ok(Self {
            v4: FamilyTables::open(pins, &NAMES_V4)?,
            v6: FamilyTables::open(pins, &NAMES_V6)?,
            forwarders: Table::open(pins, FORWARDERS, Map::LruHashMap)?,
            hold: Setting::open(pins, HOLD)?,
        })
    }
}

impl<F: TrieFamily> FamilyTables<F> {
    fn open(pins: &Pins, names: &Names) -> Result<Self, MapFault> {
        Ok(Self {
            routes: Table::open(pins, names.routes, Map::HashMap)?,
            vteps: Table::open(pins, names.vteps, Map::HashMap)?,
            pods: Table::open(pins, names.pods, Map::HashMap)?,
            exempt: Prefixes::open(pins, names.exempt)?,
            flows: Table::open(pins, names.flows, Map::LruHashMap)?,
            translations: Table::open(pins, names.translations, Map::HashMap)?,
            tunnels: Table::open(pins, names.tunnels, Map::HashMap)?,
            config: Setting::open(pins, names.config)?,
        })
    }
}

impl<F: TrieFamily> FamilyTables<F> {
    /// How many entries each map has, by its name; a map that cannot be read has none.
    fn counts(&self) -> [(&'static str, usize); 7] {
        [
            (self.routes.name(), self.routes.count()),
            (self.vteps.name(), self.vteps.count()),
            (self.pods.name(), self.pods.count()),
            (self.exempt.name(), self.exempt.count()),
            (self.flows.name(), self.flows.count()),
            (self.translations.name(), self.translations.count()),
            (self.tunnels.name(), self.tunnels.count()),
        ]
    }
}

impl Tables {
    /// How many entries each map has whose entries come and go, by its name.
    pub(super) fn counts(&self) -> Vec<(&'static str, usize)> {
        [self.v4.counts(), self.v6.counts()].concat()
    }
}

/// The maps of translated flows of one family, opened once more for whoever writes them.
pub struct TranslationTables<F: TrieFamily> {
    /// As [`FamilyTables::translations`].
    pub translations: Table<Flow<F>, Translation<F>>,
    /// As [`FamilyTables::flows`].
    pub flows: Table<Flow<F>, Permit>,
    /// As [`FamilyTables::pods`].
    pub pods: Table<F::Address, PodPlace>,
}

impl<F: TrieFamily> TranslationTables<F> {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn open(pins: &Pins) -> Result<Self, MapFault> {
        let names = match F::FAMILY {
            Family::V4 => &NAMES_V4,
            Family::V6 => &NAMES_V6,
        };
        Ok(Self {
            translations: Table::open(pins, names.translations, Map::HashMap)?,
            flows: Table::open(pins, names.flows, Map::LruHashMap)?,
            pods: Table::open(pins, names.pods, Map::HashMap)?,
        })
    }
}
