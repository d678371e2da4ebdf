//! What libFuzzer calls, and what it is told by the environment.

use std::{env, fs, path::Path, process, sync::OnceLock};

use flannel_agent::{
    fuzz::TARGETS,
    telemetry::output::{print, say},
};
use flannel_common_testing::fuzz::{decision, decision_seeds};
use libfuzzer_sys::fuzz_target;

/// The kind of input; unless it is given, all are listed.
const TARGET: &str = "FLANNEL_FUZZ_TARGET";
/// A directory for inputs to begin with.
const SEEDS: &str = "FLANNEL_FUZZ_SEEDS";
/// Packets at the hooks, beside the agent's kinds.
const PACKETS: &str = "packets";

static RUN: OnceLock<fn(&[u8])> = OnceLock::new();

fuzz_target!(init: choose(), |input: &[u8]| {
    if let Some(run) = RUN.get() {
        run(input);
    }
});

fn choose() {
    let Ok(name) = env::var(TARGET) else {
        let names = TARGETS.iter().map(|target| format!("{}\n", target.name)).collect::<String>();
        process::exit(i32::from(print(&format!("{PACKETS}\n{names}")).is_err()));
    };
    let (run, seeds): (fn(&[u8]), Vec<Vec<u8>>) = match TARGETS.iter().find(|target| target.name == name) {
        Some(target) => (target.run, target.seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect()),
        None if name == PACKETS => (decision, decision_seeds()),
        None => {
            say(format_args!("error: {TARGET}={name}: there is no such kind of input"));
            process::exit(64);
        }
    };
    RUN.get_or_init(|| run);
    let Some(directory) = env::var_os(SEEDS) else { return };
    for (number, seed) in seeds.iter().enumerate() {
        let path = Path::new(&directory).join(format!("seed-{number:03}"));
        if let Err(error) = fs::write(&path, seed) {
            say(format_args!("error: cannot write {}: {error}", path.display()));
            process::exit(1);
        }
    }
}
