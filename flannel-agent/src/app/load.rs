//! Whether the programs move packets on this node, and why not.

use anyhow::ensure;
use flannel_common::{layout::FastPath, path::Carrier};
use tracing::{info, warn};

use crate::{
    bpf::{Feature, MapSizes, Pins, PinsClaim, Programs, Tables, hold},
    cli::RunOptions,
    control::{Standing, snapshot},
    host::privileges::{FEWEST_FILES, Privileges, file_limit, too_few_files},
    lease::Notice,
    node::xdp::{XdpChoice, XdpMode},
};

/// The programs, and what is pinned.
pub(super) enum Loaded {
    /// The programs, with where they are pinned, and their maps.
    Programs(Pins, Box<Programs>, Box<Tables>),
    /// None. What an earlier process pinned there is to be taken off.
    Nothing(Option<Pins>),
}

/// Loads the programs for `carrier`, if they are wanted, can do what is asked (or `kernel_only` says why not) and the kernel
/// takes them, with maps for a network that has IPv4, IPv6 or both; says which it is, and why, once, and does `tell`
/// where the operator wanted otherwise. What comes of it is written to `standing`.
pub(super) fn load(
    options: &RunOptions,
    claim: &PinsClaim,
    kernel_only: Option<&'static str>,
    carrier: Carrier,
    (has_v4, has_v6): (bool, bool),
    tell: impl Fn(Notice),
    standing: &Standing,
) -> (FastPath, Loaded) {
    let wanted = options.fast_path.0;
    let stand = |granted: FastPath, limit: Option<String>, attached_by: Option<&str>| {
        let fast_path = snapshot::FastPath {
            asked: wanted.label().to_owned(),
            granted: granted.label().to_owned(),
            by_backend: limit.is_some() && kernel_only.is_some(),
            limit,
            attached_by: attached_by.map(str::to_owned),
            xdp: "off".to_owned(),
        };
        standing.tell(|told| told.fast_path = Some(fast_path));
    };
    let pins = Pins::under(&options.bpffs);
    let ours = matches!(claim, PinsClaim::Ours(_));
    let off = if wanted == FastPath::Off { Some("--fast-path=off") } else { kernel_only };
    if let Some(because) = off {
        info!(fast_path = "off", because, "the kernel path carries all traffic");
        let limit = Some(because.to_owned()).filter(|_| wanted != FastPath::Off);
        stand(FastPath::Off, limit, None);
        return (FastPath::Off, Loaded::Nothing(pins.ok().filter(|_| ours)));
    }
    if let PinsClaim::Anothers(daemon) = claim {
        warn!(
            fast_path = "off",
            daemon,
            bpffs = %options.bpffs.display(),
            "another daemon on this node has the programs, which serve one network: all packets of this one take the \
            kernel path"
        );
        let limit = match daemon {
            Some(daemon) => {
                format!("another daemon has the programs under {}: {daemon}", options.bpffs.display())
            }
            None => format!("another daemon has the programs under {}", options.bpffs.display()),
        };
        stand(FastPath::Off, Some(limit), None);
        return (FastPath::Off, Loaded::Nothing(None));
    }
    let left = pins.as_ref().ok().cloned();
    let loaded = pins.map_err(anyhow::Error::from).and_then(|pins| {
        ensure!(file_limit() >= FEWEST_FILES, "{}", too_few_files());
        let sizes = MapSizes::of(wanted, has_v4, has_v6, options.flow_table_size);
        let mut programs =
            Programs::load_sized(pins.clone(), options.bpf_log, sizes, options.marks(), carrier)?;
        programs.forward_log(options.bpf_log);
        hold::put_off(&pins, options.hold())?;
        let tables = Tables::open(&pins)?;
        Ok((pins, programs, tables))
    });
    match loaded {
        Ok((pins, mut programs, tables)) => {
            let (found, missing) = programs.features().names();
            info!(found = found.join(" "), missing = missing.join(" "), "tried what this kernel supports");
            let (granted, without) = programs.features().grant(wanted);
            if let Some(feature) = without {
                warn!(
                    asked = wanted.label(),
                    fast_path = granted.label(),
                    missing = feature.label(),
                    because = feature.without_it(),
                    "this kernel does not support all that --fast-path needs"
                );
            }
            let lacks = |feature: Feature| {
                format!("this kernel has no {}: {}", feature.label(), feature.without_it())
            };
            if granted == FastPath::Off {
                stand(granted, without.map(lacks), None);
                return (granted, Loaded::Nothing(Some(pins)));
            }
            let by = match programs.attach_by(options.tc_attach) {
                Ok(by) => by,
                Err(feature) => {
                    warn!(
                        fast_path = "off",
                        missing = feature.label(),
                        because = programs.features().why_not(feature),
                        tc_attach = options.tc_attach.label(),
                        "programs cannot be attached on this kernel as --tc-attach asks: the kernel path carries all \
                        traffic"
                    );
                    let limit = format!("this kernel has no {}, as --tc-attach asks", feature.label());
                    stand(FastPath::Off, Some(limit), None);
                    return (FastPath::Off, Loaded::Nothing(Some(pins)));
                }
            };
            info!(
                fast_path = granted.label(),
                because = "--fast-path asks for it",
                attached_by = by.label(),
                "programs loaded"
            );
            stand(granted, without.map(lacks), Some(by.label()));
            (granted, Loaded::Programs(pins, programs.into(), tables.into()))
        }
        Err(error) => {
            let because = refused(&error, Privileges::read());
            warn!(
                fast_path = "off",
                because,
                "eBPF cannot be used here: the kernel path carries all traffic, as with stock flannel"
            );
            tell(Notice {
                reason: "KernelPath",
                text: format!(
                    "eBPF cannot be used on this node, the kernel path carries all traffic: {because}"
                ),
            });
            stand(FastPath::Off, Some(because), None);
            (FastPath::Off, Loaded::Nothing(left))
        }
    }
}

/// What is done about XDP with what is loaded. Where the kernel refuses its programs, those of tc go on without.
pub(super) fn xdp(loaded: &Loaded, asked: XdpChoice) -> XdpChoice {
    let Loaded::Programs(_, programs, _) = loaded else { return XdpChoice::OFF };
    match programs.features().why_not(Feature::Xdp) {
        Some(because) if asked.mode != XdpMode::Off => {
            warn!(
                missing = Feature::Xdp.label(),
                because, "this kernel does not load the XDP programs: XDP is off"
            );
            XdpChoice::OFF
        }
        _ => asked,
    }
}

/// Why eBPF cannot be used, in one line.
fn refused(error: &anyhow::Error, privileges: Option<Privileges>) -> String {
    // Its text has its causes.
    let why = error.to_string();
    match privileges.map(Privileges::missing_for_bpf).unwrap_or_default() {
        missing if missing.is_empty() => why,
        missing => format!("this process lacks {}: {why}", missing.join(", ")),
    }
}
