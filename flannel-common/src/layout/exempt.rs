//! Where packets of pods go with the pod's own address.

use bytemuck::{CheckedBitPattern, NoUninit};

/// Value of `snat_exempt_v4` and `snat_exempt_v6`, whose keys are prefixes as the kernel's tries have them, those of
/// IPv4 laid out like [`super::SubnetV4`]: why pods' packets to it are not masqueraded.
///
/// In order of precedence: of several reasons for one prefix the first is kept.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, NoUninit, CheckedBitPattern)]
pub enum Exempt {
    /// It is the cluster's own network.
    Cluster = 0,
    /// It is a node's address.
    Node = 1,
    /// The operator says so.
    User = 2,
}

impl Exempt {
    /// `the cluster's network`, `a node`, `the operator's choice`: to follow "because it is".
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Cluster => "the cluster's network",
            Self::Node => "a node",
            Self::User => "the operator's choice",
        }
    }
}

super::assert_layout!(Exempt, 4, 4);
