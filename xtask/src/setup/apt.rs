//! Debian's packages: which can be had, and installing them without starting anything.

use std::{collections::BTreeSet, fmt, path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    failure::failure,
    host::{self, find_program},
    ui::Step,
};

/// Packages, services they start at boot, and the programs these run.
const SERVICES: [(&str, &str, &str); 4] = [
    ("etcd-server", "etcd", "etcd"),
    ("docker.io", "docker.socket", "dockerd"),
    ("docker.io", "docker", "dockerd"),
    ("docker.io", "containerd", "containerd"),
];

/// A set of package names.
#[derive(Default)]
pub(crate) struct Packages(BTreeSet<String>);

impl Packages {
    pub(crate) fn extend(&mut self, names: impl IntoIterator<Item = impl Into<String>>) {
        self.0.extend(names.into_iter().map(Into::into));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What a person would type.
    pub(crate) fn command_line(&self) -> String {
        format!("apt-get install --yes --no-install-recommends {self}")
    }

    /// The services that they bring, for which the demo and the tests have no use. To be asked before they
    /// are installed: what is there already is the machine's own business.
    pub(crate) fn services(&self) -> Vec<&'static str> {
        let brought = SERVICES.iter().filter(|(package, ..)| self.0.contains(*package));
        let new = brought.filter(|(.., program)| find_program(program).is_none());
        new.map(|(_, service, _)| *service).collect()
    }
}

impl fmt::Display for Packages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().map(String::as_str).collect::<Vec<_>>().join(" "))
    }
}

/// Runs apt-get while a policy-rc.d forbids to start services, unless the machine has a policy of its own.
/// The shell removes the policy also when it is interrupted; the mark lets us take over one that a
/// killed run left.
const APT_GET: &str = r#"
policy=/usr/sbin/policy-rc.d
mark='# Written by cargo xtask setup, which removes it.'
if [ -e "$policy" ] && grep -qF "$mark" "$policy"; then rm -f "$policy"; fi
set -C
if printf '#!/bin/sh\n%s\nexit 101\n' "$mark" 2>/dev/null >"$policy"; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM HUP
    chmod 755 "$policy"
fi
apt-get "$@"
"#;

fn apt_get(arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", APT_GET, "apt-get", "-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Use-Pty=0"]);
    command.args(arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    // Ubuntu's needrestart would restart services and ask about it.
    command.env("NEEDRESTART_SUSPEND", "1");
    command
}

/// Installs the packages. The lists are fetched only if they lack one of them or name one that is gone.
pub(crate) fn install(step: &Step, packages: &Packages) -> Result<()> {
    let services = packages.services();
    let names: Vec<&str> = packages.0.iter().map(String::as_str).collect();
    let updated = !unavailable(&names)?.is_empty();
    if updated {
        run(step, packages, &["update"])?;
        let gone = unavailable(&names)?;
        if !gone.is_empty() {
            return Err(failure(
                format!("this release has no package {}", gone.join(" ")),
                "install what they hold by other means, or use a newer release (Debian 12 with its security \
                 updates has all of them)",
            ));
        }
    }
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(&names);
    if let Err(error) = run(step, packages, &arguments) {
        if updated {
            return Err(error);
        }
        step.note("apt-get could not install them; trying again with fresh package lists");
        run(step, packages, &["update"])?;
        run(step, packages, &arguments)?;
    }
    if !services.is_empty() && Path::new("/usr/bin/systemctl").exists() {
        // They were not started, but would be at the next boot. Without systemd there is nothing to disable.
        let _ = Command::new("systemctl").args(["--quiet", "disable"]).args(services).output();
    }
    Ok(())
}

fn run(step: &Step, packages: &Packages, arguments: &[&str]) -> Result<()> {
    step.run_as("apt-get", &mut apt_get(arguments)).map_err(|error| {
        failure(
            format!("{error:#}"),
            format!("mend what apt-get complains of, until this works:\n  {}", packages.command_line()),
        )
    })
}

/// Whether all of these can be installed. A fresh machine's lists are older than a security update that brought
/// one of them: they are fetched before the answer is no.
pub(crate) fn offers(names: &[&str]) -> bool {
    let all = || unavailable(names).is_ok_and(|unavailable| unavailable.is_empty());
    if all() {
        return true;
    }
    if !host::is_root() {
        return false;
    }
    let step = Step::start("Fetching the package lists");
    match step.run_as("apt-get", &mut apt_get(&["update"])) {
        Ok(()) => step.done("fetched"),
        // What is missing is asked for by name later, and said then.
        Err(error) => step.done(&format!("not fetched: {error:#}")),
    }
    all()
}

/// The first of the alternatives `a | b` that can be had, or the last.
pub(crate) fn choose(alternatives: &'static str) -> &'static str {
    let mut names: Vec<&str> = alternatives.split(" | ").collect();
    let last = names.pop().unwrap_or(alternatives);
    names.into_iter().find(|name| offers(&[name])).unwrap_or(last)
}

/// Which of these the package lists do not offer.
fn unavailable<'a>(names: &[&'a str]) -> Result<Vec<&'a str>> {
    let output = Command::new("apt-cache")
        .arg("policy")
        .args(names)
        .env("LC_ALL", "C")
        .output()
        .context("cannot run apt-cache")?;
    let policy = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(names.iter().copied().filter(|name| !has_candidate(&policy, name)).collect())
}

fn has_candidate(policy: &str, name: &str) -> bool {
    let head = format!("{name}:");
    let about = policy.lines().skip_while(|line| *line != head).skip(1);
    about
        .take_while(|line| line.starts_with(' '))
        .find_map(|line| line.trim().strip_prefix("Candidate:"))
        .is_some_and(|candidate| candidate.trim() != "(none)")
}

#[cfg(test)]
mod tests {
    use super::{choose, has_candidate};

    #[test]
    fn without_alternatives_there_is_nothing_to_choose() {
        assert_eq!(choose("jq"), "jq");
    }

    #[test]
    fn candidates_are_read_from_the_policy() {
        let policy = "jq:\n  Installed: (none)\n  Candidate: 1.6-2\n  Version table:\n     1.6-2 500\n\
                      gone:\n  Installed: 1\n  Candidate: (none)\n";
        assert!(has_candidate(policy, "jq"));
        assert!(!has_candidate(policy, "gone"));
        assert!(!has_candidate(policy, "unknown"));
    }
}
