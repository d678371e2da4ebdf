//! The subnet file, as long as the agent runs: with it pods can be started.

use std::{convert::Infallible, path::Path, time::Duration};

use tokio::{select, sync::watch, time::sleep};
use tracing::{error, info, warn};

use super::Agent;
use crate::{
    lease::{LeaseStore, LeaseSubnet, Notice},
    masq::Rules,
    subnet_file::{Others, SubnetFile},
    telemetry::{LastMessage, Summary},
};

/// Between attempts to write the subnet file.
const WRITE_AGAIN: Duration = Duration::from_secs(2);

/// How often it is looked for.
const LOOK_FOR_FILE: Duration = Duration::from_secs(2);

impl Agent<'_> {
    /// Writes the subnet file once pods can be reached and the rules are in place.
    pub(super) async fn announce(
        &self,
        store: &impl LeaseStore,
        mut summary: watch::Receiver<Summary>,
        rules: &Rules,
        mut file: SubnetFile,
        mut mtu: watch::Receiver<u32>,
    ) -> Infallible {
        rules.applied().await;
        let looked = |summary: &Summary| summary.synced && summary.passes > 0;
        let blocked = match summary.wait_for(|summary| looked(summary)).await {
            Ok(now) => now.without_device.clone(),
            Err(_) => None,
        };
        if let Some(because) = blocked {
            self.standing.tell(|told| told.agent.not_ready = Some(because.clone()));
            error!(
                because,
                file = %self.options.subnet_file.display(),
                "not ready: pods of this node would reach no other node. The subnet file is written when this is \
                corrected"
            );
            store.tell(Notice {
                reason: "NoDevice",
                text: format!("pods cannot start on this node: {because}"),
            });
        }
        let first = summary.wait_for(|summary| looked(summary) && summary.without_device.is_none()).await;
        let Ok((peers, pending)) = first.map(|now| (now.peers, now.pending)) else {
            return std::future::pending().await;
        };
        let path = &self.options.subnet_file;
        file.mtu = *mtu.borrow_and_update();
        // At the start alone it is replaced as by stock flannel: what turns it into options for docker runs after that.
        let others = if self.announced.replace(true) { Others::Kept } else { Others::Replaced };
        write(&file, path, others).await;
        self.readiness.set();
        self.standing.tell(|told| (told.agent.ready, told.agent.not_ready) = (true, None));
        self.service.ready();
        let subnet = LeaseSubnet { v4: file.v4.map(|(_, own)| own), v6: file.v6.map(|(_, own)| own) };
        info!(%subnet, mtu = file.mtu, peers, pending, file = %path.display(), "ready");
        store.ready();
        loop {
            select! {
                Ok(()) = mtu.changed() => {}
                () = sleep(LOOK_FOR_FILE) => {
                    // Without it no pod starts on this node. What somebody else wrote there stays.
                    if let Ok(false) = path.try_exists() {
                        warn!(file = %path.display(), "the subnet file was deleted: writing it again");
                        write(&file, path, Others::Kept).await;
                    }
                    continue;
                }
            }
            let old = file.mtu;
            file.mtu = *mtu.borrow_and_update();
            write(&file, path, Others::Kept).await;
            info!(
                old, mtu = file.mtu, file = %path.display(),
                "new pods get another MTU; running pods keep theirs until they are restarted"
            );
        }
    }
}

/// Writes the subnet file, as often as it takes: pods that start meanwhile fail, or get what an earlier file
/// says, but those that run need us.
async fn write(file: &SubnetFile, path: &Path, others: Others) {
    let mut said = LastMessage::default();
    while let Err(error) = file.write(path, others) {
        if said.is_news(&error) {
            error!(%error, "trying again");
        }
        sleep(WRITE_AGAIN).await;
    }
}
