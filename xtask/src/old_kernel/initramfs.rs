//! What the emulated machine boots into: the agent, the tools of a node, and the modules of its kernel.

use std::{
    fs::{self, File},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::{ebtables, kernel::Kernel};
use crate::host::find_program;

/// Programs taken from this machine, with their libraries.
const PROGRAMS: [&str; 9] =
    ["dash", "ip", "tc", "ping", "iperf3", "nft", "wg", "xtables-nft-multi", "flannel-agent"];

/// Names of iptables, which is one program.
const IPTABLES: [&str; 6] =
    ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"];

/// Words of busybox that are used. Its shell is not: to that all of busybox comes before PATH.
const APPLETS: [&str; 24] = [
    "cat", "dmesg", "grep", "kill", "mkdir", "modprobe", "mount", "poweroff", "sed", "sleep", "sysctl",
    "tail", "test", "tr", "true", "head", "rm", "mv", "sort", "touch", "ln", "mknod", "wc", "awk",
];

/// Where CNI plugins are.
const PLUGINS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

/// Directories of modules that networks need.
const MODULES: [&str; 5] = ["kernel/net", "kernel/drivers/net", "kernel/lib", "kernel/crypto", "kernel/arch"];

/// What the first process mounts at, or expects.
const DIRECTORIES: [&str; 10] = ["bin", "sbin", "usr/sbin", "proc", "sys", "dev", "run", "tmp", "var", "etc"];

/// Makes it in `work`, with `script` as the first process, and returns where it is. `with_charon` it has strongSwan.
pub(super) fn make(
    work: &Path,
    kernel: &Kernel,
    agent: &Path,
    script: &str,
    with_charon: bool,
) -> Result<PathBuf> {
    let root = work.join("root");
    make_directories(&root)?;
    for program in PROGRAMS {
        let path = if program == "flannel-agent" { Some(agent.to_owned()) } else { find_program(program) };
        let path = path.with_context(|| format!("there is no {program}; `cargo xtask setup` installs it"))?;
        copy_program(&root, &path, &root.join("bin").join(program))?;
    }
    run(Command::new("strip").arg("-g").arg(root.join("bin/flannel-agent")))?;
    let busybox = find_program("busybox").context("there is no busybox; `cargo xtask setup` installs it")?;
    copy_program(&root, &busybox, &root.join("bin/busybox"))?;
    for name in IPTABLES {
        link("xtables-nft-multi", &root.join("bin").join(name))?;
    }
    copy_extensions(&root)?;
    if with_charon {
        copy_charon(&root)?;
    }
    complete(&root, work, kernel, script)
}

/// Adds the legacy ebtables, unpacked at `from`, to what [`make`] makes in `work`.
pub(super) fn copy_ebtables(work: &Path, from: &Path) -> Result<()> {
    let root = work.join("root");
    make_directory(&root.join("bin"))?;
    copy_program(&root, &from.join(ebtables::PROGRAM), &root.join("bin/ebtables-legacy"))?;
    for library in fs::read_dir(from.join(ebtables::LIBRARIES))?.flatten() {
        copy(&library.path(), &root.join(ebtables::LIBRARIES).join(library.file_name()))?;
    }
    Ok(())
}

/// Adds our CNI plugin, which is beside `agent`, and those of others that it needs, to what [`make`] makes in `work`.
pub(super) fn copy_plugins(work: &Path, agent: &Path) -> Result<()> {
    let to = work.join("root/opt/cni/bin");
    copy_program(&work.join("root"), &agent.with_file_name("flannel"), &to.join("flannel"))?;
    run(Command::new("strip").arg("-g").arg(to.join("flannel")))?;
    for name in ["bridge", "host-local"] {
        let found = PLUGINS.map(|directory| Path::new(directory).join(name));
        let found = found.iter().find(|path| path.is_file());
        let found = found
            .with_context(|| format!("there is no CNI plugin {name}; `cargo xtask setup` installs it"))?;
        copy_program(&work.join("root"), found, &to.join(name))?;
    }
    Ok(())
}

/// Makes one of `root`, in which Debian's packages of a node were unpacked, with `agent`.
pub(super) fn finish(
    root: &Path,
    work: &Path,
    kernel: &Kernel,
    agent: &Path,
    script: &str,
) -> Result<PathBuf> {
    make_directories(root)?;
    copy(agent, &root.join("bin/flannel-agent"))?;
    // As the packages' scripts would do it, which cannot be run here.
    for name in IPTABLES {
        let at = root.join("usr/sbin").join(name);
        let _ = fs::remove_file(&at);
        link("xtables-nft-multi", &at)?;
    }
    link("/run", &root.join("var/run"))?;
    complete(root, work, kernel, script)
}

fn make_directories(root: &Path) -> Result<()> {
    DIRECTORIES.iter().try_for_each(|directory| make_directory(&root.join(directory)))
}

/// Adds what each has: words of busybox, modules, and the script.
fn complete(root: &Path, work: &Path, kernel: &Kernel, script: &str) -> Result<PathBuf> {
    for applet in APPLETS {
        let at = root.join("bin").join(applet);
        if !at.exists() {
            link("busybox", &at)?;
        }
    }
    // Where the kernel looks for it, to load what agents ask for.
    let modprobe = root.join("sbin/modprobe");
    let _ = fs::remove_file(&modprobe);
    link("/bin/busybox", &modprobe)?;
    let shell = root.join("bin/sh");
    let _ = fs::remove_file(&shell);
    link("dash", &shell)?;
    copy_modules(root, kernel)?;
    let init = root.join("init");
    fs::write(&init, script).with_context(|| init.display().to_string())?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    pack(root, &work.join("initramfs"))
}

fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(directory) = to.parent() {
        make_directory(directory)?;
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

fn link(target: &str, at: &Path) -> Result<()> {
    symlink(target, at).with_context(|| format!("cannot create {}", at.display()))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// With the libraries that `ldd` names; of a static program it names none.
fn copy_program(root: &Path, from: &Path, to: &Path) -> Result<()> {
    copy(from, to)?;
    let output = Command::new("ldd").arg(from).output().context("cannot run ldd")?;
    let listing = String::from_utf8_lossy(&output.stdout).into_owned();
    let libraries = listing.split_whitespace().filter_map(|word| word.strip_prefix('/'));
    for library in libraries.filter(|library| !library.ends_with(':')) {
        let to = root.join(library);
        if !to.exists() {
            copy(&Path::new("/").join(library), &to)?;
        }
    }
    Ok(())
}

/// The matches and targets of iptables, which it loads by name.
fn copy_extensions(root: &Path) -> Result<()> {
    const DIRECTORY: &str = "usr/lib/x86_64-linux-gnu/xtables";
    let from = Path::new("/").join(DIRECTORY);
    for entry in fs::read_dir(&from).with_context(|| from.display().to_string())?.flatten() {
        copy(&entry.path(), &root.join(DIRECTORY).join(entry.file_name()))?;
    }
    Ok(())
}

/// strongSwan's IKE daemon with its plugins and configuration, and what talks to it.
fn copy_charon(root: &Path) -> Result<()> {
    const DIRECTORY: &str = "usr/lib/ipsec";
    for program in ["unshare", "nsenter", "mount", "swanctl", "socat"] {
        let path = find_program(program).with_context(|| format!("there is no {program}"))?;
        let to = root.join("bin").join(program);
        // Busybox has some of them, with fewer words.
        let _ = fs::remove_file(&to);
        copy_program(root, &path, &to)?;
    }
    copy_program(root, &Path::new("/").join(DIRECTORY).join("charon"), &root.join(DIRECTORY).join("charon"))?;
    for entry in fs::read_dir(Path::new("/").join(DIRECTORY).join("plugins"))?.flatten() {
        copy_program(root, &entry.path(), &root.join(DIRECTORY).join("plugins").join(entry.file_name()))?;
    }
    for configuration in ["/etc/strongswan.conf", "/etc/strongswan.d"] {
        run(Command::new("cp").arg("-r").arg(configuration).arg(root.join("etc")))?;
    }
    link("/run", &root.join("var/run"))
}

fn copy_modules(root: &Path, kernel: &Kernel) -> Result<()> {
    let to = root.join("lib/modules").join(&kernel.version);
    make_directory(&to.join("kernel"))?;
    for directory in MODULES {
        let from = kernel.modules.join(directory);
        let target = to.join(directory);
        let parent = target.parent().context("a path within modules")?;
        make_directory(parent)?;
        run(Command::new("cp").arg("-r").arg(from).arg(parent))?;
    }
    for list in ["modules.order", "modules.builtin"] {
        copy(&kernel.modules.join(list), &to.join(list))?;
    }
    decompress(&to)?;
    run(Command::new("busybox").arg("depmod").arg("-b").arg(root).arg(&kernel.version))
}

/// Later releases compress each module, which not every busybox reads.
fn decompress(modules: &Path) -> Result<()> {
    run(Command::new("find").arg(modules).args([
        "-name",
        "*.ko.xz",
        "-exec",
        "xz",
        "--decompress",
        "{}",
        "+",
    ]))?;
    for list in ["modules.order", "modules.builtin"] {
        let path = modules.join(list);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        fs::write(&path, text.replace(".ko.xz", ".ko")).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn pack(root: &Path, to: &Path) -> Result<PathBuf> {
    let mut find = Command::new("find");
    let mut find =
        find.arg(".").current_dir(root).stdout(Stdio::piped()).spawn().context("cannot run find")?;
    let names = find.stdout.take().context("find has no output")?;
    let archive = File::create(to).with_context(|| to.display().to_string())?;
    let mut cpio = Command::new("cpio");
    cpio.args(["--create", "--format=newc", "--quiet"]).current_dir(root).stdin(names).stdout(archive);
    let packed = cpio.status().context("cannot run cpio")?;
    let listed = find.wait().context("find")?;
    ensure!(packed.success() && listed.success(), "cpio ended with {packed}, find with {listed}");
    Ok(to.to_owned())
}
