//! Subcommands.

pub mod bpf;
