//! How netfilter translates the flows that last: what connection tracking says of them, in the maps of the programs.
//!
//! ```text
//! to_pod ─ asked ─▶ Translator ─ which entry? ─▶ connection tracking
//!                       └─ translations ─▶ from_pod, from_underlay, to_overlay
//! any program ─ broken_off ─▶ Translator ─ is it over? ─▶ the pod's socket
//!                                  └─ close it, or keep it ─▶ connection tracking
//! flows ─ rests ─▶ Translator ─ keep it ─▶ connection tracking
//! connection tracking ─ forgotten ─▶ flows, Translator
//! ```
//!
//! The programs ask about a flow once it has lasted for a while. What is found is bound to the very entry of connection
//! tracking: when that goes, by a notice of the kernel or by what is found in turn, the flow goes back to the kernel path.
//!
//! So does a flow that nobody translates when its entry is deleted, as after a change of rules: the next packet begins an entry
//! of its own, as it would without programs. The filter of the socket that hears the kernel's notices forgets it before whoever
//! deletes the entry goes on, so the agent need not be told.

use std::{collections::BTreeMap, convert::Infallible, io, time::Duration};

use flannel_common::family::{V4, V6};
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use tokio::{
    select,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};
use tracing::{info, warn};

use crate::{
    bpf::{Asked, BrokenOff, Counters, ForgottenFlows, MapFault, Pins, PodSockets, ToldFlows},
    host::conntrack::TcpTimeouts,
    netlink::{Conntrack, ConntrackEnds, EndedEntry, NetlinkError},
    telemetry::LastMessage,
    values::Family,
};

mod broken_off;
mod ends;
mod flows;
mod judge;
mod resting;
mod watched;
mod worth;

use ends::PodEnds;
use flows::TranslatedFlows;
use worth::Worth;

/// How often some of the entries are looked at: those whose end the kernel tells of are gone by then.
const LOOK: Duration = Duration::from_millis(250);
/// So many are looked at then, in turn.
const LOOKED_AT: usize = 256;
/// So many flows are asked about in a [`LOOK`] at most; the others are asked about again if they last.
const ANSWERED: usize = 1_000;
/// How often connections are looked at that were closed, whether entries that go are to be heard of, and how long connection
/// tracking keeps them.
const REOPEN: Duration = Duration::from_secs(1);
/// How long notices are left to come together, where there are many.
const GATHERED: Duration = Duration::from_millis(2);

/// What keeps translations.
#[derive(Debug, thiserror::Error)]
pub enum TranslateError {
    /// Connection tracking cannot be asked.
    #[error(transparent)]
    Conntrack(#[from] NetlinkError),
    /// A map cannot be read or written.
    #[error(transparent)]
    Map(#[from] MapFault),
    /// Nobody tells of flows that are broken off.
    #[error("cannot wait for flows that are broken off: {0}")]
    BrokenOff(#[source] io::Error),
    /// The kernel does not tell of pods' sockets.
    #[error("cannot ask pods' sockets about connections that were reset: {0}")]
    Socket(#[source] Errno),
}

/// Finds out how flows are translated, for the programs.
pub struct Translator {
    asked: Asked,
    broken_off: BrokenOff,
    forgotten: ForgottenFlows,
    worth: Worth,
    conntrack: Conntrack,
    ends: PodEnds,
    v4: Option<TranslatedFlows<V4>>,
    v6: Option<TranslatedFlows<V6>>,
    /// As they were set within the last [`REOPEN`].
    timeouts: TcpTimeouts,
    answered: usize,
    failed: LastMessage,
}

impl Translator {
    /// For the programs that ask by `asked` and tell of flows that are `broken_off`, about which the `sockets` of pods are
    /// asked, one of which forgets those that are `forgotten`, and whose maps are pinned at `pins`, in the networks of `shares`
    /// with this node's subnets of them. What an earlier agent has found is gone over at once.
    ///
    /// # Errors
    /// When connection tracking cannot be asked, or a map not be opened.
    pub fn start(
        asked: Asked,
        broken_off: BrokenOff,
        sockets: PodSockets,
        forgotten: ForgottenFlows,
        pins: &Pins,
        shares: &BTreeMap<Family, (IpNetwork, IpNetwork)>,
    ) -> Result<Self, TranslateError> {
        let (v4, v6) = (shares.get(&Family::V4), shares.get(&Family::V6));
        Ok(Self {
            asked,
            broken_off,
            forgotten,
            worth: Worth::new(Counters::open(pins)?),
            conntrack: Conntrack::open()?,
            ends: PodEnds::open(sockets)?,
            v4: v4.map(|share| TranslatedFlows::open(pins, *share)).transpose()?,
            v6: v6.map(|share| TranslatedFlows::open(pins, *share)).transpose()?,
            timeouts: TcpTimeouts::now(),
            answered: 0,
            failed: LastMessage::default(),
        })
    }

    /// Answers the programs, for as long as it is polled.
    pub async fn run(mut self) -> Infallible {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reopens = interval(REOPEN);
        reopens.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // From the start: of an entry that is made while nobody listens the kernel tells nobody, not even later.
        let mut ends = self.listen();
        let mut gathered = Instant::now();
        loop {
            let told = async {
                match &mut ends {
                    Some(ends) => {
                        sleep_until(gathered).await;
                        ends.next().await
                    }
                    None => std::future::pending().await,
                }
            };
            let result = select! {
                asked = self.asked.next() => {
                    // First, or an entry might go between its lookup and the first notice.
                    let followed = ends.as_mut().map_or(Ok(()), |ends| ends.follow(true));
                    self.answer(asked).and(followed.map_err(Into::into))
                }
                told = self.broken_off.next() => self.break_off(told).await,
                told = told => {
                    gathered = Instant::now() + GATHERED;
                    self.ended(told)
                }
                _ = reopens.tick() => {
                    self.timeouts = TcpTimeouts::now();
                    let followed = self.follow(ends.as_mut());
                    self.reopen().and(followed)
                }
                _ = looks.tick() => {
                    self.answered = 0;
                    if ends.is_none() {
                        ends = self.listen();
                    }
                    self.go_over().await
                }
            };
            self.say(result);
        }
    }

    /// Without notices the entries are looked at in turn.
    fn listen(&mut self) -> Option<ConntrackEnds> {
        let opened = ConntrackEnds::open(|socket| self.forgotten.attach(socket));
        let followed = opened.map_err(TranslateError::from).and_then(|mut ends| {
            self.follow(Some(&mut ends))?;
            Ok(ends)
        });
        match followed {
            Ok(ends) => Some(ends),
            Err(error) => {
                self.say(Err(error));
                None
            }
        }
    }

    /// Hears of entries that go from here on, or no longer.
    fn follow(&mut self, ends: Option<&mut ConntrackEnds>) -> Result<(), TranslateError> {
        let is_worth = self.worth.now();
        let is_wanted = self.is_translating() || *is_worth.as_ref().unwrap_or(&true);
        ends.map_or(Ok(()), |ends| ends.follow(is_wanted))?;
        Ok(is_worth.map(drop)?)
    }

    /// Whether any flow is translated.
    fn is_translating(&self) -> bool {
        self.v4.as_ref().is_some_and(TranslatedFlows::is_translating)
            || self.v6.as_ref().is_some_and(TranslatedFlows::is_translating)
    }

    /// Closes connections that were broken off, and keeps those that go on.
    async fn break_off(&mut self, told: io::Result<ToldFlows>) -> Result<(), TranslateError> {
        let told = match told {
            Ok(told) => told,
            Err(error) => {
                sleep(LOOK).await;
                return Err(TranslateError::BrokenOff(error));
            }
        };
        let (conntrack, ends) = (&mut self.conntrack, &mut self.ends);
        let is_awaited = match (told, &mut self.v4, &mut self.v6) {
            (ToldFlows::V4(flows), Some(v4), _) => v4.break_off(&flows, conntrack, ends).await?,
            (ToldFlows::V6(flows), _, Some(v6)) => v6.break_off(&flows, conntrack, ends).await?,
            _ => false,
        };
        if is_awaited {
            // A program may tell of a packet before it meets connection tracking, and before its end.
            sleep(GATHERED).await;
            self.look_again(TcpTimeouts::now()).await?;
        }
        Ok(())
    }

    /// Looks at some of the flows that are translated, at connections that were broken off, and at those that rest.
    async fn go_over(&mut self) -> Result<(), TranslateError> {
        let timeouts = self.timeouts;
        self.look(LOOKED_AT, timeouts)?;
        self.look_again(timeouts).await?;
        let (conntrack, ends) = (&mut self.conntrack, &mut self.ends);
        if let Some(v4) = &mut self.v4 {
            v4.keep_resting(timeouts, conntrack, ends).await?;
        }
        if let Some(v6) = &mut self.v6 {
            v6.keep_resting(timeouts, conntrack, ends).await?;
        }
        Ok(())
    }

    async fn look_again(&mut self, timeouts: TcpTimeouts) -> Result<(), TranslateError> {
        let (conntrack, ends) = (&mut self.conntrack, &mut self.ends);
        if let Some(v4) = &mut self.v4 {
            v4.look_again(timeouts, conntrack, ends).await?;
        }
        if let Some(v6) = &mut self.v6 {
            v6.look_again(timeouts, conntrack, ends).await?;
        }
        Ok(())
    }

    fn answer(&mut self, asked: ToldFlows) -> Result<(), TranslateError> {
        let left = ANSWERED.saturating_sub(self.answered);
        let conntrack = &mut self.conntrack;
        let (count, result) = match (asked, &mut self.v4, &mut self.v6) {
            (ToldFlows::V4(flows), Some(v4), _) => {
                (flows.len(), flows.iter().take(left).try_for_each(|flow| v4.learn(flow, conntrack)))
            }
            (ToldFlows::V6(flows), _, Some(v6)) => {
                (flows.len(), flows.iter().take(left).try_for_each(|flow| v6.learn(flow, conntrack)))
            }
            _ => (0, Ok(())),
        };
        self.answered = self.answered.saturating_add(count);
        result
    }

    fn ended(&mut self, told: Result<Vec<EndedEntry>, NetlinkError>) -> Result<(), TranslateError> {
        match told {
            Ok(ended) => {
                for entry in ended {
                    self.v4.as_mut().map_or(Ok(()), |v4| v4.entry_ended(&entry))?;
                    self.v6.as_mut().map_or(Ok(()), |v6| v6.entry_ended(&entry))?;
                }
                Ok(())
            }
            // Some were lost: each may have been one of ours.
            Err(NetlinkError::Socket(Errno::ENOBUFS)) => {
                self.v4.as_mut().map_or(Ok(()), TranslatedFlows::forget_accepted)?;
                self.v6.as_mut().map_or(Ok(()), TranslatedFlows::forget_accepted)?;
                self.look(usize::MAX, TcpTimeouts::now())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn look(&mut self, most: usize, timeouts: TcpTimeouts) -> Result<(), TranslateError> {
        let conntrack = &mut self.conntrack;
        self.v4.as_mut().map_or(Ok(()), |v4| v4.look(most, timeouts, conntrack))?;
        self.v6.as_mut().map_or(Ok(()), |v6| v6.look(most, timeouts, conntrack))
    }

    fn reopen(&mut self) -> Result<(), TranslateError> {
        let conntrack = &mut self.conntrack;
        self.v4.as_mut().map_or(Ok(()), |v4| v4.reopen(conntrack))?;
        self.v6.as_mut().map_or(Ok(()), |v6| v6.reopen(conntrack))
    }

    fn say(&mut self, result: Result<(), TranslateError>) {
        match result {
            Ok(()) => {
                if self.failed.is_over() {
                    info!("translated flows skip the host's stack again");
                }
            }
            Err(error) if self.failed.is_news(&error) => {
                warn!(%error, "flows to Services stay on the kernel path where connection tracking cannot be asked");
            }
            Err(_) => {}
        }
    }
}
