//! The external interface while we run: its address, its index and its MTU may change under us.

use std::{collections::BTreeSet, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tracing::{info, warn};

use super::interface::{ExternalInterface, InterfaceChoice};
use crate::{
    netlink::{Changed, Monitor, Netlink, NetlinkError, Watched, is_link_local},
    telemetry::LastMessage,
};

/// How long our address must be gone before another is taken: some DHCP clients take the address away and
/// bring it back when they renew it.
const GRACE: Duration = Duration::from_secs(2);
/// How long a burst of notices is gathered.
const SETTLE: Duration = Duration::from_millis(50);
/// Between attempts to ask the kernel again.
const RETRY: Duration = Duration::from_secs(1);

/// Follows the external interface.
///
/// As long as it holds the address in use, nothing is chosen anew, whatever would be chosen today; its index (it
/// was made anew) and its MTU are followed at once. Only when the address is gone for longer than a
/// DHCP client needs is the choice made again, by the rules of the start. Where those find nothing, everything
/// stays as it is.
pub struct UnderlayWatch {
    choice: InterfaceChoice,
    netlink: Netlink,
    monitor: Monitor,
    standing: Standing,
    tell: watch::Sender<ExternalInterface>,
}

impl UnderlayWatch {
    /// Follows `external`, which was chosen by `choice`; the receiver sees what becomes of it.
    ///
    /// # Errors
    /// When there is no listening to the kernel.
    pub fn open(
        choice: InterfaceChoice,
        external: ExternalInterface,
    ) -> Result<(Self, watch::Receiver<ExternalInterface>), NetlinkError> {
        let (tell, told) = watch::channel(external.clone());
        let (netlink, monitor) = (Netlink::open()?, Monitor::of_interfaces()?);
        Ok((Self { choice, netlink, monitor, standing: Standing::of(external), tell }, told))
    }

    /// Runs as long as it is polled.
    pub async fn run(mut self) -> std::convert::Infallible {
        // What changed between the choice and now raised no notice here.
        let mut due = Some(Instant::now());
        let watched = Watched::default();
        loop {
            let timer = async move {
                match due {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let looked = tokio::select! {
                () = timer => self.look().await,
                heard = self.monitor.changed(&watched) => match heard {
                    Ok(changed) if !self.standing.is_about(changed) => continue,
                    Ok(_) => {
                        sleep(SETTLE).await;
                        self.look().await
                    }
                    Err(error) => Err(error),
                },
            };
            due = match looked {
                Ok(again) => again,
                Err(error) => {
                    warn!(%error, "cannot watch the external interface; trying again");
                    sleep(RETRY).await;
                    Some(Instant::now())
                }
            };
        }
    }

    /// Looks how the interface stands; when to look again though nothing is heard.
    async fn look(&mut self) -> Result<Option<Instant>, NetlinkError> {
        let held = self.held().await?;
        let now = Instant::now();
        let news = match self.standing.seen(held, now) {
            Step::Nothing => None,
            Step::Wait(until) => return Ok(Some(until)),
            Step::Changed(now) => Some(now),
            Step::Choose => {
                let chosen = ExternalInterface::choose(&mut self.netlink, &self.choice).await;
                self.standing.chosen(chosen.map_err(|error| error.to_string()))
            }
        };
        if let Some(external) = news {
            self.tell.send_replace(external);
        }
        // A new route may make a choice possible where there was none.
        self.monitor.hear_routes(self.standing.lost.is_some());
        Ok(None)
    }

    /// The interface in use as it is now, if it still holds our address of each family: by its name, which it keeps
    /// when it is made anew, or by its index, which it keeps when it is renamed.
    async fn held(&mut self) -> Result<Option<ExternalInterface>, NetlinkError> {
        let current = &self.standing.current;
        let mut holders: Option<BTreeSet<u32>> = None;
        for (family, address) in current.addresses() {
            let all = self.netlink.addresses(family, None).await?;
            let holding = all.iter().filter(|held| held.network.ip() == address);
            let holding: BTreeSet<u32> = holding.map(|held| held.ifindex).collect();
            holders = Some(holders.map_or(holding.clone(), |holders| &holders & &holding));
        }
        let holders = holders.unwrap_or_default();
        if holders.is_empty() {
            return Ok(None);
        }
        let mut link = self.netlink.link(&current.name).await?.filter(|link| holders.contains(&link.index));
        if link.is_none() && holders.contains(&current.index) {
            link = self.netlink.links().await?.into_iter().find(|link| link.index == current.index);
        }
        Ok(link.map(|link| ExternalInterface {
            // An interface without an MTU carries nothing; it is being set up.
            mtu: if link.mtu == 0 { current.mtu } else { link.mtu },
            index: link.index,
            name: link.name,
            ..current.clone()
        }))
    }
}

/// What is known of the interface in use.
#[derive(Debug)]
struct Standing {
    current: ExternalInterface,
    /// Since when it does not hold our address.
    lost: Option<Instant>,
    /// Why there is no other, as it was last said.
    said: LastMessage,
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    /// Look again then.
    Wait(Instant),
    /// It is still the one, otherwise.
    Changed(ExternalInterface),
    /// The address is gone for good.
    Choose,
}

impl Standing {
    fn of(external: ExternalInterface) -> Self {
        Self { current: external, lost: None, said: LastMessage::default() }
    }

    /// Whether a change may be one of the interface. Routes are, only while there is a choice to be made.
    fn is_about(&self, changed: Changed) -> bool {
        changed.links || changed.addresses || changed.overrun || (changed.routes && self.lost.is_some())
    }

    fn seen(&mut self, held: Option<ExternalInterface>, now: Instant) -> Step {
        let Self { current, lost, .. } = self;
        let Some(held) = held else {
            let since = *lost.get_or_insert_with(|| {
                warn!(
                    interface = current.name, address = %shown(current),
                    "our address is missing on the external interface; the interface is chosen again if the address \
                    is not back in {GRACE:?}"
                );
                now
            });
            return if now < since + GRACE { Step::Wait(since + GRACE) } else { Step::Choose };
        };
        self.said.is_over();
        let back = lost.take().is_some();
        if held == *current {
            if back {
                info!(interface = held.name, address = %shown(&held), "our address is back; nothing has changed");
            }
            return Step::Nothing;
        }
        info!(
            interface = held.name, index = held.index, mtu = held.mtu, address = %shown(&held),
            old_index = current.index, old_mtu = current.mtu,
            "the external interface has changed; the dataplane follows"
        );
        *current = held.clone();
        Step::Changed(held)
    }

    fn chosen(&mut self, chosen: Result<ExternalInterface, String>) -> Option<ExternalInterface> {
        match chosen.and_then(|external| self.reaches_as_far(external)) {
            Ok(external) => {
                let old = &self.current;
                info!(
                    interface = external.name, address = %shown(&external), mtu = external.mtu,
                    old_interface = old.name, old_address = %shown(old),
                    "another address is in use between nodes; the dataplane and our lease follow"
                );
                *self = Self::of(external.clone());
                Some(external)
            }
            Err(error) => {
                if self.said.is_news(&error) {
                    warn!(
                        %error,
                        "no address can be used between nodes: everything stays as it is until there is one"
                    );
                }
                None
            }
        }
    }
}

impl Standing {
    /// Refuses an address of the link alone in place of one that reached further: other nodes may be beyond a router, or
    /// hold it themselves. The interface has it all the time, also while its other address is on its way.
    fn reaches_as_far(&self, external: ExternalInterface) -> Result<ExternalInterface, String> {
        let narrower = external.addresses().find(|(family, address)| {
            let old = self.current.address_of(*family);
            is_link_local(*address) && old.is_some_and(|old| !is_link_local(old))
        });
        match narrower {
            Some((_, address)) => {
                Err(format!("{} has no more than the link-local address {address}", external.name))
            }
            None => Ok(external),
        }
    }
}

/// Our addresses on an interface, for the log.
fn shown(external: &ExternalInterface) -> String {
    let all: Vec<String> = external.addresses().map(|(_, address)| address.to_string()).collect();
    all.join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_that_comes_back_in_time_changes_nothing() {
        let mut standing = Standing::of(ExternalInterface::eth0(2, 1500, 1));
        let start = Instant::now();
        assert_eq!(standing.seen(Some(ExternalInterface::eth0(2, 1500, 1)), start), Step::Nothing);
        assert_eq!(standing.seen(None, start), Step::Wait(start + GRACE));
        let later = start + GRACE / 2;
        assert_eq!(standing.seen(None, later), Step::Wait(start + GRACE));
        assert_eq!(standing.seen(Some(ExternalInterface::eth0(2, 1500, 1)), later), Step::Nothing);
        // And the next time it has as long again.
        assert_eq!(standing.seen(None, later), Step::Wait(later + GRACE));
    }

    #[tokio::test(start_paused = true)]
    async fn another_address_is_taken_when_ours_is_gone_for_good() {
        let mut standing = Standing::of(ExternalInterface::eth0(2, 1500, 1));
        let start = Instant::now();
        standing.seen(None, start);
        assert_eq!(standing.seen(None, start + GRACE), Step::Choose);
        assert_eq!(standing.chosen(Err("none".into())), None);
        assert_eq!(standing.current, ExternalInterface::eth0(2, 1500, 1));
        // Ours may still come back, or any other come, and each is seen at once.
        assert_eq!(standing.seen(None, start + GRACE * 9), Step::Choose);
        assert_eq!(
            standing.chosen(Ok(ExternalInterface::eth0(3, 1400, 7))),
            Some(ExternalInterface::eth0(3, 1400, 7))
        );
        assert_eq!(
            standing.seen(Some(ExternalInterface::eth0(3, 1400, 7)), start + GRACE * 9),
            Step::Nothing
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_local_address_takes_no_others_place() {
        let with = |address: &str| ExternalInterface {
            address_v6: Some(address.parse().unwrap()),
            ..ExternalInterface::eth0(2, 1500, 1)
        };
        let mut standing = Standing::of(with("fd77::1"));
        let start = Instant::now();
        standing.seen(None, start);
        assert_eq!(standing.seen(None, start + GRACE), Step::Choose);
        assert_eq!(standing.chosen(Ok(with("fe80::1"))), None);
        // As soon as there is another it is taken, and ours when it is back.
        assert_eq!(standing.seen(None, start + GRACE * 2), Step::Choose);
        assert_eq!(standing.seen(Some(with("fd77::1")), start + GRACE * 2), Step::Nothing);
        standing.seen(None, start + GRACE * 3);
        assert_eq!(standing.chosen(Ok(with("fd77::2"))), Some(with("fd77::2")));
        // Where there never was another, one is as good as the next.
        let mut standing = Standing::of(with("fe80::1"));
        assert_eq!(standing.chosen(Ok(with("fe80::2"))), Some(with("fe80::2")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_index_or_mtu_is_followed_at_once() {
        let mut standing = Standing::of(ExternalInterface::eth0(2, 1500, 1));
        let now = Instant::now();
        standing.seen(None, now);
        assert_eq!(
            standing.seen(Some(ExternalInterface::eth0(9, 1500, 1)), now),
            Step::Changed(ExternalInterface::eth0(9, 1500, 1))
        );
        assert_eq!(
            standing.seen(Some(ExternalInterface::eth0(9, 1400, 1)), now),
            Step::Changed(ExternalInterface::eth0(9, 1400, 1))
        );
        assert_eq!(standing.seen(Some(ExternalInterface::eth0(9, 1400, 1)), now), Step::Nothing);
    }

    #[test]
    fn routes_matter_only_to_a_choice() {
        let routes = Changed { routes: true, ..Changed::default() };
        let mut standing = Standing::of(ExternalInterface::eth0(2, 1500, 1));
        assert!(!standing.is_about(routes));
        standing.lost = Some(Instant::now());
        assert!(standing.is_about(routes));
        assert!(!standing.is_about(Changed { overlay: true, ..Changed::default() }));
    }
}
