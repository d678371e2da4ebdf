//! What connection tracking must put up with where flows skip the host's stack: it no longer sees each packet.

use std::{fs, io, time::Duration};

use tokio::time::sleep;
use tracing::{info, warn};

/// Where its settings for this network namespace are. They appear with the module.
const DIRECTORY: &str = "/proc/sys/net/netfilter";

/// How often to look until all is set: rules that use connection tracking load its module.
const SOON: Duration = Duration::from_secs(1);
/// How often to look afterwards.
const LATER: Duration = Duration::from_secs(30);
/// So many attempts and the settings are said to be missing.
const PATIENCE: u32 = 10;

/// A setting, and what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setting {
    name: &'static str,
    wanted: Wanted,
    because: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// This number.
    Is(u64),
    /// At least as large as another setting.
    AtLeast(&'static str),
}

/// The settings, from nf_conntrack-sysctl.rst and net/netfilter/nf_conntrack_proto_tcp.c of Linux.
const SETTINGS: [Setting; 3] = [
    Setting {
        name: "nf_conntrack_tcp_be_liberal",
        wanted: Wanted::Is(1),
        because: "segments beyond the window it knows would be INVALID, which kube-proxy drops",
    },
    Setting {
        name: "nf_conntrack_tcp_ignore_invalid_rst",
        wanted: Wanted::Is(1),
        because: "a reset after 2 GB that it has not seen would be INVALID",
    },
    Setting {
        name: "nf_conntrack_tcp_timeout_unacknowledged",
        wanted: Wanted::AtLeast("nf_conntrack_tcp_timeout_established"),
        because: "it misses acknowledgements, and would forget idle connections too soon",
    },
];

/// Settings that are not there, or cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{DIRECTORY}/{name}: {error}")]
struct SettingError {
    name: &'static str,
    error: io::Error,
}

/// Keeps connection tracking tolerant of what it does not see, in the network namespace of the process. Never
/// returns. The settings stay at exit, as the flows do that need them.
pub async fn tolerate_gaps() {
    let mut failures = 0;
    loop {
        match set_all() {
            Ok(()) => {
                failures = 0;
                sleep(LATER).await;
            }
            Err(error) => {
                failures += 1;
                if failures == PATIENCE {
                    warn!(
                        %error,
                        "connection tracking cannot be told that it does not see every packet: where rules drop \
                         what is INVALID, connections may stall; load the module nf_conntrack, or run with \
                         --fast-path=overlay"
                    );
                }
                sleep(SOON).await;
            }
        }
    }
}

fn set_all() -> Result<(), SettingError> {
    for setting in &SETTINGS {
        match set(setting) {
            Err(error) if error.error.kind() == io::ErrorKind::NotFound && setting != &SETTINGS[0] => {
                // An older kernel, which knows no such case.
            }
            result => result?,
        }
    }
    Ok(())
}

fn set(setting: &Setting) -> Result<(), SettingError> {
    let Setting { name, wanted, because } = *setting;
    let found = read(name)?;
    let wanted = match wanted {
        Wanted::Is(number) => number,
        Wanted::AtLeast(other) => read(other)?.max(found),
    };
    if found == wanted {
        return Ok(());
    }
    let path = format!("{DIRECTORY}/{name}");
    fs::write(&path, wanted.to_string()).map_err(|error| SettingError { name, error })?;
    info!(setting = name, was = found, is = wanted, because, "connection tracking made tolerant");
    Ok(())
}

fn read(name: &'static str) -> Result<u64, SettingError> {
    let failed = |error| SettingError { name, error };
    let text = fs::read_to_string(format!("{DIRECTORY}/{name}")).map_err(failed)?;
    text.trim().parse().map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))
}
