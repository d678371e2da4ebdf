//! What was given, and where: the command line wins over the environment, that over the defaults.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
};

use clap::{ArgAction, Command};
use tracing::{info, warn};

use super::value::{go_int, shown};

/// The flags that were given, and what of the environment could not be used.
#[derive(Clone, Debug, Default)]
pub struct Given {
    settings: BTreeMap<String, Setting>,
    refused: Vec<Refused>,
    /// Of those, the first that upstream does not start with either.
    fatal: Option<Refused>,
    /// Variables of other names than the flags' own, and the ones to write instead.
    misnamed: Vec<(String, String)>,
    /// The flag that the ignored words follow, and how many there are.
    ignored: Option<(String, usize)>,
}

/// Values of one flag, in order.
#[derive(Clone)]
struct Setting {
    name: String,
    values: Vec<OsString>,
    from_environment: bool,
}

/// A variable whose value its flag does not take.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refused {
    variable: String,
    /// What clap says of the value.
    reason: String,
}

impl Given {
    /// Gathers `flags` of the command line and, for those not among them, the environment. A value of
    /// nothing, as unit files make it of empty variables, unsets the flag.
    pub(super) fn gather(
        command: &Command,
        flags: Vec<(String, OsString)>,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Self {
        let mut given = Self::default();
        for (name, value) in flags {
            if value.is_empty() {
                given.settings.remove(&name);
            } else if repeats(command, &name)
                && let Some(setting) = given.settings.get_mut(&name)
            {
                setting.values.push(value);
            } else {
                given.set(&name, value, false);
            }
        }
        for name in command.get_arguments().filter_map(|flag| flag.get_long()) {
            if matches!(name, "version" | "help") || given.has(name) {
                continue;
            }
            let variable = twin(name);
            let Some(value) = environment(&variable).filter(|value| !value.is_empty()) else {
                let is_set = |other: &String| environment(other).is_some_and(|value| !value.is_empty());
                given.misnamed.extend(misnomers(name).filter(is_set).map(|other| (other, variable.clone())));
                continue;
            };
            match check(command, name, &value) {
                Ok(()) => given.set(name, value, true),
                Err(error) => {
                    let refused = Refused { variable, reason: in_one_line(&error) };
                    if ends_the_start(name, &value) {
                        given.fatal.get_or_insert(refused);
                    } else {
                        given.refused.push(refused);
                    }
                }
            }
        }
        given
    }

    fn set(&mut self, name: &str, value: OsString, from_environment: bool) {
        let setting = Setting { name: name.to_owned(), values: vec![value], from_environment };
        self.settings.insert(name.to_owned(), setting);
    }

    /// Whether the flag `name` (without dashes) was given.
    pub fn has(&self, name: &str) -> bool {
        self.settings.contains_key(name)
    }

    /// What is wrong with the environment, where the start may not go on with the default.
    pub(super) fn fatal(&self) -> Option<String> {
        self.fatal.as_ref().map(|refused| format!("{}: {}", refused.variable, refused.reason))
    }

    /// Notes that `count` words after the flag `name` are not read.
    pub(super) fn ignore_words(&mut self, name: &str, count: usize) {
        self.ignored = Some((name.to_owned(), count));
    }

    /// As clap reads it.
    pub(super) fn arguments(&self) -> impl Iterator<Item = OsString> {
        self.settings
            .values()
            .flat_map(|setting| setting.values.iter().map(|value| argument(&setting.name, value)))
    }

    /// Logs what was given and where, without secrets, and what of it is not used.
    pub fn log(&self) {
        info!(command_line = self.shown(false), environment = self.shown(true), "command line flags");
        for Refused { variable, reason } in &self.refused {
            warn!(
                variable,
                reason, "a bad variable is ignored, and the default is used; correct or unset it"
            );
        }
        for (variable, instead) in &self.misnamed {
            warn!(
                variable,
                "this variable is not read: write {instead}, or give the flag. Scripts that start flanneld read it; \
                the daemon never did"
            );
        }
        if let Some((name, words)) = &self.ignored {
            warn!(
                words,
                "what comes after the value of --{name} is not read, as a word that is no flag ends the flags; a \
                 switch is turned off by --switch=false, and a value with spaces is quoted"
            );
        }
    }

    fn shown(&self, from_environment: bool) -> String {
        let of_source = self.settings.values().filter(|setting| setting.from_environment == from_environment);
        let shown: Vec<String> = of_source.map(|setting| format!("{setting:?}")).collect();
        if shown.is_empty() { "nothing".to_owned() } else { shown.join(" ") }
    }

    #[cfg(test)]
    pub(super) fn refused(&self) -> Vec<String> {
        self.refused.iter().map(|refused| format!("{}: {}", refused.variable, refused.reason)).collect()
    }

    #[cfg(test)]
    pub(super) fn misnamed(&self) -> &[(String, String)] {
        &self.misnamed
    }

    #[cfg(test)]
    pub(super) fn ignored(&self) -> Option<(&str, usize)> {
        self.ignored.as_ref().map(|(name, words)| (name.as_str(), *words))
    }
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.from_environment { twin(&self.name) } else { format!("--{}", self.name) };
        for (index, value) in self.values.iter().enumerate() {
            let space = if index > 0 { " " } else { "" };
            write!(f, "{space}{name}={}", shown(&self.name, value))?;
        }
        Ok(())
    }
}

/// The variable that stands for the flag `name`.
fn twin(name: &str) -> String {
    format!("FLANNELD_{}", name.to_uppercase().replace('-', "_"))
}

/// Variables by which files of distributions, for the scripts that start flanneld there, have the flag `name`.
fn misnomers(name: &str) -> impl Iterator<Item = String> {
    let oldest = match name {
        "etcd-endpoints" => Some("FLANNEL_ETCD"),
        "etcd-prefix" => Some("FLANNEL_ETCD_KEY"),
        _ => None,
    };
    let same = twin(name).replacen("FLANNELD_", "FLANNEL_", 1);
    [same].into_iter().chain(oldest.map(str::to_owned))
}

/// Whether values of the flag add up; else the last one counts.
fn repeats(command: &Command, name: &str) -> bool {
    let mut flags = command.get_arguments();
    flags.any(|flag| flag.get_long() == Some(name) && matches!(flag.get_action(), ArgAction::Append))
}

fn check(command: &Command, name: &str, value: &OsStr) -> Result<(), clap::Error> {
    let program = OsString::from(command.get_name());
    command.clone().try_get_matches_from([program, argument(name, value)]).map(drop)
}

fn argument(name: &str, value: &OsStr) -> OsString {
    let mut argument = OsString::from(format!("--{name}="));
    argument.push(value);
    argument
}

/// Upstream's flags.
const UPSTREAM: [&str; 29] = [
    "etcd-cafile",
    "etcd-certfile",
    "etcd-endpoints",
    "etcd-keyfile",
    "etcd-password",
    "etcd-prefix",
    "etcd-username",
    "healthz-ip",
    "healthz-port",
    "iface",
    "iface-can-reach",
    "iface-regex",
    "ip-blackhole-route",
    "ip-masq",
    "iptables-forward-rules",
    "iptables-resync",
    "kube-annotation-prefix",
    "kube-api-url",
    "kube-subnet-mgr",
    "kubeconfig-file",
    "log_backtrace_at",
    "net-config-path",
    "public-ip",
    "public-ipv6",
    "set-node-network-unavailable",
    "subnet-file",
    "subnet-lease-renew-margin",
    "v",
    "vmodule",
];

/// Whether a bad variable is more than its default can stand in for. To upstream these flags are text, or a
/// number whose range is checked later: its start fails over them, where it would go on over a switch or a
/// number that is none. With the default, the node would take another interface or publish another address. A flag that
/// upstream has not has no variable that was bad before; with its default, packets could skip what its operator has
/// forbidden them to skip.
fn ends_the_start(name: &str, value: &OsStr) -> bool {
    match name {
        "iface-regex" | "iface-can-reach" | "public-ip" | "public-ipv6" | "healthz-ip" => true,
        "subnet-lease-renew-margin" => value.to_str().and_then(go_int).is_some(),
        _ => !UPSTREAM.contains(&name),
    }
}

/// What clap says, less the frame for a terminal.
fn in_one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let said = text.split("\n\n").next().unwrap_or(&text);
    let lines: Vec<&str> = said.lines().map(str::trim).collect();
    let line = lines.join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}
