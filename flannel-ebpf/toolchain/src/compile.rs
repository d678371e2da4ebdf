//! Compiling the programs into one object.

use std::{
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    Error, Object, Result, Toolchain,
    cache::manifest_path,
    run::{is_executable, line},
    strip::without_debug_information,
};

/// Names a ready-made object to take instead of building one, for those who build without this toolchain.
pub const OBJECT_VARIABLE: &str = "FLANNEL_EBPF_OBJECT";

/// What the object is called in the output directory.
pub const OBJECT_NAME: &str = "flannel-ebpf.o";

/// The same of the programs that tell of packets.
pub const TRACE_OBJECT_NAME: &str = "flannel-ebpf-trace.o";

const PACKAGE: &str = "flannel-ebpf";
/// The feature that makes of the programs those that tell of packets.
const TRACE: &str = "trace";

/// Puts the verified object at `out_dir/flannel-ebpf.o`: the one that [`OBJECT_VARIABLE`] names, or a new
/// one. The compiler speaks on standard error.
///
/// Beside it stands [`TRACE_OBJECT_NAME`]: empty where the object is a ready-made one, whose twin nobody knows.
pub fn build(out_dir: &Path) -> Result<PathBuf> {
    if let Some(object) = env::var_os(OBJECT_VARIABLE).filter(|value| !value.is_empty()) {
        let object = PathBuf::from(object);
        // Cargo runs build scripts in their package's directory, not where the user typed the path.
        let found = if object.is_relative() { workspace_root().join(&object) } else { object.clone() };
        let ready_made = |error| Error::ReadyMade { object: object.clone(), source: Box::new(error) };
        Object::read(&found).and_then(|object| object.verify()).map_err(ready_made)?;
        let empty = out_dir.join(TRACE_OBJECT_NAME);
        fs::write(&empty, []).map_err(|source| Error::File { path: empty.clone(), source })?;
        return copy(&found, out_dir, OBJECT_NAME);
    }
    build_with(&Toolchain::find()?, out_dir, &[])
}

/// Builds both objects with this toolchain, and with `rustc_flags` in addition to those that the programs need. Returns
/// where the programs are.
pub fn build_with(toolchain: &Toolchain, out_dir: &Path, rustc_flags: &[&str]) -> Result<PathBuf> {
    build_one(toolchain, out_dir, rustc_flags, Some(TRACE), TRACE_OBJECT_NAME)?;
    build_one(toolchain, out_dir, rustc_flags, None, OBJECT_NAME)
}

fn build_one(
    toolchain: &Toolchain,
    out_dir: &Path,
    rustc_flags: &[&str],
    feature: Option<&str>,
    name: &str,
) -> Result<PathBuf> {
    // Not the caller's target directory, which it has locked.
    let target_dir = out_dir.join("flannel-ebpf-target");
    let mut cargo = command(toolchain, &target_dir, rustc_flags);
    cargo
        .current_dir(workspace_root())
        .args(["--package", PACKAGE, "--bin", PACKAGE])
        .args(feature.iter().flat_map(|feature| ["--features", feature]))
        .stdin(Stdio::null())
        // A build script's standard output is for cargo's directives.
        .stdout(Stdio::null());
    let status = cargo
        .status()
        .map_err(|source| Error::Spawn { program: toolchain.compiler.cargo.clone(), source })?;
    if !status.success() {
        let _ = writeln!(std::io::stderr(), "\n  {}", line(&cargo));
        return Err(Error::Compile { status: status.to_string(), toolchain: toolchain.to_string() });
    }
    let object = target_dir.join(target()).join("release").join(PACKAGE);
    Object::read(&object)?.verify()?;
    let stripped = object.with_extension("stripped");
    without_debug_information(&object, &stripped)?;
    Object::read(&stripped)?.verify()?;
    copy(&stripped, out_dir, name)
}

/// Lets clippy judge the programs, if this toolchain has it; warnings are errors. Returns whether it has.
pub fn lint(toolchain: &Toolchain, out_dir: &Path) -> Result<bool> {
    let clippy = toolchain.compiler.cargo.with_file_name("cargo-clippy");
    if !is_executable(&clippy) {
        return Ok(false);
    }
    let mut command = toolchain.command(&clippy);
    command.arg("clippy").args(arguments()).arg("--target-dir").arg(out_dir.join("flannel-ebpf-lint"));
    command.current_dir(workspace_root()).args(["--package", PACKAGE, "--bin", PACKAGE]);
    // What is left out of the programs is linted, too.
    command.args(["--features", TRACE]);
    command.env("CARGO_ENCODED_RUSTFLAGS", flags(&[]).join("\x1f")).env("CARGO", &toolchain.compiler.cargo);
    command.args(["--", "-Dwarnings"]).stdin(Stdio::null());
    let status = command.status().map_err(|source| Error::Spawn { program: clippy, source })?;
    if !status.success() {
        return Err(Error::Compile { status: status.to_string(), toolchain: toolchain.to_string() });
    }
    Ok(true)
}

/// `cargo build` for the kernel, short of what to build.
pub(crate) fn command(toolchain: &Toolchain, target_dir: &Path, rustc_flags: &[&str]) -> Command {
    // Of the directory that has bin/rustc.
    let compiler = toolchain.compiler.rustc.ancestors().nth(2).map(Path::to_owned);
    let flags = [flags(rustc_flags), without_places(compiler)].concat();
    let mut cargo = toolchain.command(&toolchain.compiler.cargo);
    cargo
        .arg("build")
        .args(arguments())
        .arg("--target-dir")
        .arg(target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    cargo
}

fn arguments() -> [&'static str; 5] {
    ["--release", "--target", target(), "-Z", "build-std=core"]
}

/// The sources and tools on which the object depends, for `cargo::rerun-if-changed`. Only what exists:
/// cargo takes a missing file for one that changes all the time.
pub fn watched_paths() -> Vec<PathBuf> {
    let root = workspace_root();
    let sources = [
        "Cargo.toml",
        "Cargo.lock",
        "flannel-ebpf/Cargo.toml",
        "flannel-ebpf/src",
        "flannel-ebpf/build.rs",
        "flannel-common/Cargo.toml",
        "flannel-common/src",
    ];
    let ready_made = env::var_os(OBJECT_VARIABLE).filter(|value| !value.is_empty());
    let ready_made = ready_made.map(|object| root.join(object));
    let all = sources.iter().map(|source| root.join(source)).chain([manifest_path()]).chain(ready_made);
    all.filter(|path| path.exists()).collect()
}

/// The workspace that holds the programs.
pub fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// The kernel's programs have its endianness: the target's in a build script, ours elsewhere.
pub(crate) fn target() -> &'static str {
    let big = match env::var("CARGO_CFG_TARGET_ENDIAN") {
        Ok(endian) => endian == "big",
        Err(_) => cfg!(target_endian = "big"),
    };
    if big { "bpfeb-unknown-none" } else { "bpfel-unknown-none" }
}

fn flags(more: &[&str]) -> Vec<String> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| env::consts::ARCH.to_owned());
    let mut flags = vec![
        // aya-ebpf lays out the kernel's registers by it.
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // rustc hands both on to the linker, which generates the code.
        "-Ctarget-cpu=v3".to_owned(),
        "-Ctarget-feature=+allows-misaligned-mem-access".to_owned(),
    ];
    flags.extend(more.iter().map(|&flag| flag.to_owned()));
    flags
}

/// The compiler's flags that keep the places of sources on this machine out of what it makes, which is then the same wherever
/// it is built: of cargo's home, of the workspace, and of the `compiler`, whose sources are below that directory. Where several
/// fit, the compiler takes the last.
pub fn without_places(compiler: Option<PathBuf>) -> Vec<String> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let places = [(compiler, "/rust"), (home, "/cargo"), (Some(workspace_root()), "/flannel-ebpf")];
    let flag =
        |(from, to): (Option<PathBuf>, _)| Some(format!("--remap-path-prefix={}={to}", from?.display()));
    places.into_iter().filter_map(flag).collect()
}

/// By way of another name: a ready-made object may be the very file that an earlier build put there.
fn copy(object: &Path, out_dir: &Path, name: &str) -> Result<PathBuf> {
    let (copied, new) = (out_dir.join(name), out_dir.join(format!("{name}.new")));
    fs::copy(object, &new).map_err(|source| Error::File { path: object.to_owned(), source })?;
    fs::rename(&new, &copied).map_err(|source| Error::File { path: copied.clone(), source })?;
    Ok(copied)
}
