//! Flags that take one of a few words.

use clap::{ValueEnum, builder::PossibleValue};
use flannel_common::layout;

use crate::{
    bpf::{LogLevel, TcAttach},
    node::xdp::XdpMode,
};

/// `--fast-path`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FastPath(pub layout::FastPath);

impl ValueEnum for FastPath {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self(layout::FastPath::Flow),
            Self(layout::FastPath::All),
            Self(layout::FastPath::Overlay),
            Self(layout::FastPath::Off),
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self.0 {
            layout::FastPath::All => {
                "every pod-to-pod packet skips netfilter: for clusters without Services and policies"
            }
            layout::FastPath::Overlay => {
                "only the VXLAN device's work is skipped; netfilter sees every packet"
            }
            layout::FastPath::Off => "stock flannel's dataplane",
            layout::FastPath::Flow => {
                "flows that netfilter has accepted skip the host's stack; everything else as with overlay"
            }
        };
        Some(PossibleValue::new(self.0.label()).help(help))
    }
}

impl ValueEnum for LogLevel {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Off, Self::Warn, Self::Debug]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Off => PossibleValue::new("off").help("Nothing"),
            Self::Warn => PossibleValue::new("warn").help("Spoofed or refused packets"),
            Self::Debug => PossibleValue::new("debug").help("Every packet: for tests, never for a busy node"),
        })
    }
}

impl ValueEnum for TcAttach {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Auto, Self::Tcx, Self::Clsact]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Self::Auto => "tcx where the kernel has it, else clsact",
            Self::Tcx => "tcx links: Linux 6.6 and later",
            Self::Clsact => "Filters of a clsact qdisc",
        };
        Some(PossibleValue::new(self.label()).help(help))
    }
}

impl ValueEnum for XdpMode {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Auto, Self::Native, Self::Generic, Self::Off]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Auto => PossibleValue::new("auto")
                .help("Native on a network card whose driver does not lose speed by it, else off"),
            Self::Native => {
                PossibleValue::new("native").help("In the driver, before the kernel merges packets")
            }
            Self::Generic => PossibleValue::new("generic")
                .help("In the kernel, after it merges packets: for drivers without XDP"),
            Self::Off => PossibleValue::new("off").help("No XDP"),
        })
    }
}

/// What XDP does with VXLAN from an address that no lease names, as `--xdp-unknown-vtep` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownVtep(pub layout::UnknownVtep);

impl ValueEnum for UnknownVtep {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self(layout::UnknownVtep::Drop), Self(layout::UnknownVtep::Count), Self(layout::UnknownVtep::Off)]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self.0 {
            layout::UnknownVtep::Drop => "Drop it",
            layout::UnknownVtep::Count => "Count it and let it pass",
            layout::UnknownVtep::Off => "Let it pass",
        };
        Some(PossibleValue::new(self.0.label()).help(help))
    }
}

/// `--etcd-api`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EtcdApi {
    /// The one that has the network configuration: v3, else v2
    Auto,
    /// etcd 3, as flannel from 0.18 on
    V3,
    /// The store that flannel 0.11 to 0.17 know
    V2,
}
