//! Feeds what flannel-ebpf reads from outside with whatever reaches new code. `cargo xtask fuzz` builds and runs it.
//!
//! ```text
//! libFuzzer ─▶ one kind of input ─▶ flannel_common_testing::fuzz   packets at the hooks
//!                                   flannel_agent::fuzz            leases, configurations, rules, requests
//! ```

#![cfg_attr(fuzzing, no_main)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

#[cfg(fuzzing)]
mod fuzzer;

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    let advice = "error: flannel-fuzz is not built for fuzzing\nremedy: cargo xtask fuzz";
    let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{advice}\n"));
    std::process::ExitCode::FAILURE
}
