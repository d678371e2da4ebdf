//! What connection tracking must put up with where flows skip the host's stack: it no longer sees each packet.

use std::{convert::Infallible, io, time::Duration};

use tokio::time::sleep;
use tracing::{info, warn};

use crate::host::sysctl::{self, Settings};

mod timeouts;

pub use timeouts::{TcpTimeouts, follow_timeouts, refresh};

/// Between looks: for so long connections may stand still where somebody undoes the settings.
const PAUSE: Duration = Duration::from_secs(1);
/// So many looks and settings that are not there will not come with the module, which rules load.
const PATIENCE: u32 = 10;

/// A setting that should be 1. It appears with the module.
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
        name: "netfilter/nf_conntrack_tcp_be_liberal",
        because: "segments beyond the window it knows would be INVALID, which kube-proxy drops",
        required: true,
    },
    Setting {
        name: "netfilter/nf_conntrack_tcp_ignore_invalid_rst",
        because: "a reset after 2 GB that it has not seen would be INVALID",
        required: false,
    },
];

/// Settings that are not there, or cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {error}")]
struct SettingError {
    path: String,
    error: io::Error,
}

/// Keeps connection tracking tolerant of what it does not see, in the network namespace of the process. Tells
/// `tolerant` whenever that has become impossible, with false, or possible again. Never returns. The settings stay at
/// exit, as the flows do that need them.
pub async fn tolerate_gaps(tolerant: impl Fn(bool)) -> Infallible {
    let mut failures: u32 = 0;
    let mut able = true;
    loop {
        match set_all(&sysctl::NET) {
            Ok(()) => {
                failures = 0;
                if !able {
                    info!(
                        fast_path = "flow",
                        "connection tracking tolerates packets that it has not seen: flows skip the host's stack again"
                    );
                    able = true;
                    tolerant(able);
                }
            }
            Err(SettingError { path, error }) => {
                failures = failures.saturating_add(1);
                let may_come = error.kind() == io::ErrorKind::NotFound && failures < PATIENCE;
                if able && !may_come {
                    warn!(
                        fast_path = "overlay",
                        setting = path,
                        %error,
                        "no flow skips the host's stack: this setting of connection tracking cannot be written, and \
                        flows would stall where rules drop INVALID packets. Set it to 1 on the host, or let the agent \
                        write it (in a container, mount the host's /proc/sys/net at /host/proc/sys/net)"
                    );
                    able = false;
                    tolerant(able);
                }
            }
        }
        sleep(PAUSE).await;
    }
}

fn set_all(settings: &Settings<'_>) -> Result<(), SettingError> {
    for setting in &SETTINGS {
        match set(setting, settings) {
            Err(SettingError { error, .. })
                if error.kind() == io::ErrorKind::NotFound && !setting.required => {}
            result => result?,
        }
    }
    Ok(())
}

fn set(setting: &Setting, settings: &Settings<'_>) -> Result<(), SettingError> {
    let Setting { name, because, .. } = *setting;
    let done = match settings.read(name) {
        Ok(value) if value != "0" => return Ok(()),
        Ok(_) => settings.write(name, "1"),
        Err(error) => Err(error),
    };
    done.map_err(|error| SettingError { path: settings.file(name).display().to_string(), error })?;
    info!(
        setting = name,
        was = 0,
        is = 1,
        because,
        "set connection tracking to tolerate packets that it has not seen"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn write(directory: &Path, value: &str) {
        for setting in &SETTINGS {
            fs::write(directory.join(setting.name), value).unwrap();
        }
    }

    fn values(directory: &Path) -> [String; 2] {
        SETTINGS.map(|setting| fs::read_to_string(directory.join(setting.name)).unwrap())
    }

    #[test]
    fn what_is_zero_becomes_one_and_nothing_else_changes() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let settings = Settings { own: directory.to_str().unwrap(), mounted: "/not-there" };
        fs::create_dir(directory.join("netfilter")).unwrap();
        let error = set_all(&settings).unwrap_err();
        assert_eq!(error.error.kind(), io::ErrorKind::NotFound);
        assert!(error.path.ends_with("netfilter/nf_conntrack_tcp_be_liberal"), "{error}");
        write(directory, "0\n");
        set_all(&settings).unwrap();
        assert_eq!(values(directory), ["1", "1"]);
        write(directory, "2\n");
        set_all(&settings).unwrap();
        assert_eq!(values(directory), ["2\n", "2\n"]);
        // Older kernels do without the second.
        fs::remove_file(directory.join(SETTINGS[1].name)).unwrap();
        set_all(&settings).unwrap();
    }
}
