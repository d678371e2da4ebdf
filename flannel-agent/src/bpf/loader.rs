//! The programs, through the verifier and into the kernel.

use std::{collections::BTreeMap, io, thread::JoinHandle};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{MapData, MapInfo},
    programs::Program,
};
use flannel_common::{
    map::PINNED_MAPS,
    mark::Marks,
    path::{Carrier, Hook},
};
use tracing::{info, warn};

use super::{
    Asked, Attachment, BrokenOff, Compiled, Feature, Features, ForgottenFlows, LoadError, LogLevel, MapSizes,
    PinError, Pins, PodSockets, TcAttach, TraceError,
    error::chain,
    log,
    object::{load_object, load_programs, program, read_maps},
    tables,
};

/// The loaded programs.
pub struct Programs {
    pub(super) ebpf: Ebpf,
    pub(super) pins: Pins,
    /// The kernel's id of each pinned map.
    maps: BTreeMap<&'static str, u32>,
    features: Features,
    /// By what the programs of tc are attached.
    pub(super) attachment: Attachment,
    /// The kernel's id of each ring that the agent reads.
    pub(super) read: BTreeMap<&'static str, u32>,
    /// How much they log.
    pub(super) level: LogLevel,
    /// What they put packets into.
    pub(super) carrier: Carrier,
    /// The bits of packets' marks that they use.
    pub(super) marks: Marks,
    /// The programs whose place those have that tell of packets, while somebody looks.
    pub(super) resting: Option<Ebpf>,
    /// Those, while they are being loaded.
    pub(super) loading: Option<JoinHandle<Result<Ebpf, TraceError>>>,
}

/// What the kernel says of a loaded program.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ProgramSummary {
    /// Name, as in `bpftool prog list`.
    pub name: &'static str,
    /// Kernel's id.
    pub id: u32,
    /// Instructions the verifier walked through.
    pub verified_instructions: Option<u32>,
    /// Size after the kernel's rewrites, bytes.
    pub translated_bytes: Option<u32>,
}

impl Programs {
    /// [`Programs::load_sized`] for VXLAN, with room for everything and the marks of which an operator says nothing.
    ///
    /// # Errors
    /// As those of [`Programs::load_sized`].
    pub fn load(pins: Pins, level: LogLevel) -> Result<Self, LoadError> {
        Self::load_sized(pins, level, MapSizes::default(), Marks::DEFAULT, Carrier::Vxlan)
    }

    /// Loads all programs, which use `marks` and put packets into what `carrier` says. Maps that an earlier agent
    /// pinned are adopted with their entries if they have the sizes wanted, the others are created and pinned. Nothing
    /// is attached.
    ///
    /// # Errors
    /// When the kernel, or the file system, refuses a part.
    pub fn load_sized(
        pins: Pins,
        level: LogLevel,
        sizes: MapSizes,
        marks: Marks,
        carrier: Carrier,
    ) -> Result<Self, LoadError> {
        Pins::make(&pins.maps())?;
        Pins::make(&pins.links())?;
        let mut loader = EbpfLoader::new();
        for name in PINNED_MAPS {
            loader.map_pin_path(name, pins.map(name));
            if let Some(entries) = sizes.entries(name) {
                drop_foreign(&pins, name, entries)?;
                loader.map_max_entries(name, entries);
            }
        }
        loader.verifier_log_level(VerifierLogLevel::STATS);
        let mut ebpf = load_object(loader, &Compiled::programs(), level, marks, carrier)?;
        let features = Features::of(&mut ebpf);
        load_programs(&mut ebpf, &features)?;
        let mut maps = BTreeMap::new();
        for name in PINNED_MAPS {
            maps.insert(name, MapInfo::from_pin(pins.map(name))?.id());
        }
        // Without either nothing can be attached, as `grant` says; the attempt will say why.
        let attachment = features.attachment(TcAttach::Auto).unwrap_or(Attachment::Clsact);
        let read = read_maps(&ebpf)?;
        Ok(Self {
            ebpf,
            pins,
            maps,
            features,
            attachment,
            read,
            level,
            carrier,
            marks,
            resting: None,
            loading: None,
        })
    }

    /// Attaches programs of tc by what `choice` says, from now on; unless that, they are attached by the best there
    /// is.
    ///
    /// # Errors
    /// What the kernel lacks for it.
    pub fn attach_by(&mut self, choice: TcAttach) -> Result<Attachment, Feature> {
        self.attachment = self.features.attachment(choice)?;
        Ok(self.attachment)
    }

    /// What this kernel does for the programs.
    pub const fn features(&self) -> &Features {
        &self.features
    }

    /// Pins again every map whose pin is gone, or stands for another map: the programs go on with theirs,
    /// but nobody else could find it, the next agent included.
    ///
    /// # Errors
    /// When a map cannot be pinned.
    pub fn restore_pins(&self) -> Result<(), LoadError> {
        for (name, id) in &self.maps {
            let path = self.pins.map(name);
            if MapInfo::from_pin(&path).is_ok_and(|pinned| pinned.id() == *id) {
                continue;
            }
            let Some(map) = self.ebpf.map(name) else { continue };
            Pins::make(&self.pins.maps())?;
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(PinError::Io { action: "remove", path, error }.into());
                }
                _ => {}
            }
            map.pin(&path).map_err(|error| PinError::Io {
                action: "pin a map at",
                path: path.clone(),
                error: io::Error::other(chain(&error)),
            })?;
            info!(pin = %path.display(), "restored: pin map {name}");
        }
        Ok(())
    }

    /// What the programs ask the agent; once.
    ///
    /// # Errors
    /// When it was taken already, or its memory cannot be mapped.
    pub fn asked(&mut self) -> Result<Asked, LoadError> {
        Asked::of(&mut self.ebpf)
    }

    /// The flows that are broken off while they are fast; once. Needs a Tokio runtime.
    ///
    /// # Errors
    /// As of [`Self::asked`], or there is no way to wait for them.
    pub fn broken_off(&mut self) -> Result<BrokenOff, LoadError> {
        BrokenOff::of(&mut self.ebpf)
    }

    /// What asks the sockets of pods.
    ///
    /// # Errors
    /// When the kernel refuses its program.
    pub fn pod_sockets(&mut self) -> Result<PodSockets, LoadError> {
        PodSockets::of(&mut self.ebpf)
    }

    /// What forgets flows with their entries of connection tracking.
    ///
    /// # Errors
    /// When the kernel refuses its program.
    pub fn forgotten_flows(&mut self) -> Result<ForgottenFlows, LoadError> {
        ForgottenFlows::of(&mut self.ebpf)
    }

    /// Forwards what the programs log to `tracing`, for as long as the runtime lives. Does nothing at
    /// [`LogLevel::Off`].
    pub fn forward_log(&mut self, level: LogLevel) {
        log::forward(&mut self.ebpf, level);
    }

    /// The loaded program of `hook`, to be run on packets of one's own (BPF_PROG_TEST_RUN).
    ///
    /// # Errors
    /// When the object has no such program.
    pub fn program(&mut self, hook: Hook) -> Result<&Program, LoadError> {
        program(&mut self.ebpf, hook).map(|program| &*program)
    }

    /// What the kernel says of each program.
    ///
    /// # Errors
    /// When it says nothing.
    pub fn summaries(&mut self) -> Result<Vec<ProgramSummary>, LoadError> {
        let features = self.features.clone();
        Hook::ALL
            .into_iter()
            .filter(|hook| features.can_run(*hook))
            .map(|hook| {
                let info = program(&mut self.ebpf, hook)?
                    .info()
                    .map_err(|error| LoadError::Program { program: hook.program(), error: error.into() })?;
                Ok(ProgramSummary {
                    name: hook.program(),
                    id: info.id(),
                    verified_instructions: info.verified_instruction_count(),
                    translated_bytes: info.size_translated(),
                })
            })
            .collect()
    }
}

/// Removes the pin of a map whose shape is not the one the programs have: entries of another layout
/// mean nothing, those of a map of another size are written anew, and programs that still use the map keep it until
/// they are replaced.
fn drop_foreign(pins: &Pins, name: &'static str, entries: u32) -> Result<(), LoadError> {
    let path = pins.map(name);
    let Ok(found) = MapData::from_pin(&path).and_then(|map| map.info()) else {
        return Ok(());
    };
    let Some(shape) = tables::shape(name) else { return Ok(()) };
    let same = found.map_type().is_ok_and(|kind| kind == shape.kind)
        && (found.key_size() as usize, found.value_size() as usize) == (shape.key, shape.value);
    if same && found.max_entries() == entries {
        return Ok(());
    }
    let pin = path.display();
    match same {
        true => {
            info!(map = name, %pin, found = found.max_entries(), entries, "replaced a pinned map of another size");
        }
        false => warn!(map = name, %pin, "replaced a pinned map of another layout"),
    }
    std::fs::remove_file(&path).map_err(|error| PinError::Io { action: "remove", path, error }.into())
}
