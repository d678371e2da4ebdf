//! The API server and kube-proxy that the tests run: built from Debian's source package, which has all that it
//! takes, by apt's own means and with apt's own checks of where it comes from.
//!
//! ```text
//! the machine's mirror ─▶ apt-get source ─▶ tar ─▶ make ─▶ ~/.cache/flannel-ebpf/kubernetes-VERSION
//! ```

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use flannel_ebpf_toolchain::{KUBERNETES_VERSION, cache_dir, kubernetes_dir};

use super::{
    apt,
    private_apt::{Kind, PrivateApt},
    tools,
};
use crate::{
    failure::failure,
    host::{self, find_program},
    ui::Step,
};

/// What is built.
const PROGRAMS: [&str; 2] = ["kube-apiserver", "kube-proxy"];

/// The Debian release whose source package is of [`KUBERNETES_VERSION`]; later ones have kubectl only.
const RELEASE: &str = "bookworm";

/// The compiler that the source is known to build with, where Debian puts it.
const GO: &str = "/usr/lib/go-1.19/bin/go";

/// The library by which Kubernetes looks into its own types. The one in its vendor tree is older than Go 1.18, whose
/// maps it cannot read: with it the API server fails at every label. Debian has a newer one.
const REFLECT: &str = "golang-github-modern-go-reflect2";

/// What the source and all that comes of it take while building, MiB, with room to spare.
const ROOM: u64 = 3 * 1024;

/// The programs in our cache, each run to see that it works.
pub(super) fn programs() -> Result<Vec<tools::Found>> {
    let run = |name| tools::run(name, kubernetes_dir().join(name), &["--version"]);
    PROGRAMS.into_iter().map(run).collect::<Result<_, _>>().map_err(|reason| {
        failure(format!("there is no Kubernetes {KUBERNETES_VERSION} for the tests: {reason}"), by_hand())
    })
}

/// The packages that building it takes and that are not there.
pub(super) fn packages() -> Vec<&'static str> {
    let mut packages = Vec::new();
    if go().is_none() {
        packages.push(apt::choose("golang-1.19-go | golang-go"));
    }
    packages.extend(["make", "rsync"].into_iter().filter(|program| find_program(program).is_none()));
    packages
}

/// Builds the programs into our cache, unless another setup did so meanwhile.
pub(super) fn install() -> Result<()> {
    let cache = cache_dir();
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let lock_path = cache.join("kubernetes.lock");
    let lock = File::create(&lock_path).with_context(|| format!("cannot create {}", lock_path.display()))?;
    let step = Step::start(format!("Building Kubernetes {KUBERNETES_VERSION} (about five minutes)"));
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            step.note("another setup is building it; waiting for that");
            lock.lock().with_context(|| format!("cannot lock {}", lock_path.display()))?;
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", lock_path.display()));
        }
    }
    if programs().is_ok() {
        step.done(&kubernetes_dir().display().to_string());
        return Ok(());
    }
    // A killed run leaves gigabytes behind.
    let tree = cache.join("kubernetes.build");
    let _ = fs::remove_dir_all(&tree);
    check_room(&cache)?;
    let built = fetch(&step, &tree).and_then(|archives| build(&step, &tree, &archives));
    let removed = fs::remove_dir_all(&tree);
    built?;
    if let Err(error) = removed {
        step.note(&format!("cannot remove {}, which nobody needs any more: {error}", tree.display()));
    }
    step.done(&kubernetes_dir().display().to_string());
    Ok(())
}

/// What anybody can do whom this way does not help.
fn by_hand() -> String {
    format!(
        "run `cargo xtask setup --kubernetes`; where that cannot build them, put {} of Kubernetes \
         {KUBERNETES_VERSION} into {}",
        PROGRAMS.join(" and "),
        kubernetes_dir().display()
    )
}

/// Go 1.19, or whatever Go there is.
fn go() -> Option<PathBuf> {
    Some(PathBuf::from(GO)).filter(|go| go.is_file()).or_else(|| find_program("go"))
}

fn check_room(dir: &Path) -> Result<()> {
    let output = Command::new("df").args(["-P", "-m"]).arg(dir).output().context("cannot run df")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let free = available(&said).with_context(|| format!("df said of {}: {said:?}", dir.display()))?;
    if free >= ROOM {
        return Ok(());
    }
    Err(failure(
        format!("building Kubernetes takes {ROOM} MiB, and {} has {free} MiB free", dir.display()),
        "make room there, or set XDG_CACHE_HOME to a directory elsewhere; it is free again afterwards",
    ))
}

/// The fourth column of the second line that `df -P -m` prints.
fn available(said: &str) -> Option<u64> {
    said.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()
}

/// The archives with upstream's source in them. apt has checked them against the release's signature by then.
struct Archives {
    kubernetes: PathBuf,
    reflect: PathBuf,
}

fn fetch(step: &Step, tree: &Path) -> Result<Archives> {
    if !host::has_apt() {
        return Err(failure(
            "Kubernetes is built from Debian's source package, and apt-get is not here",
            by_hand(),
        ));
    }
    let apt = PrivateApt::new(tree, Kind::Source, RELEASE)
        .map_err(|error| failure(format!("{error:#}"), by_hand()))?;
    let fetched = step.run_as("apt-get", &mut apt.get(&["update"])).and_then(|()| {
        step.run_as("apt-get", &mut apt.get(&["source", "--download-only", "kubernetes", REFLECT]))
    });
    fetched.map_err(|error| failure(format!("cannot fetch Kubernetes's source: {error:#}"), by_hand()))?;
    let version = KUBERNETES_VERSION.trim_start_matches('v');
    Ok(Archives {
        kubernetes: archive(&apt, "kubernetes_", version)?,
        reflect: archive(&apt, &format!("{REFLECT}_"), "")?,
    })
}

/// The archive of upstream's source of the package whose file names begin with `prefix`.
fn archive(apt: &PrivateApt, prefix: &str, version: &str) -> Result<PathBuf> {
    let is_archive = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(prefix) && name.contains(&format!("{version}.orig.tar."))
    };
    apt.downloaded()?.into_iter().find(is_archive).ok_or_else(|| {
        failure(format!("Debian {RELEASE} no longer has the source {prefix}{version}"), by_hand())
    })
}

fn unpack(step: &Step, archive: &Path, into: &Path) -> Result<()> {
    fs::create_dir_all(into).with_context(|| format!("cannot create {}", into.display()))?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--no-same-owner", "--strip-components=1", "--file"]).arg(archive);
    step.run(tar.arg("--directory").arg(into))
}

fn build(step: &Step, tree: &Path, archives: &Archives) -> Result<()> {
    let go = go().context("Go was installed and is not there")?;
    // Without modules, a Go package is where its name says.
    let gopath = tree.join("go");
    let source = gopath.join("src/k8s.io/kubernetes");
    unpack(step, &archives.kubernetes, &source)?;
    let reflect = source.join("vendor/github.com/modern-go/reflect2");
    fs::remove_dir_all(&reflect).with_context(|| format!("cannot remove {}", reflect.display()))?;
    unpack(step, &archives.reflect, &reflect)?;

    let what = PROGRAMS.map(|program| format!("cmd/{program}")).join(" ");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = go.parent().map(Path::to_owned).into_iter().chain(std::env::split_paths(&path));
    // What the compiler puts there goes with the tree, also after a kill.
    let temporary = tree.join("tmp");
    fs::create_dir_all(&temporary).with_context(|| format!("cannot create {}", temporary.display()))?;
    let mut make = Command::new("make");
    make.arg(format!("WHAT={what}")).current_dir(&source);
    make.env("PATH", std::env::join_paths(path).context("PATH")?);
    make.env("GOPATH", &gopath).env("GOCACHE", tree.join("gocache")).env("GOTMPDIR", &temporary);
    make.env("GO111MODULE", "off").env("GOPROXY", "off").env("GOTOOLCHAIN", "local").env("GOFLAGS", "");
    make.env("KUBE_GIT_VERSION", KUBERNETES_VERSION).env("KUBE_GIT_COMMIT", "debian");
    make.env("KUBE_GIT_TREE_STATE", "archive").env("KUBE_GIT_MAJOR", "1").env("KUBE_GIT_MINOR", "20");
    // Nobody debugs them, and without symbols they are a third smaller.
    make.env("GOLDFLAGS", "-s -w");
    step.run(&mut make).map_err(|error| {
        failure(format!("Kubernetes does not build with {}: {error:#}", go.display()), by_hand())
    })?;

    // Both or none, under the name that says they are complete.
    let target = kubernetes_dir();
    let new = tree.join("built");
    fs::create_dir_all(&new).with_context(|| format!("cannot create {}", new.display()))?;
    for program in PROGRAMS {
        let output = source.join("_output/bin").join(program);
        fs::copy(&output, new.join(program)).with_context(|| format!("cannot copy {}", output.display()))?;
    }
    let _ = fs::remove_dir_all(&target);
    fs::rename(&new, &target).with_context(|| format!("cannot create {}", target.display()))?;
    if let Err(error) = programs() {
        bail!("what was built does not run: {error:#}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::available;

    #[test]
    fn free_room_is_read_from_df() {
        let said = "Filesystem 1048576-blocks  Used Available Capacity Mounted on\n/dev/vda 258000 24000 68000 27% /\n";
        assert_eq!(available(said), Some(68_000));
        assert_eq!(available("df: nothing\n"), None);
    }
}
