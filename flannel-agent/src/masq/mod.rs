//! The host's rules about pods' packets: masquerade, forward, and what is exempt.
//!
//! ```text
//! options -> RuleSet -> { iptables-restore | nft -f } -> kernel
//!             rules       iptables/          nft/    ^ keep: looks, repairs, backs off
//! ```
//!
//! A look compares all that is ours with what there should be, its order and place included, whenever the
//! kernel tells of a change (nf_tables), or else every second, and in any case every `--iptables-resync`
//! seconds. Nothing is removed at exit.

use std::time::Duration;

use ipnetwork::{IpNetwork, Ipv4Network};
use tokio::{sync::watch, task::JoinHandle};
use tracing::{debug, warn};

use exec::{ExecError, Machine};
use iptables::Iptables;
use keep::{Firewall, Keeper};
use nft::Nft;
use notices::Notices;
use rules::{Family, RuleSet};

pub use rules::RuleOptions;

mod blackhole;
mod exec;
mod iptables;
mod keep;
mod nft;
mod notices;
mod rules;

/// What the rules of this node follow from.
#[derive(Clone, Debug)]
pub struct MasqOptions {
    /// The rules; `random_fully` is a wish, which an old iptables cannot fulfil.
    pub rules: RuleOptions,
    /// `EnableNFTables`: nft keeps the rules, and not iptables.
    pub nftables: bool,
    /// Networks and subnets of an earlier run, as its subnet file tells.
    pub earlier: Vec<IpNetwork>,
    /// `--iptables-resync`.
    pub resync: Duration,
    /// The subnet to route into a blackhole, with `--ip-blackhole-route`.
    pub blackhole: Option<Ipv4Network>,
}

/// The rules cannot be had on this machine.
#[derive(Debug, thiserror::Error)]
#[error("{needs}: {source}")]
pub struct MasqError {
    needs: &'static str,
    source: ExecError,
}

/// The tasks that keep the rules; they end when this is dropped. The rules stay.
#[derive(Debug)]
pub struct Rules {
    applied: watch::Receiver<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Rules {
    /// Begins to keep the rules. Returns before they are in place. Needs a Tokio runtime.
    ///
    /// # Errors
    /// The program that keeps them is missing, and the cluster's traffic needs it: `--ip-masq`.
    pub async fn start(options: MasqOptions) -> Result<Self, MasqError> {
        let (sender, applied) = watch::channel(false);
        let mut tasks = Vec::new();
        if let Some(subnet) = options.blackhole {
            tasks.push(tokio::spawn(blackhole::keep(subnet, options.resync)));
        }
        let kept = if options.nftables {
            Self::by_nft(&options, sender.clone()).await
        } else {
            Self::by_iptables(&options, sender.clone()).await
        };
        match kept {
            Ok(task) => tasks.push(task),
            Err(source) if options.rules.ip_masq => {
                return Err(MasqError { needs: "--ip-masq cannot masquerade", source });
            }
            Err(source) => {
                warn!(
                    error = %source,
                    "no masquerade or forward rules on this node: what the host's own rules drop is dropped"
                );
                if options.rules.flow_mark {
                    warn!(
                        "no flow will skip the host's stack: the rule is missing that they are learned from"
                    );
                }
                let _ = sender.send(true);
            }
        }
        Ok(Self { applied, tasks })
    }

    /// Returns when the rules are in place, or cannot be had and are not needed.
    pub async fn applied(&self) {
        // An error means that the task has panicked: what it would have said will never come.
        if self.applied.clone().wait_for(|applied| *applied).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    async fn by_nft(
        options: &MasqOptions,
        applied: watch::Sender<bool>,
    ) -> Result<JoinHandle<()>, ExecError> {
        let rules = RuleSet::new(&options.rules);
        let nft = Nft::detect(Machine, &rules, options.earlier()).await?;
        Ok(spawn(nft, true, options.resync, applied))
    }

    async fn by_iptables(
        options: &MasqOptions,
        applied: watch::Sender<bool>,
    ) -> Result<JoinHandle<()>, ExecError> {
        let rules = |capable| {
            let random_fully = options.rules.random_fully && capable;
            RuleSet::new(&RuleOptions { random_fully, ..options.rules })
        };
        let family = Family::of(options.rules.network);
        let iptables = Iptables::detect(Machine, family, options.earlier(), rules).await?;
        let told = iptables.is_nft();
        Ok(spawn(iptables, told, options.resync, applied))
    }
}

impl MasqOptions {
    fn earlier(&self) -> Vec<IpNetwork> {
        let mut all = self.earlier.clone();
        all.push(self.rules.network);
        all.sort();
        all.dedup();
        all
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// `told`: the kernel tells of changes to what `firewall` keeps.
fn spawn(
    firewall: impl Firewall + Send + 'static,
    told: bool,
    resync: Duration,
    applied: watch::Sender<bool>,
) -> JoinHandle<()> {
    let notices = told.then(Notices::open).and_then(|opened| {
        opened.inspect_err(|error| debug!(%error, "no notices of changed rules: looking every second")).ok()
    });
    tokio::spawn(Keeper::new(firewall, resync, notices).run(applied))
}
