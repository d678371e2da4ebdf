//! Compiles the programs and leaves them at `OUT_DIR/flannel-ebpf.o` for the agent to include.

use std::{env, path::PathBuf, process::exit};

use flannel_ebpf_toolchain::{OBJECT_VARIABLE, build, watched_paths};

fn main() {
    for name in [OBJECT_VARIABLE, "XDG_CACHE_HOME", "RUSTUP_HOME", "CARGO_HOME"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    for path in watched_paths() {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    if let Err(error) = build(&out_dir) {
        eprintln!("\nerror: {error}\nremedy: {}", error.remedy());
        exit(1);
    }
}
