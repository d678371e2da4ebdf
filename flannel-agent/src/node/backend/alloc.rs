//! `alloc`: the lease, and nothing else.

use super::Backend;
use crate::{
    datapath::{Stray, kernel::KernelDatapath},
    plan,
};

/// The lease, and nothing else: the administrator makes the routes.
#[derive(Clone, Copy, Debug)]
pub struct Alloc;

impl Backend for Alloc {
    fn planned(&self) -> plan::Backend {
        plan::Backend::Alloc
    }

    fn follows_peers(&self) -> bool {
        false
    }

    fn kernel_only(&self) -> Option<&'static str> {
        Some("the alloc backend moves no packets")
    }

    fn with_objects(&self, datapath: KernelDatapath, _: Stray) -> KernelDatapath {
        datapath
    }
}
