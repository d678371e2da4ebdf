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

use ipnetwork::IpNetwork;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use exec::{ExecError, Machine};
use iptables::{Families, Iptables};
use keep::{Firewall, Flows, Keeper};
use monitor::RulesetMonitor;
use nft::Nft;
use rules::RuleSet;

use crate::{control::Standing, netlink::NetfilterProgram, values::Family};
pub use met::{Passing, met};
pub use rules::RuleOptions;

mod blackhole;
mod exec;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod iptables;
mod keep;
mod met;
mod monitor;
mod nft;
mod rules;

/// What the rules of this node follow from.
#[derive(Clone, Debug)]
pub struct MasqOptions {
    /// The rules of each family of the cluster; `random_fully` is a wish, which an old iptables cannot fulfil.
    pub rules: Vec<RuleOptions>,
    /// `EnableNFTables`: nft keeps the rules, and not iptables.
    pub nftables: bool,
    /// Networks and subnets of an earlier run, as its subnet file tells.
    pub earlier: Vec<IpNetwork>,
    /// `--iptables-resync`.
    pub resync: Duration,
    /// Tells of the programs at netfilter's hooks in all network namespaces; `None` where this process may not ask.
    pub netfilter_programs: fn() -> Option<Vec<NetfilterProgram>>,
    /// The subnets to route into a blackhole, with `--ip-blackhole-route`.
    pub blackholes: Vec<IpNetwork>,
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
    /// Of each keeper, once its rules are in place, whether they mark flows.
    applied: Vec<watch::Receiver<Option<Flows>>>,
    tasks: Vec<AbortOnDropHandle<()>>,
    /// Where the keepers tell how they fare.
    standing: Standing,
}

impl Rules {
    /// Begins to keep the rules, and tells `standing` how that goes. Returns before they are in place. Needs a Tokio
    /// runtime.
    ///
    /// # Errors
    /// The program that keeps them is missing, and the cluster's traffic needs it: `--ip-masq`.
    pub async fn start(options: MasqOptions, standing: &Standing) -> Result<Self, MasqError> {
        let mut rules = Self { applied: Vec::new(), tasks: Vec::new(), standing: standing.clone() };
        for subnet in &options.blackholes {
            rules.tasks.push(AbortOnDropHandle::new(tokio::spawn(blackhole::keep(*subnet, options.resync))));
        }
        if options.nftables {
            let kept = rules.by_nft(&options).await;
            options.judge(kept, "pods")?;
        } else {
            for family in &options.rules {
                let kept = rules.by_iptables(&options, family).await;
                options.judge(kept, &Family::of_network(family.network).to_string())?;
            }
        }
        Ok(rules)
    }

    /// Returns when the rules are in place, or cannot be had and are not needed.
    pub async fn applied(&self) {
        for applied in &self.applied {
            in_place(applied).await;
        }
    }

    /// Returns when no rule marks established flows, with the reason, though one was asked for. As long as one does,
    /// or may, it does not return.
    pub async fn flows_unmarked(&self) -> String {
        let mut because = "no rules can be kept on this node".to_owned();
        for applied in &self.applied {
            match in_place(applied).await {
                Flows::Marked => std::future::pending().await,
                Flows::Unmarked(reason) => because = reason,
                Flows::NotAsked => {}
            }
        }
        because
    }

    async fn by_nft(&mut self, options: &MasqOptions) -> Result<(), ExecError> {
        let rules: Vec<RuleSet> = options.rules.iter().map(RuleSet::new).collect();
        let nft = Nft::detect(Machine, &rules).await?.asking(options.netfilter_programs);
        let earlier = options.earlier();
        let others = async move { iptables::remove(&mut Machine, &earlier).await };
        self.spawn(nft, "nftables", true, options.resync, others);
        Ok(())
    }

    async fn by_iptables(&mut self, options: &MasqOptions, family: &RuleOptions) -> Result<(), ExecError> {
        let rules = |capable| {
            let random_fully = family.random_fully && capable;
            RuleSet::new(&RuleOptions { random_fully, ..*family })
        };
        let families = options.families(family);
        let mut without = vec![families.own];
        without.extend(&families.without);
        let iptables = Iptables::detect(Machine, families, options.earlier(), rules)
            .await?
            .asking(options.netfilter_programs);
        let notified = iptables.is_nft();
        let others = async move { nft::remove(&mut Machine, &without).await };
        let kept_by = match Family::of_network(family.network) {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        self.spawn(iptables, kept_by, notified, options.resync, others);
        Ok(())
    }

    /// `notified`: the kernel tells of changes to what `firewall` keeps. `others` removes what other kinds of firewall
    /// hold of flannel's, once these rules are in place.
    fn spawn(
        &mut self,
        firewall: impl Firewall + Send + 'static,
        kept_by: &'static str,
        notified: bool,
        resync: Duration,
        others: impl Future<Output = ()> + Send + 'static,
    ) {
        let monitor = notified.then(RulesetMonitor::open).and_then(|opened| {
            opened
                .inspect_err(
                    |error| debug!(%error, "the kernel does not report changed rules: checking every second"),
                )
                .ok()
        });
        let (sender, applied) = watch::channel(None);
        self.applied.push(applied);
        self.tasks.push(AbortOnDropHandle::new(tokio::spawn(
            Keeper::new(firewall, resync, monitor)
                .telling(self.standing.clone(), kept_by)
                .run(sender, others),
        )));
    }
}

impl MasqOptions {
    /// Whether there can be no rules, and the cluster goes without.
    fn judge(&self, kept: Result<(), ExecError>, packets: &str) -> Result<(), MasqError> {
        let Err(source) = kept else { return Ok(()) };
        if self.rules.iter().any(|rules| rules.ip_masq) {
            return Err(MasqError { needs: "--ip-masq cannot masquerade", source });
        }
        warn!(
            error = %source,
            packets,
            "no masquerade or forward rules on this node: the host's own rules may drop packets of pods"
        );
        Ok(())
    }

    fn earlier(&self) -> Vec<IpNetwork> {
        let mut all = self.earlier.clone();
        all.extend(self.rules.iter().map(|rules| rules.network));
        all.sort();
        all.dedup();
        all
    }

    /// The families that whoever keeps `rules` looks after: first its own, then those that the cluster has not, whose
    /// rules of an earlier run are to go. The first of several does that.
    fn families(&self, rules: &RuleOptions) -> Families {
        let own = Family::of_network(rules.network);
        let first = self.rules.first().is_some_and(|first| first.network == rules.network);
        let kept =
            |family: &Family| self.rules.iter().any(|rules| Family::of_network(rules.network) == *family);
        let without = Family::BOTH.into_iter().filter(|family| first && !kept(family)).collect();
        Families { own, without }
    }
}

/// Waits for the rules of one keeper.
async fn in_place(applied: &watch::Receiver<Option<Flows>>) -> Flows {
    match applied.clone().wait_for(Option::is_some).await.map(|flows| flows.clone()) {
        Ok(Some(flows)) => flows,
        // The task has panicked: what it would have said will never come.
        Ok(None) | Err(_) => std::future::pending().await,
    }
}
