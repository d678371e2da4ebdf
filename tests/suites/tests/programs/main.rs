//! The programs in the kernel: every verdict and counter by BPF_PROG_TEST_RUN, held against the host's
//! `decide` on random packets; and their life at hooks and pins.
//!
//! Every test runs in network and mount namespaces of its own, with a bpffs of its own. They need root.

mod attachment;
mod budget;
mod clsact;
mod differential;
mod features;
mod judge;
mod live;
mod loaded;
mod maps;
mod pins;
mod sandbox;
mod translated;
mod verdicts;
