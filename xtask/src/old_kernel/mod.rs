//! `old-kernel`: the agent on kernels that this machine does not run, such as have no tcx links.
//!
//! ```text
//! the machine's mirror ─▶ linux-image-cloud-amd64 ─▶ ~/.cache/flannel-ebpf/kernel-RELEASE ─▶ qemu
//!                              agent, ip, tc, iptables, scripts ─▶ initramfs ───────────────┘
//! ```
//!
//! `kernels` ([`matrix`]) runs one suite on several, and makes a table of what works how.

mod ebtables;
mod foreign;
mod initramfs;
mod kernel;
mod matrix;
mod packages;
mod table;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use flannel_ebpf_toolchain::cache_dir;

pub(crate) use matrix::{Options as MatrixOptions, run as run_matrix};

use crate::{
    cargo::{Profile, build_agent},
    failure::failure,
    setup,
    ui::{Step, print},
};

/// How long the machine may take. It is emulated also where there is KVM, which in a guest may not work: thirty times
/// slower, and the same everywhere.
const PATIENCE: &str = "2400";

/// What `timeout` ends with then.
const TIMED_OUT: i32 = 124;

/// What is run, each with the package that brings it.
const PROGRAMS: [(&str, &str); 4] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("cpio", "cpio"),
    ("strip", "binutils"),
    ("wg", "wireguard-tools"),
];

/// The same for [`Options::tunnels`].
const STRONGSWAN: [(&str, &str); 3] = [
    ("swanctl", "strongswan-swanctl"),
    ("/usr/lib/ipsec/charon", "strongswan-charon"),
    ("/usr/lib/ipsec/plugins/libstrongswan-openssl.so", "libstrongswan-standard-plugins"),
];

/// What tells charon as stock flannel does, with the package that brings it.
const SOCAT: (&str, &str) = ("socat", "socat");

/// What the machine does: the fast path, or tunnels.
const SCRIPTS: [&str; 2] = [
    concat!(include_str!("machine.sh"), include_str!("init.sh")),
    concat!(
        include_str!("machine.sh"),
        include_str!("nodes.sh"),
        include_str!("stock.sh"),
        include_str!("tunnels.sh")
    ),
];

/// Options of `old-kernel`.
#[derive(Args)]
pub(crate) struct Options {
    /// Debian release whose kernel is booted
    #[arg(value_enum, default_value_t = Release::Bookworm)]
    release: Release,
    /// Try the backends that this machine's kernel may not have, ipip, wireguard and ipsec, beside stock flannel's nodes, from
    /// them and back to them, instead of the fast path
    #[arg(long)]
    tunnels: bool,
}

/// A release of Debian.
#[derive(Clone, Copy, ValueEnum)]
enum Release {
    /// Linux 5.10, which has not all that the programs need
    Bullseye,
    /// Linux 6.1, the fast path by clsact
    Bookworm,
}

impl Release {
    const fn name(self) -> &'static str {
        match self {
            Self::Bullseye => "bullseye",
            Self::Bookworm => "bookworm",
        }
    }

    /// By which path packets travel on its kernel.
    const fn path(self) -> &'static str {
        match self {
            Self::Bullseye => "kernel",
            Self::Bookworm => "fast",
        }
    }
}

/// Boots the kernel and prints what the machine says.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(setup::Scope::Lab)?;
    setup::ensure_programs(&PROGRAMS)?;
    if options.tunnels {
        setup::ensure_programs(&STRONGSWAN)?;
        setup::ensure_programs(&[SOCAT])?;
    }
    let kernel = kernel::of(options.release.name(), "amd64")?;
    let ebtables = ebtables::unpacked(Release::Bookworm.name())?;
    let agent = build_agent(Profile::Dev)?;
    let work = cache_dir().join(format!("old-kernel.{}", std::process::id()));
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    let said = initramfs::copy_ebtables(&work, &ebtables)
        .and_then(|()| {
            let script = SCRIPTS[usize::from(options.tunnels)];
            initramfs::make(&work, &kernel, &agent, script, options.tunnels)
        })
        .and_then(|initramfs| {
            let step = Step::start(format!("Two nodes on {}", kernel.version));
            let said = boot(&kernel, &initramfs, options.release.path(), None, |line| step.show(line));
            step.done("ended");
            said
        });
    let _ = fs::remove_dir_all(&work);
    let said = said?;
    print(said.trim_end())?;
    if said.lines().any(|line| line == "PASSED") {
        return Ok(());
    }
    Err(failure(
        format!("{}: the machine did not say PASSED", kernel.version),
        "look at what it says above; xtask/src/old_kernel has the scripts that it runs",
    ))
}

/// Runs the machine until it ends, and returns what it wrote to its console; each line goes to `hear` as it comes. `path` is
/// by which path packets are to travel; without a `foreign` architecture it is of this machine's.
fn boot(
    kernel: &kernel::Kernel,
    initramfs: &Path,
    path: &str,
    foreign: Option<foreign::Foreign>,
    mut hear: impl FnMut(&str),
) -> Result<String> {
    let (emulator, machine, console) = match foreign {
        Some(foreign) => (foreign.emulator.0, foreign.machine, foreign.console),
        None => ("qemu-system-x86_64", ["-machine", "q35", "-cpu", "max"], "ttyS0"),
    };
    let mut qemu = Command::new("timeout");
    qemu.args([PATIENCE, emulator]).args(machine).args(["-accel", "tcg"]);
    qemu.args(["-m", "2000", "-smp", "2", "-nographic", "-no-reboot", "-nic", "none"]);
    qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
    qemu.arg("-append").arg(format!("console={console} quiet panic=-1 flannel_path={path}"));
    qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut qemu = qemu.spawn().with_context(|| format!("cannot run {emulator}"))?;
    let console = qemu.stdout.take().context("the emulator has no output")?;
    let mut said = String::new();
    for line in BufReader::new(console).split(b'\n') {
        let line = String::from_utf8_lossy(&line.context("what the emulator prints")?).replace('\r', "");
        hear(&line);
        said.push_str(&line);
        said.push('\n');
    }
    let output = qemu.wait_with_output().context("waiting for the emulator")?;
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    if output.status.code() == Some(TIMED_OUT) {
        said.push_str(&format!("FAILED: it did not end within {PATIENCE} s\n"));
    }
    // Before it are the firmware's words and control sequences.
    let start = said.find("Linux version").unwrap_or(0);
    Ok(said[start..].to_owned())
}
