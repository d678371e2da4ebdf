//! The loaded programs with their maps: filled like [`MemoryTables`], run on a packet, counters read.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    TestRun as _, TestRunOptions, TestRunResult,
    programs::{Program, ProgramError},
};
use flannel_agent::bpf::{LogLevel, MapSizes, Pins, Programs, Tables, read_counters};
use flannel_common::{
    family::{V4, V6},
    layout::{
        AddressV6, Config, FastPath, Flow, Forwarder, Heeded, Hold, Permit, PodPlace, SubnetV4, SubnetV6,
        Translation, Tunnel, UnknownVtep,
    },
    mark::Marks,
    packet::Arrival,
    path::{Carrier, Hook, acceptance::LONG_AGO},
    reason::{Direction, Reason},
};
use flannel_common_testing::{MemoryTables, NOW};
use nix::time::{ClockId, clock_gettime};

use crate::sandbox::Sandbox;

/// Less than what tells a flow that has just begun from one that has settled.
const AT_ONCE: Duration = Duration::from_millis(15);
/// Flows of each family that [`Loaded::small`] has room for: more than any case has.
const FLOWS: u32 = 1_024;
/// A busy machine gives a test a turn in a few of these.
const TRIES: usize = 500;

/// A `config_v4` as the kernel creates it.
const NO_CONFIG: Config<V4> = Config {
    fast_path: FastPath::Off,
    vtep: [0; 4],
    port: 0,
    vni: 0,
    source_port_min: 0,
    source_port_max: 0,
    network: SubnetV4 { prefix_len: 0, network: [0; 4] },
    subnet: SubnetV4 { prefix_len: 0, network: [0; 4] },
    tcp_refresh: 0,
    udp_refresh: 0,
    overlay_ifindex: 0,
    prefix_lengths: [0; 4],
    heeded: Heeded { marks: 0, classes: 0 },
    local_mac: [0; 6],
    unknown_vtep: UnknownVtep::Off,
    reserved: [0; 2],
};

/// A `config_v6` as the kernel creates it.
const NO_CONFIG_V6: Config<V6> = Config {
    fast_path: FastPath::Off,
    port: 0,
    vtep: AddressV6::new([0; 16]),
    network: SubnetV6 { prefix_len: 0, network: AddressV6::new([0; 16]) },
    subnet: SubnetV6 { prefix_len: 0, network: AddressV6::new([0; 16]) },
    vni: 0,
    tcp_refresh: 0,
    udp_refresh: 0,
    source_port_min: 0,
    source_port_max: 0,
    overlay_ifindex: 0,
    unknown_vtep: UnknownVtep::Off,
    prefix_lengths: [0; 4],
    heeded: Heeded { marks: 0, classes: 0 },
    local_mac: [0; 6],
    reserved: [0; 2],
};

/// Room that a push needs behind the longest frame.
const ROOM: usize = 80;

/// What of `struct __sk_buff` the tests set, bytes; room for all that any kernel has; where its mark and its priority are.
const CONTEXT: usize = 180;
const CONTEXT_OUT: usize = 256;
const MARK_AT: usize = 8;
const PRIORITY_AT: usize = 32;
/// The same of `struct xdp_md`.
const XDP_CONTEXT: usize = 24;

/// Longest that a run of a program may take after its maps were filled.
const PATIENCE: Duration = Duration::from_secs(60);

/// Mark of every packet a program is run on, besides its own: bits that are others' to set, kube-proxy's among them.
pub(crate) const MARK: u32 = 0x4001;

/// Packets and bytes counted for a reason.
pub(crate) type Counted = BTreeMap<(Direction, Reason), (u64, u64)>;

/// Loaded programs.
pub(crate) struct Loaded {
    pub(crate) programs: Programs,
    pub(crate) tables: Tables,
    pub(crate) pins: Pins,
    /// What the maps hold.
    filled: MemoryTables,
    /// What the counters said last.
    counted: Counted,
    /// What the kernel's clock is ahead of that of the tables, ns.
    ahead: u64,
}

/// How flows are translated.
pub(crate) type Translations<F> = BTreeMap<Flow<F>, Translation<F>>;

/// What a program did with a packet.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The tc action.
    pub(crate) action: i32,
    /// The packet's mark afterwards; before, it had [`MARK`] besides its own.
    pub(crate) mark: u32,
    /// The packet's priority afterwards.
    pub(crate) priority: u32,
    /// The frame afterwards.
    pub(crate) frame: Vec<u8>,
    /// The flows known afterwards, on the clock of the tables: what was noted now is noted at [`NOW`].
    pub(crate) flows: BTreeMap<Flow<V4>, Permit>,
    /// The IPv6 flows known afterwards.
    pub(crate) flows_v6: BTreeMap<Flow<V6>, Permit>,
    /// The translations known afterwards, of IPv4 and of IPv6.
    pub(crate) translations: (Translations<V4>, Translations<V6>),
    /// What is known of tunnels afterwards, on the same clock.
    pub(crate) tunnels: BTreeMap<[u8; 4], Tunnel>,
    /// The same of those over IPv6.
    pub(crate) tunnels_v6: BTreeMap<AddressV6, Tunnel>,
    /// Where pods are by the maps afterwards.
    pub(crate) pods: (BTreeMap<[u8; 4], PodPlace>, BTreeMap<AddressV6, PodPlace>),
    /// By how much counters were raised; those that were not are absent.
    pub(crate) counted: Counted,
}

impl Loaded {
    /// Loads the programs into `sandbox`, with empty maps.
    pub(crate) fn new(sandbox: &Sandbox) -> Result<Self> {
        Self::sized(sandbox, MapSizes::default(), Carrier::Vxlan)
    }

    /// The same for `carrier`, with little room for flows: all that maps hold is read after each packet, and that takes as
    /// long as there is room.
    pub(crate) fn small(sandbox: &Sandbox, carrier: Carrier) -> Result<Self> {
        Self::sized(sandbox, MapSizes::of(FastPath::Flow, true, true, FLOWS), carrier)
    }

    fn sized(sandbox: &Sandbox, sizes: MapSizes, carrier: Carrier) -> Result<Self> {
        let (pins, marks) = (sandbox.pins()?, Marks::DEFAULT);
        let programs = Programs::load_sized(pins.clone(), LogLevel::Off, sizes, marks, carrier)?;
        let tables = Tables::open(&pins)?;
        let counted = read(&pins)?;
        Ok(Self { programs, tables, pins, filled: MemoryTables::default(), counted, ahead: 0 })
    }

    /// Makes the maps hold what `tables` hold.
    pub(crate) fn fill(&mut self, tables: &MemoryTables) -> Result<()> {
        let now = &mut self.tables;
        now.v4.config.put(&tables.config.unwrap_or(NO_CONFIG))?;
        for (key, value) in &tables.routes {
            now.v4.routes.put(key, value)?;
        }
        for (key, value) in &tables.vteps {
            now.v4.vteps.put(key, value)?;
        }
        for (key, value) in &tables.pods {
            now.v4.pods.put(key, value)?;
        }
        for (key, value) in &tables.exempt {
            now.v4.exempt.put(key, value)?;
        }
        self.ahead = clock()?.wrapping_sub(NOW);
        let until = tables.held_until.map_or(Hold::FOREVER.until, |until| until.wrapping_add(self.ahead));
        let ahead = |stamp: u64| if stamp <= LONG_AGO { stamp } else { stamp.wrapping_add(self.ahead) };
        now.hold.put(&Hold { until, since: ahead(tables.since) })?;
        now.v6.config.put(&tables.v6.config.unwrap_or(NO_CONFIG_V6))?;
        for (key, value) in &tables.v6.routes {
            now.v6.routes.put(key, value)?;
        }
        for (key, value) in &tables.v6.vteps {
            now.v6.vteps.put(key, value)?;
        }
        for (key, value) in &tables.v6.pods {
            now.v6.pods.put(key, value)?;
        }
        for (key, value) in &tables.v6.exempt {
            now.v6.exempt.put(key, value)?;
        }
        let at = |tunnel: Tunnel| Tunnel {
            egress: ahead(tunnel.egress),
            ingress: ahead(tunnel.ingress),
            differs: ahead(tunnel.differs),
            ..tunnel
        };
        now.v4.tunnels.remove_all(|vtep| !tables.tunnels.contains_key(vtep))?;
        for (key, value) in &tables.tunnels {
            now.v4.tunnels.put(key, &at(*value))?;
        }
        now.v6.tunnels.remove_all(|vtep| !tables.v6.tunnels.contains_key(vtep))?;
        for (key, value) in &tables.v6.tunnels {
            now.v6.tunnels.put(key, &at(*value))?;
        }
        now.v6.flows.remove_all(|flow| !tables.v6.flows.contains_key(flow))?;
        for (key, value) in &tables.v6.flows {
            let (egress, ingress) = (ahead(value.egress), ahead(value.ingress));
            now.v6.flows.put(key, &Permit { egress, ingress, ..*value })?;
        }
        now.v4.flows.remove_all(|flow| !tables.flows.contains_key(flow))?;
        for (key, value) in &tables.flows {
            let (egress, ingress) = (ahead(value.egress), ahead(value.ingress));
            now.v4.flows.put(key, &Permit { egress, ingress, ..*value })?;
        }
        now.v4.translations.remove_all(|flow| !tables.translations.contains_key(flow))?;
        for (key, value) in &tables.translations {
            now.v4.translations.put(key, value)?;
        }
        now.v6.translations.remove_all(|flow| !tables.v6.translations.contains_key(flow))?;
        for (key, value) in &tables.v6.translations {
            now.v6.translations.put(key, value)?;
        }
        now.forwarders.remove_all(|veth| !tables.forwarders.contains_key(veth))?;
        for (veth, seen) in &tables.forwarders {
            now.forwarders.put(veth, &Forwarder { seen: ahead(*seen) })?;
        }
        let before = std::mem::replace(&mut self.filled, tables.clone());
        for key in before.routes.keys().filter(|key| !tables.routes.contains_key(*key)) {
            now.v4.routes.remove(key)?;
        }
        for key in before.vteps.keys().filter(|key| !tables.vteps.contains_key(*key)) {
            now.v4.vteps.remove(key)?;
        }
        for key in before.pods.keys().filter(|key| !tables.pods.contains_key(*key)) {
            now.v4.pods.remove(key)?;
        }
        for key in before.exempt.keys().filter(|key| !tables.exempt.contains_key(*key)) {
            now.v4.exempt.remove(key)?;
        }
        for key in before.v6.routes.keys().filter(|key| !tables.v6.routes.contains_key(*key)) {
            now.v6.routes.remove(key)?;
        }
        for key in before.v6.vteps.keys().filter(|key| !tables.v6.vteps.contains_key(*key)) {
            now.v6.vteps.remove(key)?;
        }
        for key in before.v6.pods.keys().filter(|key| !tables.v6.pods.contains_key(*key)) {
            now.v6.pods.remove(key)?;
        }
        for key in before.v6.exempt.keys().filter(|key| !tables.v6.exempt.contains_key(*key)) {
            now.v6.exempt.remove(key)?;
        }
        Ok(())
    }

    /// Runs the program of `hook` on `frame`. An aggregate counts as `segments` packets.
    pub(crate) fn run(
        &mut self,
        hook: Hook,
        frame: &[u8],
        arrival: &Arrival,
        segments: u32,
    ) -> Result<Outcome> {
        self.run_again(hook, frame, arrival, segments, 1)
    }

    /// Runs the program with `tables`, whose times count from now: where this takes so long that time passes between filling
    /// them and the packet, as on a busy machine, once more.
    pub(crate) fn run_with(
        &mut self,
        tables: &MemoryTables,
        hook: Hook,
        frame: &[u8],
        arrival: &Arrival,
        segments: u32,
    ) -> Result<Outcome> {
        for _ in 0..TRIES {
            let filled = Instant::now();
            self.fill(tables)?;
            let outcome = self.run(hook, frame, arrival, segments)?;
            if filled.elapsed() < AT_ONCE {
                return Ok(outcome);
            }
        }
        bail!("the machine is too busy: {TRIES} times a packet came more than {AT_ONCE:?} after its tables")
    }

    /// As `run`, `times` in a row on the same packet: what one run made of it the next one finds.
    pub(crate) fn run_again(
        &mut self,
        hook: Hook,
        frame: &[u8],
        arrival: &Arrival,
        segments: u32,
        times: u32,
    ) -> Result<Outcome> {
        let context = context(arrival, segments);
        let xdp = xdp_context(arrival, frame);
        let mut context_out = [0; CONTEXT_OUT];
        let mut out = vec![0; frame.len() + ROOM];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(if hook.is_xdp() { &xdp[..] } else { &context[..] }),
            ctx_out: Some(&mut context_out),
            repeat: times,
            ..TestRunOptions::default()
        };
        let result = test_run(self.programs.program(hook)?, options)
            .with_context(|| format!("BPF_PROG_TEST_RUN of {} bytes", frame.len()))?;
        out.truncate(result.data_size_out as usize);
        let mark = match hook.is_xdp() {
            true => MARK | arrival.mark,
            false => u32::from_ne_bytes(context_out[MARK_AT..MARK_AT + 4].try_into()?),
        };
        let priority = u32::from_ne_bytes(context_out[PRIORITY_AT..PRIORITY_AT + 4].try_into()?);
        let action = result.return_value.cast_signed();
        Ok(Outcome {
            action,
            mark,
            priority,
            frame: out,
            flows: self.on_their_clock(self.tables.v4.flows.entries()?),
            flows_v6: self.on_their_clock(self.tables.v6.flows.entries()?),
            translations: (self.tables.v4.translations.entries()?, self.tables.v6.translations.entries()?),
            tunnels: self.tunnels_on_their_clock(self.tables.v4.tunnels.entries()?),
            tunnels_v6: self.tunnels_on_their_clock(self.tables.v6.tunnels.entries()?),
            pods: (self.tables.v4.pods.entries()?, self.tables.v6.pods.entries()?),
            counted: self.raised()?,
        })
    }

    /// The flows in a map, on the clock of the tables.
    fn on_their_clock<Flow>(&self, mut flows: BTreeMap<Flow, Permit>) -> BTreeMap<Flow, Permit> {
        for permit in flows.values_mut() {
            (permit.egress, permit.ingress) = (self.behind(permit.egress), self.behind(permit.ingress));
        }
        flows
    }

    /// The tunnels in a map, on the clock of the tables.
    fn tunnels_on_their_clock<Address>(
        &self,
        mut tunnels: BTreeMap<Address, Tunnel>,
    ) -> BTreeMap<Address, Tunnel> {
        for tunnel in tunnels.values_mut() {
            for stamp in [&mut tunnel.egress, &mut tunnel.ingress, &mut tunnel.differs] {
                *stamp = self.behind(*stamp);
            }
        }
        tunnels
    }

    /// A time of the kernel's on the clock of the tables.
    fn behind(&self, stamp: u64) -> u64 {
        match stamp.wrapping_sub(self.ahead) {
            _ if stamp <= LONG_AGO => stamp,
            just_now if (NOW..NOW + PATIENCE.as_nanos() as u64).contains(&just_now) => NOW,
            earlier => earlier,
        }
    }

    /// By how much counters were raised since last asked.
    pub(crate) fn raised(&mut self) -> Result<Counted> {
        let now = read(&self.pins)?;
        let mut raised = Counted::new();
        for (slot, (packets, bytes)) in &now {
            let (packets_before, bytes_before) = self.counted.get(slot).copied().unwrap_or_default();
            let difference = (packets - packets_before, bytes - bytes_before);
            if difference != (0, 0) {
                raised.insert(*slot, difference);
            }
        }
        self.counted = now;
        Ok(raised)
    }
}

fn test_run(program: &Program, options: TestRunOptions<'_>) -> Result<TestRunResult, ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.test_run(options),
        Program::Xdp(program) => program.test_run(options),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn read(pins: &Pins) -> Result<Counted> {
    let rows = read_counters(pins)?;
    Ok(rows.into_iter().map(|row| ((row.direction, row.reason), (row.packets, row.bytes))).collect())
}

/// The clock that programs read, ns.
fn clock() -> Result<u64> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?).as_nanos() as u64)
}

/// `struct __sk_buff` (include/uapi/linux/bpf.h) with the fields that a test may set.
fn context(arrival: &Arrival, segments: u32) -> [u8; CONTEXT] {
    let mut bytes = [0; CONTEXT];
    let mark = MARK | arrival.mark;
    for (offset, value) in [
        (MARK_AT, mark),
        (PRIORITY_AT, arrival.priority),
        (40, arrival.ifindex),
        (164, segments),
        (176, arrival.gso_size),
    ] {
        let field: &mut [u8] = &mut bytes[offset..offset + 4];
        field.copy_from_slice(&value.to_ne_bytes());
    }
    bytes
}

/// `struct xdp_md` (include/uapi/linux/bpf.h): the frame with nothing in front, on the interface it came by. A
/// device of another namespace would be refused, so it is given by what the sandbox has.
fn xdp_context(arrival: &Arrival, frame: &[u8]) -> [u8; XDP_CONTEXT] {
    let mut bytes = [0; XDP_CONTEXT];
    for (offset, value) in [(4, frame.len() as u32), (12, arrival.ifindex)] {
        let field: &mut [u8] = &mut bytes[offset..offset + 4];
        field.copy_from_slice(&value.to_ne_bytes());
    }
    bytes
}
