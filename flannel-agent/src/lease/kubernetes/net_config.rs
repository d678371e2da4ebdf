//! The network configuration as a file: net-conf.json of a ConfigMap, mounted.

use std::{convert::Infallible, fs, path::Path, time::Duration};

use tokio::{sync::watch::Sender, time::sleep};
use tracing::info;

use super::KubeError;
use crate::{
    config::NetworkConfig,
    lease::{
        BadConfig,
        config_report::{ConfigReport, in_line},
    },
};

/// Between two looks. kubelet takes about a minute to bring a changed ConfigMap here.
const PERIOD: Duration = Duration::from_secs(5);

/// Reads and validates the file.
pub(super) fn read(path: &Path) -> Result<NetworkConfig, KubeError> {
    let shown = || path.display().to_string();
    let bytes = fs::read(path).map_err(|error| KubeError::NoConfig { path: shown(), error })?;
    let config = NetworkConfig::parse(&bytes).map_err(|error| KubeError::Config { path: shown(), error })?;
    info!(file = shown(), %config, "network config");
    Ok(config)
}

/// Says each change of the file, once. It is looked at rather than watched: kubelet replaces a symbolic link
/// above it.
pub(super) async fn report_changes(
    path: &Path,
    in_force: NetworkConfig,
    bad: &Sender<Option<BadConfig>>,
) -> Infallible {
    let mut report = ConfigReport::new(path.display().to_string(), in_force);
    loop {
        sleep(PERIOD).await;
        let remedy = |text: Option<&str>| {
            let text = text.map_or_else(String::new, |text| format!(", as it was: {}", in_line(text)));
            format!("write net-conf.json of the ConfigMap kube-flannel-cfg again, and mount it there{text}")
        };
        bad.send_replace(report.sees(fs::read(path).ok().as_deref(), remedy));
    }
}
