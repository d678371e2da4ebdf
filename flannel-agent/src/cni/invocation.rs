//! What the runtime asks for: the variables of the environment, checked as the specification says.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    path::PathBuf,
};

use super::error::{CniError, Code};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

impl Verb {
    const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Status, Self::Gc, Self::Version];

    /// As `CNI_COMMAND` spells it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }

    /// Variables that may not be missing.
    fn requires(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Self::Status | Self::Gc => &["CNI_PATH"],
            Self::Version => &[],
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One call of the plugin.
#[derive(Debug)]
pub(super) struct Invocation {
    /// What is to be done.
    pub(super) verb: Verb,
    /// The container; empty where the verb is about none.
    pub(super) container: String,
    /// Its network namespace; empty where the verb, or the runtime, names none.
    pub(super) netns: PathBuf,
    /// The runtime says that the container may have our own namespace.
    pub(super) netns_may_be_ours: bool,
    /// The interface in the pod; empty where the verb is about none.
    pub(super) interface: String,
    /// Directories of plugins.
    pub(super) path: Vec<PathBuf>,
}

impl Invocation {
    /// Reads the environment. `None` when there is no command: a person has started us.
    pub(super) fn read(environment: impl Fn(&str) -> Option<OsString>) -> Result<Option<Self>, CniError> {
        let get = |name: &str| environment(name).filter(|value| !value.is_empty());
        let Some(command) = get("CNI_COMMAND") else { return Ok(None) };
        let Some(verb) = Verb::ALL.into_iter().find(|verb| command == *verb.name()) else {
            let known = Verb::ALL.map(Verb::name).join(", ");
            return Err(refused(format!("unknown CNI_COMMAND: {command:?}"))
                .detailed(format!("it is one of {known}")));
        };
        let required = verb.requires();
        let missing: Vec<&str> = required.iter().copied().filter(|name| get(name).is_none()).collect();
        if !missing.is_empty() {
            return Err(refused(format!("required env variables [{}] missing", missing.join(","))));
        }
        let (mut container, mut interface) = (String::new(), String::new());
        if required.contains(&"CNI_CONTAINERID") {
            container = identifier("CNI_CONTAINERID", &get("CNI_CONTAINERID").unwrap_or_default())?;
        }
        if required.contains(&"CNI_IFNAME") {
            interface = interface_name(&get("CNI_IFNAME").unwrap_or_default())?;
        }
        let path = get("CNI_PATH").unwrap_or_default();
        let overridden = get("CNI_NETNS_OVERRIDE").unwrap_or_default();
        Ok(Some(Self {
            verb,
            container,
            netns: get("CNI_NETNS").unwrap_or_default().into(),
            interface,
            netns_may_be_ours: overridden == "1" || overridden.eq_ignore_ascii_case("true"),
            path: std::env::split_paths(&path).collect(),
        }))
    }
}

fn refused(message: String) -> CniError {
    CniError::new(Code::Environment, message)
}

/// Whether `text` is a name as the specification wants those of containers and networks: a letter or digit, then
/// also `_`, `.` and `-`. Such a name is also safe as the name of a file.
pub(super) fn is_identifier(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    text.bytes().all(plain) && text.starts_with(|first: char| first.is_ascii_alphanumeric())
}

fn identifier(variable: &str, value: &OsStr) -> Result<String, CniError> {
    // The kernel takes no longer name for a file, and this is one in dataDir.
    match value.to_str() {
        Some(text) if is_identifier(text) && text.len() <= 255 => Ok(text.to_owned()),
        _ => Err(refused(format!("{variable}: {value:?} is no identifier")).detailed(
            "up to 255 letters, digits, underscores, dots and hyphens, beginning with a letter or digit",
        )),
    }
}

/// The rules are the kernel's (net/core/dev.c, `dev_valid_name`).
fn interface_name(value: &OsStr) -> Result<String, CniError> {
    let wrong = |because: &str| Err(refused(format!("CNI_IFNAME: {value:?} {because}")));
    match value.as_encoded_bytes() {
        b"." | b".." => wrong("is a directory, no name of an interface"),
        bytes if bytes.len() > 15 => wrong("has more than 15 bytes"),
        bytes if bytes.iter().any(|byte| matches!(byte, b'/' | b':') || byte.is_ascii_whitespace()) => {
            wrong("has a slash, a colon or a space in it")
        }
        // One that is no text is of no use to anybody.
        _ => value.to_str().map_or_else(|| wrong("is not UTF-8"), |name| Ok(name.to_owned())),
    }
}
