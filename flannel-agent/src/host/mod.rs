//! The host this process runs on: its settings and files, and what the process may do.

pub mod clock;
pub mod conntrack;
pub(crate) mod cpu;
pub(crate) mod ebtables;
pub(crate) mod heap;
pub mod holder;
pub mod privileges;
pub(crate) mod replace;
pub(crate) mod steady_file;
pub(crate) mod sysctl;
