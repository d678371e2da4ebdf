//! By what the programs of tc are attached.

/// `--tc-attach`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcAttach {
    /// By tcx where the kernel has it, else by clsact.
    #[default]
    Auto,
    /// By tcx links: Linux 6.6 and later.
    Tcx,
    /// By filters of a clsact qdisc.
    Clsact,
}

impl TcAttach {
    /// As it is spelled.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// By what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// Pinned tcx links.
    Tcx,
    /// Filters of a clsact qdisc.
    Clsact,
}

impl Attachment {
    /// As `--tc-attach` spells it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}
