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

/// A setting that should be 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setting {
    name: &'static str,
    because: &'static str,
    /// Every kernel that takes our programs has it.
    required: bool,
}

/// The settings (Documentation/networking/nf_conntrack-sysctl.rst of Linux).
const SETTINGS: [Setting; 2] = [
    Setting {
        name: "nf_conntrack_tcp_be_liberal",
        because: "segments beyond the window it knows would be INVALID, which kube-proxy drops",
        required: true,
    },
    Setting {
        name: "nf_conntrack_tcp_ignore_invalid_rst",
        because: "a reset after 2 GB that it has not seen would be INVALID",
        required: false,
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
            Err(SettingError { error, .. })
                if error.kind() == io::ErrorKind::NotFound && !setting.required => {}
            result => result?,
        }
    }
    Ok(())
}

fn set(setting: &Setting) -> Result<(), SettingError> {
    let Setting { name, because, .. } = *setting;
    let failed = |error| SettingError { name, error };
    let path = format!("{DIRECTORY}/{name}");
    if fs::read_to_string(&path).map_err(failed)?.trim() != "0" {
        return Ok(());
    }
    fs::write(&path, "1").map_err(failed)?;
    info!(setting = name, was = 0, is = 1, because, "connection tracking made tolerant");
    Ok(())
}
