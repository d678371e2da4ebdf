//! `--ip-blackhole-route`: what no pod has of our own subnet goes nowhere, and not to the default route.

use std::time::Duration;

use ipnetwork::IpNetwork;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::{
    netlink::{Netlink, NetlinkError},
    telemetry::LastMessage,
};

/// Adds the route, and again every `resync` in case somebody removes it. Never returns.
pub(super) async fn keep(subnet: IpNetwork, resync: Duration) {
    let mut netlink = None;
    let mut said = LastMessage::default();
    loop {
        match add(&mut netlink, subnet).await {
            Ok(added) => {
                said.is_over();
                if added {
                    info!(%subnet, "blackhole route added");
                }
            }
            Err(error) => {
                if said.is_news(&error) {
                    warn!(%subnet, %error, "cannot add the blackhole route; trying again");
                }
            }
        }
        sleep(resync).await;
    }
}

async fn add(netlink: &mut Option<Netlink>, subnet: IpNetwork) -> Result<bool, NetlinkError> {
    let netlink = match netlink {
        Some(netlink) => netlink,
        none => none.insert(Netlink::open()?),
    };
    netlink.add_blackhole(subnet).await
}
