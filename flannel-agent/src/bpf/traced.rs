//! The programs that tell of packets, in the place of the others for as long as somebody looks.
//!
//! They are the same programs, with the same maps; around each entry point they write down what they see. Links and
//! filters get one for the other in one step, so that no packet meets a hook without a program.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io, mem,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    thread,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, MapInfo},
};
use flannel_common::{
    map::{PINNED_MAPS, TRACE_FILTER, TRACE_RING, TRACE_STATE, TRACE_SUMS},
    mark::Marks,
    path::{Carrier, Hook},
};
use nix::sys::signal::SigSet;
use tracing::warn;

use super::{
    Compiled, Features, LoadError, LogLevel, PinError, Pins, Programs, TraceError,
    error::chain,
    object::{load_object, load_programs, ring_id},
};

/// The programs are loaded once at a time: meanwhile the rings are pinned.
static LOADING: Mutex<()> = Mutex::new(());

/// The kernel's ids of the maps in which the programs tell of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceMapIds {
    /// What is wanted.
    pub filter: u32,
    /// Packets.
    pub ring: u32,
    /// Packets and bytes, added up.
    pub sums: u32,
    /// What was not told.
    pub state: u32,
}

impl Programs {
    /// Puts the programs that tell of packets in the place of these, wherever they are attached. They tell nothing before
    /// the map of ids `filter` says of which. The first time they are loaded, in a thread of their own, for that takes
    /// seconds on a busy machine: until then there is `None`, and this is to be asked again.
    ///
    /// # Errors
    /// When the kernel refuses; the programs go on as they were.
    pub fn begin_trace(&mut self) -> Result<Option<TraceMapIds>, TraceError> {
        if self.resting.is_none() {
            let Some(traced) = self.loaded_traced()? else { return Ok(None) };
            let hooks = self.attached()?;
            self.resting = Some(mem::replace(&mut self.ebpf, traced));
            if let Err(reason) = self.attach_again(&hooks) {
                self.end_trace()?;
                return Err(TraceError::Attach(reason));
            }
        }
        let id = |name: &'static str| {
            let map = self.ebpf.map(name).ok_or(LoadError::Missing(name))?;
            let info = match map {
                Map::Array(map) | Map::RingBuf(map) | Map::PerCpuLruHashMap(map) | Map::PerCpuArray(map) => {
                    map.info()?
                }
                _ => return Err(LoadError::Missing(name)),
            };
            Ok::<_, LoadError>(info.id())
        };
        Ok(Some(TraceMapIds {
            filter: id(TRACE_FILTER)?,
            ring: id(TRACE_RING)?,
            sums: id(TRACE_SUMS)?,
            state: id(TRACE_STATE)?,
        }))
    }

    /// The programs that tell of packets, once they are loaded.
    fn loaded_traced(&mut self) -> Result<Option<Ebpf>, TraceError> {
        match self.loading.take() {
            None => {
                let (pins, features, read) = (self.pins.clone(), self.features().clone(), self.read.clone());
                let (level, marks, carrier) = (self.level, self.marks, self.carrier);
                self.loading =
                    Some(thread::spawn(move || load_traced(&pins, &read, level, marks, carrier, &features)));
                Ok(None)
            }
            Some(loading) if !loading.is_finished() => {
                self.loading = Some(loading);
                Ok(None)
            }
            Some(loading) => match loading.join() {
                Ok(traced) => traced.map(Some),
                Err(_) => {
                    Err(TraceError::Attach("the thread that loads the programs has panicked".to_owned()))
                }
            },
        }
    }

    /// Puts the programs back in the place of those that tell of packets.
    ///
    /// # Errors
    /// When it is not known where they are, or one cannot be put back: the reconciler does so, at its next look.
    pub fn end_trace(&mut self) -> Result<(), TraceError> {
        // Programs that are loaded and that nobody waits for go, too.
        self.loading = None;
        let Some(resting) = self.resting.take() else { return Ok(()) };
        let hooks = self.attached();
        // Those that tell are dropped last: until then links hold them.
        let _traced = mem::replace(&mut self.ebpf, resting);
        self.attach_again(&hooks?).map_err(TraceError::Attach)
    }

    fn attach_again(&mut self, hooks: &BTreeSet<(String, Hook)>) -> Result<(), String> {
        let mut refused = None;
        for (interface, hook) in hooks {
            // One whose interface has gone meanwhile needs none.
            if let Err(error) = self.attach(interface, *hook)
                && nix::net::if_::if_nametoindex(interface.as_str()).is_ok()
            {
                refused.get_or_insert(error.to_string());
            }
        }
        refused.map_or(Ok(()), Err)
    }
}

fn load_traced(
    pins: &Pins,
    read: &BTreeMap<&'static str, u32>,
    level: LogLevel,
    marks: Marks,
    carrier: Carrier,
    features: &Features,
) -> Result<Ebpf, TraceError> {
    let object = Compiled::traced().ok_or(TraceError::NotBuilt)?;
    // A signal that happens to come to this thread, of a child that has ended, would end the verifier's work (EAGAIN).
    SigSet::all()
        .thread_block()
        .map_err(|error| TraceError::Attach(format!("signals cannot be blocked: {error}")))?;
    let _alone = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut loader = EbpfLoader::new();
    for name in PINNED_MAPS {
        let pin = pins.map(name);
        let entries = MapInfo::from_pin(&pin).map_err(LoadError::from)?.max_entries();
        loader.map_pin_path(name, pin);
        loader.map_max_entries(name, entries);
    }
    let mut lent = Vec::new();
    for (name, id) in read {
        let pin = Lent::pin(pins, name, *id)?;
        loader.map_pin_path(name, pin.0.clone());
        lent.push(pin);
    }
    let mut traced = load_object(loader, &object, level, marks, carrier)?;
    drop(lent);
    for (name, id) in read {
        if ring_id(&traced, name)? != *id {
            return Err(TraceError::NotShared(name));
        }
    }
    load_programs(&mut traced, features)?;
    Ok(traced)
}

/// The pin of a ring while the programs that tell of packets are loaded, which find it by that alone. Gone when dropped:
/// whoever loads programs anew has rings of its own.
struct Lent(PathBuf);

impl Lent {
    fn pin(pins: &Pins, name: &'static str, id: u32) -> Result<Self, LoadError> {
        let path = pins.map(name);
        let refused = |action, error| PinError::Io { action, path: path.clone(), error };
        // One of an agent that was killed meanwhile.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(refused("remove", error).into());
            }
            _ => {}
        }
        MapData::from_id(id)?
            .pin(&path)
            .map_err(|error| refused("pin a map at", io::Error::other(chain(&error))))?;
        Ok(Self(path))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            warn!(pin = %self.0.display(), %error, "a pin is left behind");
        }
    }
}
