//! A node whose programs a real systemd starts: a container of systemd-nspawn in the node's network namespace, with this
//! machine's `/usr` beneath one that can be written to. systemd of the machine itself, if there is one, is not asked.
//!
//! Stock flanneld and docker are stood in for by a program that only says it is ready and then waits: what stock flannel
//! does to the kernel is [`Stock`](super::Stock)'s, and containers are `docker.rs`'s. What is of interest here is what
//! systemd does to them.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{Node, cgroup, make_dir};
use crate::{
    command::{Daemon, run, run_with, tool},
    requirements::check,
    wait::eventually,
};

/// What it needs beyond what every lab needs.
const PROGRAMS: [(&str, &str); 4] = [
    ("systemd-nspawn", "systemd-container"),
    ("systemctl", "systemd"),
    ("nsenter", "util-linux"),
    ("perl", "perl-base"),
];

/// How long systemd may take to start, one command to end, and systemd to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// Says that it is ready, as `Type=notify` wants to hear it of the process itself, and waits. `/run/<name>` has its
/// arguments.
const READY_AND_WAITING: &str = r#"#!/usr/bin/perl
use Socket;
my ($name) = $0 =~ m{([^/]*)$};
open(my $file, '>', "/run/$name.arguments") or die;
print $file "@ARGV\n";
close($file) or die;
socket(my $socket, AF_UNIX, SOCK_DGRAM, 0) or die;
send($socket, 'READY=1', 0, pack_sockaddr_un($ENV{NOTIFY_SOCKET})) or die;
sleep while 1;
"#;

/// What it keeps of its containers in `/run/systemd` goes with it.
const SCRIPT: &str = r#"
mkdir -p /run/systemd
mount -t tmpfs tmpfs /run/systemd
exec systemd-nspawn "$@"
"#;

/// The targets of which nothing is started: the machine's own services have no business here.
const TARGETS: [&str; 5] = ["sysinit", "local-fs", "sockets", "timers", "multi-user"];

/// Such a container.
#[derive(Debug)]
pub struct Systemd {
    daemon: Daemon,
    leader: u32,
}

impl Node {
    /// Starts systemd here, with these files, by their paths and with their texts, beside those of this machine's
    /// `/usr`. `/usr/bin/flanneld` and `/usr/sbin/dockerd` are stand-ins; `/run/flannel` and `/sys/fs/bpf` are this
    /// node's; `binds` are further files or directories of this machine, and where they are to be.
    pub fn systemd(&self, files: &[(&str, &str)], binds: &[(&Path, &str)]) -> Result<Systemd> {
        check(&PROGRAMS)?;
        let (root, over) = (self.dir().join("systemd"), self.dir().join("systemd-usr"));
        prepare(&root)?;
        for program in ["bin/flanneld", "sbin/dockerd"] {
            write_program(&over.join(program), READY_AND_WAITING)?;
        }
        for (path, text) in files {
            let path = root.join(path.trim_start_matches('/'));
            make_dir(path.parent().context("a file is in a directory")?)?;
            let mode = if text.starts_with("#!") { 0o755 } else { 0o644 };
            fs::write(&path, text).with_context(|| path.display().to_string())?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        }
        let run_flannel = self.root_path("/run/flannel");
        make_dir(&run_flannel)?;
        let mut command = tool("sh");
        command.args(["-ec", cgroup::APART, self.names().id()]);
        command.args(["unshare", "--mount", "--propagation", "slave", "sh", "-ec", SCRIPT, "sh"]);
        // Of /proc/sys only what is the network namespace's own can be written.
        command.env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network");
        command.args(["--quiet", "--boot", "--register=no", "--keep-unit", "--console=read-only"]);
        command.args(["--capability=all", "--system-call-filter=bpf", "--resolv-conf=off", "--timezone=off"]);
        command.arg(format!(
            "--machine={}",
            self.lab_dir().file_name().context("a lab has a name")?.to_string_lossy()
        ));
        command.arg(format!("--directory={}", root.display()));
        command.arg(format!("--overlay=/usr:{}:/usr", over.display()));
        command.arg(format!("--network-namespace-path={}", self.netns().path().display()));
        let (run_flannel, bpffs) = (run_flannel.as_path(), self.bpffs());
        for (what, at) in [(run_flannel, "/run/flannel"), (&*bpffs, "/sys/fs/bpf")].iter().chain(binds) {
            command.arg(format!("--bind={}:{at}", what.display()));
        }
        let daemon = Daemon::spawn(&mut command, &self.log("systemd"))?;
        let mut systemd = Systemd { daemon, leader: 0 };
        eventually(PATIENCE, "systemd has started", || {
            systemd.daemon.check_running()?;
            // Another, before it is the one that stays.
            let id = systemd.daemon.id();
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
            systemd.leader = children.split_whitespace().next().context("no child yet")?.parse()?;
            let state = systemd.command("systemctl is-system-running || true").output()?;
            let said = String::from_utf8_lossy(&state.stdout).trim().to_owned();
            ensure!(said == "running" || said == "degraded", "{state:?}");
            Ok(())
        })?;
        Ok(systemd)
    }
}

impl Systemd {
    fn command(&self, line: &str) -> Command {
        let mut command = tool("nsenter");
        command.arg(format!("--target={}", self.leader));
        command.args(["--mount", "--uts", "--ipc", "--pid", "--net", "--root", "--wd", "sh", "-ec"]);
        command.arg(format!("cd /root; export EDITOR=/root/editor; {line}"));
        command
    }

    /// Runs a line as root's shell has it typed, in `/root`; its standard output. `$EDITOR` is `/root/editor`.
    pub fn run(&self, line: &str) -> Result<String> {
        run_with(&mut self.command(line), "", PATIENCE).with_context(|| {
            let journal = self.command("journalctl --no-pager --lines 40").output();
            journal.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
        })
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        Ok(self.run(&format!("systemctl show --property={name} --value {unit}"))?.trim().to_owned())
    }

    /// The main process of a service that is running, by its number in the container.
    pub fn main_process(&self, unit: &str) -> Result<u32> {
        let state = self.property(unit, "ActiveState")?;
        ensure!(
            state == "active",
            "{unit} is {state}: {}",
            self.run(&format!("journalctl --no-pager -u {unit}"))?
        );
        self.property(unit, "MainPID")?.parse().context("MainPID")
    }

    /// Ends it, with all it has started.
    pub fn stop(mut self) -> Result<()> {
        self.daemon.signal(Signal::SIGTERM, PATIENCE).map(drop)
    }
}

/// Makes `root` a root directory that systemd starts in, without the services of this machine.
fn prepare(root: &Path) -> Result<()> {
    for made in ["usr/lib", "etc/systemd/system", "var/lib", "dev", "proc", "sys", "run", "tmp", "root"] {
        make_dir(&root.join(made))?;
    }
    for link in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{link}"), root.join(link))?;
    }
    // By these it is known to be one, before /usr is there.
    fs::copy("/usr/lib/os-release", root.join("usr/lib/os-release")).context("/usr/lib/os-release")?;
    symlink("../usr/lib/os-release", root.join("etc/os-release"))?;
    fs::write(root.join("etc/machine-id"), format!("{:032x}\n", 1))?;
    for of_machine in ["passwd", "group", "nsswitch.conf", "ld.so.cache"] {
        fs::copy(Path::new("/etc").join(of_machine), root.join("etc").join(of_machine))
            .with_context(|| of_machine.to_owned())?;
    }
    run(tool("cp").args(["--archive", "/etc/alternatives"]).arg(root.join("etc")))?;
    let units = root.join("etc/systemd/system");
    for target in TARGETS {
        let wanted = format!("/usr/lib/systemd/system/{target}.target.wants");
        for unit in fs::read_dir(&wanted).into_iter().flatten().flatten() {
            let name = unit.file_name();
            let mask = units.join(&name);
            if !name.to_string_lossy().starts_with("systemd-journald") && fs::symlink_metadata(&mask).is_err()
            {
                symlink("/dev/null", &mask).with_context(|| mask.display().to_string())?;
            }
        }
    }
    Ok(())
}

fn write_program(path: &Path, text: &str) -> Result<()> {
    make_dir(path.parent().context("a program is in a directory")?)?;
    fs::write(path, text).with_context(|| path.display().to_string())?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}
