//! Maps and programs beside the kernel half, which stays complete without them.

use std::collections::{BTreeMap, BTreeSet};

use flannel_common::path::Hook;
use nix::net::if_::{if_nameindex, if_nametoindex};
use tracing::warn;

use super::{ChangeError, Datapath, ObserveError, entries, kernel::KernelDatapath};
use crate::{
    backend::Objects,
    bpf::{
        AttachError, ForeignProgram, HookError, HookOfPrograms, MapFault, Pins, Programs, Tables,
        TraceMapIds, detach_all, hold,
    },
    netlink::TcSide,
    plan::{AnyEntry, AnyEntryKey, BpfState, Change, ForeignHook, HookPlace, ObjectKey, State},
    telemetry::LastMessage,
    values::Family,
};

/// The whole of a node's dataplane: the kernel half, and the maps and programs, if there are any.
///
/// What an earlier process left is recognised by its pins and filters: maps keep their entries, links and filters get
/// this process's programs in place.
pub struct EbpfDatapath {
    kernel: KernelDatapath,
    pins: Option<Pins>,
    loaded: Option<Loaded>,
    adopted: bool,
}

struct Loaded {
    programs: Programs,
    tables: Tables,
    /// Why maps could not be pinned again, as last logged.
    unpinned: LastMessage,
    /// Why programs of others cannot be seen, as last logged.
    unseen: LastMessage,
}

impl EbpfDatapath {
    /// The kernel half alone. What an earlier process pinned at `pins` is taken off the first time the
    /// state is observed, since nobody would keep its maps up to date.
    pub fn without_programs(kernel: KernelDatapath, pins: Option<Pins>) -> Self {
        Self { kernel, pins, loaded: None, adopted: false }
    }

    /// The kernel half, and `programs` with their maps.
    pub fn with_programs(kernel: KernelDatapath, pins: Pins, programs: Programs, tables: Tables) -> Self {
        Self {
            kernel,
            pins: Some(pins),
            loaded: Some(Loaded {
                programs,
                tables,
                unpinned: LastMessage::default(),
                unseen: LastMessage::default(),
            }),
            adopted: false,
        }
    }

    fn adopt(&mut self) -> Result<(), HookError> {
        match (&mut self.loaded, &self.pins) {
            (Some(loaded), _) => loaded.programs.adopt()?,
            (None, Some(pins)) => detach_all(pins)?,
            (None, None) => {}
        }
        self.adopted = true;
        Ok(())
    }
}

impl Datapath for EbpfDatapath {
    async fn observe(&mut self) -> Result<State, ObserveError> {
        let mut state = self.kernel.observe().await?;
        if !self.adopted {
            self.adopt().map_err(|error| ObserveError::Bpf(error.to_string()))?;
        }
        if let Some(loaded) = &mut self.loaded {
            state.bpf = loaded.observe().map_err(ObserveError::Bpf)?;
        }
        Ok(state)
    }

    async fn observe_bpf(&mut self) -> Result<Option<BpfState>, ObserveError> {
        self.loaded.as_mut().map(Loaded::observe).transpose().map_err(ObserveError::Bpf)
    }

    async fn observe_objects(&mut self) -> Result<Option<Objects>, ObserveError> {
        self.kernel.observe_objects().await
    }

    async fn foreign_programs(
        &mut self,
        interfaces: &BTreeSet<u32>,
    ) -> Result<BTreeMap<u32, BTreeSet<ForeignHook>>, ObserveError> {
        Ok(self.loaded.as_mut().map(|loaded| loaded.foreign_programs(interfaces)).unwrap_or_default())
    }

    async fn end_acceptance(&mut self) -> Result<(), ChangeError> {
        match &mut self.loaded {
            Some(loaded) => settled(hold::end_acceptance(&mut loaded.tables.hold)),
            None => Ok(()),
        }
    }

    fn begin_trace(&mut self) -> Result<Option<TraceMapIds>, String> {
        let none = "there are no programs: all packets take the kernel path";
        let loaded = self.loaded.as_mut().ok_or_else(|| none.to_owned())?;
        loaded.programs.begin_trace().map_err(|error| error.to_string())
    }

    fn end_trace(&mut self) -> Result<(), String> {
        match &mut self.loaded {
            Some(loaded) => loaded.programs.end_trace().map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }

    async fn apply(&mut self, changes: &[Change]) -> Vec<Result<(), ChangeError>> {
        let mut results = Vec::with_capacity(changes.len());
        // Runs of one half keep the order between the halves: the kernel path comes first and goes last.
        for run in changes.chunk_by(|a, b| a.is_bpf() == b.is_bpf()) {
            match &mut self.loaded {
                Some(loaded) if run[0].is_bpf() => results.extend(loaded.apply(run)),
                _ => results.extend(self.kernel.apply(run).await),
            }
        }
        results
    }
}

impl Loaded {
    fn observe(&mut self) -> Result<BpfState, String> {
        let text = |error: MapFault| error.to_string();
        let indexes = indexes()?;
        self.restore_pins();
        // Pods come and go: their links' pins would pile up.
        self.programs.forget_gone().map_err(|error| error.to_string())?;
        let mut hooks = BTreeSet::new();
        for (interface, hook) in self.programs.attached().map_err(|error| error.to_string())? {
            if let Some(index) = indexes.get(&interface) {
                hooks.insert((*index, hook));
            }
        }
        Ok(BpfState {
            v4: entries::read(&self.tables.v4).map_err(text)?,
            v6: entries::read(&self.tables.v6).map_err(text)?,
            hooks,
        })
    }

    /// Those that can be seen: whoever may attach programs may ask for them.
    fn foreign_programs(&mut self, interfaces: &BTreeSet<u32>) -> BTreeMap<u32, BTreeSet<ForeignHook>> {
        match self.programs.others(interfaces) {
            Ok(found) => {
                self.unseen.is_over();
                let hooks = |programs: Vec<ForeignProgram>| programs.into_iter().map(hook).collect();
                found.into_iter().map(|(ifindex, programs)| (ifindex, hooks(programs))).collect()
            }
            Err(error) => {
                if self.unseen.is_news(&error) {
                    warn!(
                        %error,
                        "cannot ask which programs of others interfaces have: packets on the fast path may skip them"
                    );
                }
                BTreeMap::new()
            }
        }
    }

    /// A map without its pin works on, so nothing else waits for one that cannot be pinned.
    fn restore_pins(&mut self) {
        match self.programs.restore_pins() {
            Ok(()) => {
                self.unpinned.is_over();
            }
            Err(error) if self.unpinned.is_news(&error) => {
                warn!(%error, "maps cannot be pinned again, so that the next agent will not find them; trying again");
            }
            Err(_) => {}
        }
    }

    fn apply(&mut self, changes: &[Change]) -> Vec<Result<(), ChangeError>> {
        let at_hooks = changes.iter().any(|change| matches!(change.key(), ObjectKey::Hook(..)));
        let names: BTreeMap<u32, String> = match if at_hooks { indexes() } else { Ok(BTreeMap::new()) } {
            Ok(indexes) => indexes.into_iter().map(|(name, index)| (index, name)).collect(),
            Err(error) => return changes.iter().map(|_| Err(ChangeError::Bpf(error.clone()))).collect(),
        };
        let mut results = Vec::with_capacity(changes.len());
        for run in changes.chunk_by(|a, b| family_of_entry(a) == family_of_entry(b)) {
            match family_of_entry(&run[0]) {
                Some(Family::V4) => {
                    results.extend(entries::put(&mut self.tables.v4, run).into_iter().map(settled))
                }
                Some(Family::V6) => {
                    results.extend(entries::put(&mut self.tables.v6, run).into_iter().map(settled))
                }
                None => results.extend(run.iter().map(|change| self.make(change, &names))),
            }
        }
        entries::forget_flows(&mut self.tables.v4, changes);
        entries::forget_flows(&mut self.tables.v6, changes);
        results
    }

    fn make(&mut self, change: &Change, names: &BTreeMap<u32, String>) -> Result<(), ChangeError> {
        match change {
            Change::DeleteEntry(AnyEntryKey::V4(key)) => settled(entries::delete(&mut self.tables.v4, key)),
            Change::DeleteEntry(AnyEntryKey::V6(key)) => settled(entries::delete(&mut self.tables.v6, key)),
            Change::Attach { ifindex, hook } => self.attach(*ifindex, *hook, names),
            Change::Detach { ifindex, hook } => self.detach(*ifindex, *hook, names).map_err(ChangeError::Bpf),
            _ => Err(ChangeError::Unsupported),
        }
    }

    fn attach(&mut self, ifindex: u32, hook: Hook, names: &BTreeMap<u32, String>) -> Result<(), ChangeError> {
        let Some(interface) = names.get(&ifindex) else {
            return Err(ChangeError::Gone(ifindex));
        };
        self.programs.attach(interface, hook).map_err(|error: AttachError| {
            // It may have gone since it was looked up, or at this moment.
            match if_nametoindex(interface.as_str()) {
                Ok(index) if index == ifindex => ChangeError::Bpf(error.to_string()),
                _ => ChangeError::Gone(ifindex),
            }
        })
    }

    fn detach(&mut self, ifindex: u32, hook: Hook, names: &BTreeMap<u32, String>) -> Result<(), String> {
        match names.get(&ifindex) {
            Some(interface) => self.programs.detach(interface, hook).map_err(|error| error.to_string()),
            // Its programs went with it.
            None => Ok(()),
        }
    }
}

/// The family of the map that an entry is written to.
fn family_of_entry(change: &Change) -> Option<Family> {
    match change {
        Change::PutEntry(AnyEntry::V4(_)) => Some(Family::V4),
        Change::PutEntry(AnyEntry::V6(_)) => Some(Family::V6),
        _ => None,
    }
}

/// The outcome of writing to a map.
fn settled(result: Result<(), MapFault>) -> Result<(), ChangeError> {
    result.map_err(|error| ChangeError::Bpf(error.to_string()))
}

/// Index of every interface there is, by name.
fn indexes() -> Result<BTreeMap<String, u32>, String> {
    let listing = if_nameindex().map_err(|error| format!("cannot list interfaces: {error}"))?;
    Ok(listing
        .into_iter()
        .filter_map(|interface| Some((interface.name().to_str().ok()?.to_owned(), interface.index())))
        .collect())
}

/// A program of somebody else's. At ingress it comes before ours: those are behind all others.
fn hook(ForeignProgram { hook, name, id }: ForeignProgram) -> ForeignHook {
    let tcx = || format!("tcx program {name} (id {id})");
    match hook {
        HookOfPrograms::Tcx(TcSide::Ingress) => ForeignHook::new(HookPlace::Ahead, tcx()),
        HookOfPrograms::Tcx(TcSide::Egress) => ForeignHook::new(HookPlace::Egress, tcx()),
        HookOfPrograms::NetkitPrimary => {
            ForeignHook::new(HookPlace::Egress, format!("netkit program (id {id})"))
        }
    }
}
