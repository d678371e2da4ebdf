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
    flannel_agent::telemetry::output::say(
        "error: flannel-fuzz is not built for fuzzing\nremedy: cargo xtask fuzz",
    );
    std::process::ExitCode::FAILURE
}
