//! Maps and programs over the kernel half: what overtakes it, never what replaces it.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem::discriminant,
};

use flannel_common::{layout::AddressV6, path::Hook};
use nix::net::if_::{if_nameindex, if_nametoindex};
use tracing::{debug, warn};

use super::{ChangeError, Datapath, ObserveError, kernel::KernelDatapath};
use crate::{
    bpf::{AttachError, ForeignProgram, HookError, MapFault, Pins, Programs, Tables, detach_all},
    netlink::TcSide,
    plan::{BpfState, BpfStateV6, Change, EntryV6, ForeignHook, HookPlace, KeyV6, Slot, State},
    telemetry::Said,
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
    /// Why maps could not be pinned again, as it was last said.
    unpinned: Said,
    /// Why programs of others cannot be seen, as it was last said.
    unseen: Said,
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
            loaded: Some(Loaded { programs, tables, unpinned: Said::default(), unseen: Said::default() }),
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

    async fn foreign_programs(
        &mut self,
        interfaces: &BTreeSet<u32>,
    ) -> Result<BTreeMap<u32, BTreeSet<ForeignHook>>, ObserveError> {
        Ok(self.loaded.as_mut().map(|loaded| loaded.foreign_programs(interfaces)).unwrap_or_default())
    }

    async fn apply(&mut self, changes: &[Change]) -> Vec<Result<(), ChangeError>> {
        let mut results = Vec::with_capacity(changes.len());
        // Runs of one half keep the order between the halves: the kernel's way is there first, goes last.
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
            config: self.tables.config.get().map_err(text)?,
            peers: self.tables.routes.entries().map_err(text)?,
            vteps: self.tables.vteps.entries().map_err(text)?,
            pods: self.tables.pods.entries().map_err(text)?,
            exempt: self.tables.exempt.entries().map_err(text)?,
            v6: BpfStateV6 {
                config: self.tables.v6.config.get().map_err(text)?,
                peers: self.tables.v6.routes.entries().map_err(text)?,
                vteps: self.tables.v6.vteps.entries().map_err(text)?,
                pods: self.tables.v6.pods.entries().map_err(text)?,
                exempt: self.tables.v6.exempt.entries().map_err(text)?,
            },
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
                        "cannot ask which tcx programs of others there are: packets on the fast path may pass them by"
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
        let at_hooks = changes.iter().any(|change| matches!(change.slot(), Slot::Hook(..)));
        let names: BTreeMap<u32, String> = match if at_hooks { indexes() } else { Ok(BTreeMap::new()) } {
            Ok(indexes) => indexes.into_iter().map(|(name, index)| (index, name)).collect(),
            Err(error) => return changes.iter().map(|_| Err(ChangeError::Bpf(error.clone()))).collect(),
        };
        let mut results = Vec::with_capacity(changes.len());
        for run in changes.chunk_by(|a, b| discriminant(a) == discriminant(b)) {
            match self.put_all(run) {
                Some(put) => results.extend(put),
                None => results.extend(run.iter().map(|change| self.make(change, &names))),
            }
        }
        let moved: BTreeSet<[u8; 4]> = changes
            .iter()
            .filter_map(|change| match change {
                Change::PutPod { address, .. } | Change::DeletePod(address) => Some(*address),
                _ => None,
            })
            .collect();
        let moved_v6: BTreeSet<AddressV6> = changes
            .iter()
            .filter_map(|change| match change.slot() {
                Slot::MapV6(KeyV6::Pod(address)) => Some(address),
                _ => None,
            })
            .collect();
        self.forget_flows(&moved, &moved_v6);
        results
    }

    /// Writes entries of one of the maps that hold many, at once; `None` if `run` is of another kind.
    fn put_all(&mut self, run: &[Change]) -> Option<Vec<Result<(), ChangeError>>> {
        let results = match run.first()? {
            Change::PutPeer { .. } => {
                let entry = |change: &Change| match *change {
                    Change::PutPeer { subnet, peer } => Some((subnet, peer)),
                    _ => None,
                };
                self.tables.routes.put_all(&run.iter().filter_map(entry).collect::<Vec<_>>())
            }
            Change::PutVtep { .. } => {
                let entry = |change: &Change| match *change {
                    Change::PutVtep { address, vtep } => Some((address, vtep)),
                    _ => None,
                };
                self.tables.vteps.put_all(&run.iter().filter_map(entry).collect::<Vec<_>>())
            }
            _ => return None,
        };
        let text = |result: Result<(), MapFault>| result.map_err(|error| ChangeError::Bpf(error.to_string()));
        Some(results.into_iter().map(text).collect())
    }

    /// Removes the flows of pods that are no longer where they were. None of them lets a packet skip the stack
    /// any more, since they name another veth, so what cannot be removed only takes up room until the map
    /// needs it.
    fn forget_flows(&mut self, pods: &BTreeSet<[u8; 4]>, pods_v6: &BTreeSet<AddressV6>) {
        let tables = &mut self.tables;
        let removed = [
            (!pods.is_empty()).then(|| tables.flows.remove_all(|flow| pods.contains(&flow.local))),
            (!pods_v6.is_empty()).then(|| tables.v6.flows.remove_all(|flow| pods_v6.contains(&flow.local))),
        ];
        for removed in removed.into_iter().flatten() {
            match removed {
                Ok(0) => {}
                Ok(flows) => debug!(flows, "forgot flows of pods that are gone"),
                Err(error) => debug!(%error, "flows of pods that are gone stay until their room is needed"),
            }
        }
    }

    fn make(&mut self, change: &Change, names: &BTreeMap<u32, String>) -> Result<(), ChangeError> {
        let tables = &mut self.tables;
        match change {
            Change::PutBpfConfig(config) => tables.config.put(config),
            Change::DeleteBpfConfig => tables.config.clear(),
            Change::PutPeer { subnet, peer } => tables.routes.put(subnet, peer),
            Change::DeletePeer(subnet) => tables.routes.remove(subnet),
            Change::PutVtep { address, vtep } => tables.vteps.put(address, vtep),
            Change::DeleteVtep(address) => {
                tables.vteps.remove(address).and_then(|()| tables.tunnels.remove(address))
            }
            Change::PutPod { address, pod } => tables.pods.put(address, pod),
            Change::DeletePod(address) => tables.pods.remove(address),
            Change::PutExempt { prefix, why } => tables.exempt.put(prefix, why),
            Change::DeleteExempt(prefix) => tables.exempt.remove(prefix),
            Change::PutV6(entry) => match entry {
                EntryV6::Config(config) => tables.v6.config.put(config),
                EntryV6::Peer(subnet, peer) => tables.v6.routes.put(subnet, peer),
                EntryV6::Vtep(address, vtep) => tables.v6.vteps.put(address, vtep),
                EntryV6::Pod(address, pod) => tables.v6.pods.put(address, pod),
                EntryV6::Exempt(prefix, why) => tables.v6.exempt.put(prefix, why),
            },
            Change::DeleteV6(key) => match key {
                KeyV6::Config => tables.v6.config.clear(),
                KeyV6::Peer(subnet) => tables.v6.routes.remove(subnet),
                KeyV6::Vtep(address) => {
                    tables.v6.vteps.remove(address).and_then(|()| tables.v6.tunnels.remove(address))
                }
                KeyV6::Pod(address) => tables.v6.pods.remove(address),
                KeyV6::Exempt(prefix) => tables.v6.exempt.remove(prefix),
            },
            Change::Attach { ifindex, hook } => return self.attach(*ifindex, *hook, names),
            Change::Detach { ifindex, hook } => {
                return self.detach(*ifindex, *hook, names).map_err(ChangeError::Bpf);
            }
            _ => return Err(ChangeError::Unsupported),
        }
        .map_err(|error| ChangeError::Bpf(error.to_string()))
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

/// Index of every interface there is, by name.
fn indexes() -> Result<BTreeMap<String, u32>, String> {
    let listing = if_nameindex().map_err(|error| format!("cannot list interfaces: {error}"))?;
    Ok(listing
        .into_iter()
        .filter_map(|interface| Some((interface.name().to_str().ok()?.to_owned(), interface.index())))
        .collect())
}

/// A program of somebody else's. At ingress it comes before ours: those are behind all others.
fn hook(ForeignProgram { side, name, id }: ForeignProgram) -> ForeignHook {
    let place = match side {
        TcSide::Ingress => HookPlace::Ahead,
        TcSide::Egress => HookPlace::Egress,
    };
    ForeignHook::new(place, format!("tcx program {name} (id {id})"))
}
