//! apt with lists of its own: for packages of another release of Debian than this machine's, which it neither
//! installs nor hears of.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// The keys that Debian signs its releases with, on every Debian.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What is fetched.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// Packages.
    Binary,
    /// Their sources.
    Source,
}

/// Fetches from the machine's own mirror, and checks what it fetches as apt does everywhere.
pub(crate) struct PrivateApt {
    options: Vec<String>,
    downloads: PathBuf,
    archives: PathBuf,
}

impl PrivateApt {
    /// One of `release`, that keeps all it has in `tree`.
    pub(crate) fn new(tree: &Path, kind: Kind, release: &str) -> Result<Self> {
        let mirror = mirror()?;
        let [lists, cache, downloads] = ["lists", "cache", "downloads"].map(|name| tree.join(name));
        for dir in [lists.join("partial"), cache.join("archives/partial"), downloads.clone()] {
            fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        let sources = tree.join("sources.list");
        fs::write(&sources, source_line(kind, &mirror, release, Path::new(KEYRING).exists()))
            .with_context(|| format!("cannot write {}", sources.display()))?;
        let settings = [
            ("Dir::Etc::SourceList", sources.as_path()),
            ("Dir::Etc::SourceParts", Path::new("/dev/null")),
            ("Dir::State::Lists", &lists),
            ("Dir::Cache", &cache),
            // Root's home is closed to the user that apt would else download as.
            ("APT::Sandbox::User", Path::new("root")),
        ];
        let options = settings.map(|(key, value)| format!("-o{key}={}", value.display())).to_vec();
        Ok(Self { options, downloads, archives: cache.join("archives") })
    }

    /// The same of `architecture`, as of a machine that has no packages yet: with a package it fetches all that this
    /// depends on.
    pub(crate) fn of_architecture(
        tree: &Path,
        kind: Kind,
        release: &str,
        architecture: &str,
    ) -> Result<Self> {
        let mut apt = Self::new(tree, kind, release)?;
        let status = tree.join("status");
        fs::write(&status, "").with_context(|| format!("cannot write {}", status.display()))?;
        apt.options.extend([
            format!("-oAPT::Architecture={architecture}"),
            format!("-oAPT::Architectures={architecture}"),
            format!("-oDir::State::status={}", status.display()),
            "-oDebug::NoLocking=true".to_owned(),
        ]);
        Ok(apt)
    }

    /// `apt-get` with `arguments`.
    pub(crate) fn get(&self, arguments: &[&str]) -> Command {
        self.command("apt-get", arguments)
    }

    /// `apt-cache` with `arguments`.
    pub(crate) fn cache(&self, arguments: &[&str]) -> Command {
        self.command("apt-cache", arguments)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options).args(arguments).current_dir(&self.downloads).env("LC_ALL", "C");
        command
    }

    /// All packages that were downloaded, also by `install --download-only`.
    pub(crate) fn fetched(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for directory in [&self.downloads, &self.archives] {
            let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
            let paths = entries.flatten().map(|entry| entry.path());
            files.extend(paths.filter(|path| path.extension().is_some_and(|end| end == "deb")));
        }
        Ok(files)
    }

    /// What was downloaded.
    pub(crate) fn downloaded(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&self.downloads).with_context(|| self.downloads.display().to_string())?;
        Ok(entries.flatten().map(|entry| entry.path()).collect())
    }
}

fn source_line(kind: Kind, mirror: &str, release: &str, has_keyring: bool) -> String {
    let signed_by = if has_keyring { format!("[signed-by={KEYRING}] ") } else { String::new() };
    let kind = match kind {
        Kind::Binary => "deb",
        Kind::Source => "deb-src",
    };
    format!("{kind} {signed_by}{mirror} {release} main\n")
}

/// Where this machine gets Debian's packages from.
fn mirror() -> Result<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(ORIGIN)", "Created-By: Packages"])
        .env("LC_ALL", "C")
        .output()
        .context("cannot run apt-get")?;
    let targets = String::from_utf8_lossy(&output.stdout);
    match debian_mirror(&targets) {
        Some(mirror) => Ok(mirror.to_owned()),
        None => bail!("apt gets no packages of Debian here"),
    }
}

/// The first address with a whole release of Debian: not its updates only, which have no source of ours.
fn debian_mirror(targets: &str) -> Option<&str> {
    targets.lines().find_map(|line| {
        let mut words = line.splitn(3, ' ');
        let (address, release, origin) = (words.next()?, words.next()?, words.next()?);
        // Of a repository whose lists were never fetched apt knows no origin.
        let is_debian = origin == "Debian" || origin.starts_with("$(");
        (is_debian && !release.contains(['-', '/']) && !address.starts_with("cdrom:")).then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use super::{Kind, debian_mirror, source_line};

    #[test]
    fn the_mirror_is_that_of_a_whole_debian_release() {
        let targets = "cdrom:[Debian 12]/ bookworm Debian\n\
                       https://packages.example/apt stable Example\n\
                       http://mirror.example/debian-security/ bookworm-security Debian\n\
                       http://mirror.example/debian/ trixie Debian\n";
        assert_eq!(debian_mirror(targets), Some("http://mirror.example/debian/"));
        // As apt prints it before the first update.
        assert_eq!(
            debian_mirror("http://m.example/debian/ bookworm $(ORIGIN)\n"),
            Some("http://m.example/debian/")
        );
        assert_eq!(debian_mirror("http://archive.example/ubuntu/ noble Ubuntu\n"), None);
        assert_eq!(debian_mirror("\n"), None);
    }

    #[test]
    fn sources_are_checked_by_debians_keys() {
        let line = source_line(Kind::Source, "http://mirror.example/debian/", "bookworm", true);
        assert!(
            line.starts_with("deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http"),
            "{line}"
        );
        let line = source_line(Kind::Binary, "http://m.example/", "bookworm", false);
        assert_eq!(line, "deb http://m.example/ bookworm main\n");
    }
}
