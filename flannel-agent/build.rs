//! Compiles the programs and leaves them, compressed, at `OUT_DIR/flannel-ebpf.o.zlib` for the agent to include, and those that
//! tell of packets beside them.

use std::{
    env, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::exit,
};

use flannel_ebpf_toolchain::{OBJECT_NAME, OBJECT_VARIABLE, TRACE_OBJECT_NAME, build, watched_paths};
use flate2::{Compression, write::ZlibEncoder};

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
    for name in [OBJECT_NAME, TRACE_OBJECT_NAME] {
        if let Err(error) = compress(&out_dir.join(name)) {
            eprintln!("\nerror: cannot compress {}: {error}", out_dir.join(name).display());
            exit(1);
        }
    }
}

/// Puts a compressed copy beside `object`; an empty one stays empty.
fn compress(object: &Path) -> io::Result<()> {
    let content = fs::read(object)?;
    let compressed = if content.is_empty() {
        content
    } else {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&content)?;
        encoder.finish()?
    };
    fs::write(object.with_added_extension("zlib"), compressed)
}
