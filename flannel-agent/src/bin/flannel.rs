//! `flannel`: the CNI plugin that container runtimes start for each pod.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::{env, io, process::ExitCode};

use flannel_agent::cni;

fn main() -> ExitCode {
    cni::main(|name| env::var_os(name), &mut io::stdin().lock(), &mut io::stdout().lock())
}
