//! What connection tracking must put up with where flows skip the host's stack: it no longer sees each packet.

use std::{fs, io, time::Duration};

use flannel_common::path::flow::LONGEST_UDP;
use tokio::time::sleep;
use tracing::{info, warn};

/// Where its settings for this network namespace are. They appear with the module.
const DIRECTORY: &str = "/proc/sys/net/netfilter";

/// How long it remembers a UDP flow of up to two seconds, seconds.
const UDP_TIMEOUT: &str = "nf_conntrack_udp_timeout";

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

/// Keeps connection tracking tolerant of what it does not see, in the network namespace of the process, where
/// netfilter's acceptance of a flow holds for `refresh`. Never returns. The settings stay at exit, as the flows do that need them.
pub async fn tolerate_gaps(refresh: Duration) {
    let mut failures = 0;
    let mut compared = false;
    loop {
        match set_all() {
            Ok(()) => {
                failures = 0;
                if !compared {
                    compare(refresh);
                    compared = true;
                }
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

/// Says so if connection tracking would forget a UDP flow before the flow shows itself again.
fn compare(refresh: Duration) {
    let longest = refresh.min(Duration::from_nanos(LONGEST_UDP));
    let timeout = fs::read_to_string(format!("{DIRECTORY}/{UDP_TIMEOUT}")).ok();
    let timeout = timeout.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
    if let Some(timeout) = timeout.filter(|timeout| *timeout < longest * 2) {
        warn!(
            setting = UDP_TIMEOUT,
            ?timeout,
            "connection tracking forgets UDP flows before they ask netfilter again, which then judges them as \
             new ones: set it to {} s at least, or --flow-refresh to at most half of it",
            longest.as_secs() * 2
        );
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
