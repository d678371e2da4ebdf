//! A thread in namespaces of its own: the interfaces of [`interface`], and a bpffs. All of it goes with
//! the thread.

use std::{
    io::Write as _,
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use flannel_agent::{bpf::Pins, values::Mac};
use flannel_common_testing::interface;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Names of the interfaces; the other end of each veth has [`OTHER_END`] behind its name.
pub(crate) const INTERFACES: [(&str, u32); 5] = [
    ("underlay", interface::UNDERLAY),
    ("overlay", interface::OVERLAY),
    ("pod", interface::POD),
    ("other_pod", interface::OTHER_POD),
    ("small_pod", interface::SMALL_POD),
];
/// Tail of the name of a veth's other end.
pub(crate) const OTHER_END: &str = "_end";

/// Turns a skipped test into a failed one.
const REQUIRE: &str = "FLANNEL_TEST_REQUIRE";

const PATIENCE: Duration = Duration::from_secs(10);

/// What the test runs in.
pub(crate) struct Sandbox {
    /// Where the bpffs is mounted.
    pub(crate) bpffs: PathBuf,
}

impl Sandbox {
    /// The pins of the sandbox.
    pub(crate) fn pins(&self) -> Result<Pins> {
        Ok(Pins::under(&self.bpffs)?)
    }
}

/// Runs `test` in a sandbox, and panics with what it says went wrong. Without the means to make one the
/// test is skipped, or fails if none may be.
pub(crate) fn in_sandbox(test: impl FnOnce(&Sandbox) -> Result<()> + Send) {
    if let Some(missing) = missing() {
        let message = format!("{missing}; `cargo xtask setup` says how to get what the tests need");
        let required = std::env::var_os(REQUIRE).is_some_and(|value| !value.is_empty() && value != "0");
        assert!(!required, "{REQUIRE} is set: {message}");
        // Past the test harness's capture: a skipped test must be seen.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {message}");
        return;
    }
    // Removed after the thread: in its namespace a file system is mounted there.
    let directory = match tempfile::tempdir() {
        Ok(directory) => directory,
        Err(error) => panic!("no temporary directory: {error}"),
    };
    let bpffs = directory.path().to_owned();
    let result = thread::scope(|scope| {
        scope
            .spawn(move || {
                enter(&bpffs)?;
                test(&Sandbox { bpffs })
            })
            .join()
    });
    match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("{error:?}"),
        Err(panic) => resume_unwind(panic),
    }
}

/// Waits until `condition` holds: for what the kernel does in its own time.
pub(crate) fn eventually(mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition()? {
        ensure!(Instant::now() < deadline, "not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("loading programs needs root".to_owned());
    }
    for (program, argument) in [("ip", "-V"), ("bpftool", "version")] {
        if let Err(error) = Command::new(program).arg(argument).output() {
            return Some(format!("{program} cannot be run: {error}"));
        }
    }
    None
}

fn enter(bpffs: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("make namespaces")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("make mounts private")?;
    mount(Some("bpf"), bpffs, Some("bpf"), MsFlags::empty(), None::<&str>).context("mount a bpffs")?;
    ip(&INTERFACES.map(|(name, index)| add_veth(name, index)).join("\n"))?;
    let mac = Mac(interface::UNDERLAY_MAC);
    ip(&format!("link set small_pod mtu {}\nlink set underlay address {mac}", interface::SMALL_MTU))
}

/// The `ip` lines that make the veth `name` with `index`, both ends up.
pub(crate) fn add_veth(name: &str, index: u32) -> String {
    let end = format!("{name}{OTHER_END}");
    // Without link-local addresses: nothing but what a test sends is on the wire.
    format!(
        "link add {name} index {index} type veth peer name {end} index {}\n\
         link set {name} addrgenmode none up\n\
         link set {end} addrgenmode none up",
        index + 100,
    )
}

/// Runs `ip` with these lines.
pub(crate) fn ip(lines: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("ip")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(lines.as_bytes()).context("ip")?;
    }
    let output = child.wait_with_output().context("ip")?;
    ensure!(output.status.success(), "ip: {}\n{lines}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What `bpftool` prints as JSON.
pub(crate) fn bpftool(arguments: &[&str]) -> Result<serde_json::Value> {
    let output = Command::new("bpftool").arg("-j").args(arguments).output().context("bpftool")?;
    if !output.status.success() {
        bail!("bpftool {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stdout));
    }
    if output.stdout.iter().all(u8::is_ascii_whitespace) {
        return Ok(serde_json::Value::Null);
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("bpftool {}", arguments.join(" ")))
}
