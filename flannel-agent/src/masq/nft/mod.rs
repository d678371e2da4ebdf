//! The rules in the hands of nft, in tables of flannel's own (`EnableNFTables`).

use ipnetwork::IpNetwork;
use tracing::{debug, info, warn};

use super::{
    exec::{Exec, ExecError},
    iptables::{others::Others, programs::Anywhere},
    keep::{Firewall, Flows, Look},
    rules::{Rule, RuleSet},
};
use crate::{netlink::FLOW_CHAIN_OF_NFT, values::Family};

mod json;
#[cfg(test)]
mod tests;
pub(super) mod text;

const NFT: &str = "nft";

/// The chain that marks packets of established flows.
const ESTABLISHED: &str = FLOW_CHAIN_OF_NFT;

/// One table of ours.
#[derive(Clone, Debug)]
struct Table {
    family: Family,
    name: &'static str,
    chains: Vec<Chain>,
}

/// A chain at a hook of the kernel; its policy is accept.
#[derive(Clone, Debug)]
struct Chain {
    name: &'static str,
    comment: &'static str,
    /// `nat` or `filter`.
    kind: &'static str,
    hook: &'static str,
    priority: i32,
    rules: Vec<Rule>,
}

/// The rules, kept by nft. The table of a family that the cluster has not is there, too, and empty, as upstream's is.
pub(super) struct Nft<E> {
    exec: E,
    tables: [Table; 2],
    /// nft before 1.0 knows no comments of tables and chains.
    comments: bool,
    /// Why the chains that mark established flows are not in the tables.
    unmarked: Option<String>,
    /// What is kept from that mark, in the order of the tables.
    others: [Others; 2],
    /// What is in the tables may hold exceptions that are wanted no more.
    stale: bool,
    /// Rules of others for which each packet counts, of both families.
    each_packet: Vec<String>,
}

impl Table {
    /// The table that holds `rules`.
    fn of(rules: &RuleSet) -> Self {
        let chain = |name, comment, kind, hook, priority| {
            move |rules: &Vec<Rule>| Chain { name, comment, kind, hook, priority, rules: rules.clone() }
        };
        let exempt = chain(
            "exempt",
            "chain to let traffic keep its source, before anybody masquerades it",
            "nat",
            "postrouting",
            95,
        );
        let postrtg =
            chain("postrtg", "chain to manage traffic masquerading by flannel", "nat", "postrouting", 100);
        let forward = chain("forward", "chain to accept flannel traffic", "filter", "forward", 0);
        let exempt = Some(&rules.exempt).filter(|rules| !rules.is_empty()).map(exempt);
        let flow = chain(
            ESTABLISHED,
            "chain to mark packets of established flows behind all filters",
            "filter",
            "postrouting",
            -150,
        );
        let chains = [
            exempt,
            rules.masq.as_ref().map(postrtg),
            rules.forward.as_ref().map(forward),
            rules.flow.as_ref().map(flow),
        ];
        Self {
            family: rules.family,
            name: text::table_name(rules.family),
            chains: chains.into_iter().flatten().collect(),
        }
    }

    /// With `exceptions` behind the first of the rules that mark flows, which clears the mark.
    fn with_exceptions(mut self, exceptions: &[Rule]) -> Self {
        if let Some(chain) = self.chains.iter_mut().find(|chain| chain.name == ESTABLISHED) {
            chain.rules.splice(1..1, exceptions.iter().copied());
        }
        self
    }

    /// The network whose flows are marked.
    fn marked(&self) -> Option<IpNetwork> {
        let chain = self.chains.iter().find(|chain| chain.name == ESTABLISHED)?;
        chain.rules.iter().find_map(|rule| Some(rule.source?.network))
    }

    fn marks_flows(&self) -> bool {
        self.chains.iter().any(|chain| chain.name == ESTABLISHED)
    }

    fn empty(family: Family) -> Self {
        Self { family, name: text::table_name(family), chains: Vec::new() }
    }
}

impl<E: Exec> Nft<E> {
    /// Finds nft.
    pub(super) async fn detect(mut exec: E, rules: &[RuleSet]) -> Result<Self, ExecError> {
        let version = exec.run(NFT, &["--version"], "").await?;
        info!(
            program = NFT,
            version = version.trim(),
            because = "EnableNFTables is set",
            "masquerade and forward rules by nftables"
        );
        let table = |family| {
            let rules = rules.iter().find(|rules| rules.family == family);
            rules.map_or_else(|| Table::empty(family), Table::of)
        };
        Ok(Self {
            exec,
            tables: Family::BOTH.map(table),
            comments: true,
            unmarked: None,
            others: Default::default(),
            stale: false,
            each_packet: Vec::new(),
        })
    }

    /// The same, looking for what others have beside these rules.
    pub(super) fn asking(self, anywhere: Anywhere) -> Self {
        Self { others: self.others.map(|others| others.asking(anywhere)), ..self }
    }

    /// The tables as they should be.
    fn wanted(&self) -> Vec<Table> {
        let both = self.tables.iter().cloned().zip(&self.others);
        both.map(|(table, others)| table.with_exceptions(&others.plain_exceptions())).collect()
    }

    /// Looks which flows connection tracking, or a rule of others, has to see whole.
    async fn look_for_exceptions(&mut self) {
        self.each_packet.clear();
        for (table, others) in self.tables.iter().zip(&mut self.others) {
            let Some(network) = table.marked() else { continue };
            others.look_beside(&mut self.exec, network).await;
            self.each_packet.extend_from_slice(others.each_packet());
            self.stale |= others.adapts();
        }
    }

    async fn faults_of(&mut self, table: &Table, look: Look) -> Result<Vec<String>, ExecError> {
        let list = ["-j", "-s", "list", "table", text::word(table.family), table.name];
        match self.exec.run(NFT, &list, "").await {
            Ok(listed) => Ok(json::faults(table, &listed, look)),
            Err(ExecError::Failed { stderr, .. }) if stderr.contains("No such file") => {
                Ok(vec![format!("table {} {} is missing", text::word(table.family), table.name)])
            }
            Err(error) => Err(error),
        }
    }

    async fn replace(&mut self, table: &Table) -> Result<(), ExecError> {
        let outcome = self.exec.run(NFT, &["-f", "-"], &text::replace(table, self.comments)).await;
        if let Err(ExecError::Failed { stderr, .. }) = &outcome
            && self.comments
        {
            debug!(stderr, "nft does not take the rules: trying without comments");
            self.exec.run(NFT, &["-f", "-"], &text::replace(table, false)).await?;
            self.comments = false;
            return Ok(());
        }
        outcome.map(drop)
    }

    /// A kernel that knows no connection tracking takes the other chains of `table` all the same.
    async fn replace_without_flows(&mut self, mut table: Table, error: ExecError) -> Result<(), ExecError> {
        table.chains.retain(|chain| chain.name != ESTABLISHED);
        if self.replace(&table).await.is_err() {
            return Err(error);
        }
        self.unmarked = Some(error.to_string());
        for kept in self.tables.iter_mut().filter(|kept| kept.family == table.family) {
            *kept = table.clone();
        }
        Ok(())
    }
}

impl<E: Exec + Send> Firewall for Nft<E> {
    async fn faults(&mut self, look: Look) -> Result<Vec<String>, ExecError> {
        self.look_for_exceptions().await;
        let mut faults = Vec::new();
        for table in self.wanted() {
            faults.extend(self.faults_of(&table, look).await?);
        }
        if self.stale {
            faults.push("rules of others that the mark of flows goes by have changed".to_owned());
        }
        Ok(faults)
    }

    async fn repair(&mut self, look: Look) -> Result<(), ExecError> {
        let mut outcome = Ok(());
        for table in self.wanted() {
            let is_stale = self.stale && table.marks_flows();
            if is_stale || !self.faults_of(&table, look).await?.is_empty() {
                let replaced = match self.replace(&table).await {
                    Err(error) if look == Look::Start && table.marks_flows() => {
                        self.replace_without_flows(table, error).await
                    }
                    replaced => replaced,
                };
                outcome = outcome.and(replaced);
            }
        }
        self.stale &= outcome.is_err();
        outcome
    }

    /// It has no other back end.
    async fn remove_others(&mut self) {}

    fn adapts(&self) -> bool {
        self.others.iter().any(Others::adapts)
    }

    fn each_packet(&self) -> &[String] {
        &self.each_packet
    }

    fn flows(&self) -> Flows {
        match &self.unmarked {
            _ if self.tables.iter().any(Table::marks_flows) => Flows::Marked,
            Some(because) => Flows::Unmarked(because.clone()),
            None => Flows::NotAsked,
        }
    }
}

/// Removes flannel's tables of `families`, where there are any.
pub(super) async fn remove<E: Exec>(exec: &mut E, families: &[Family]) {
    if !exec.has(NFT) {
        return;
    }
    let Ok(tables) = exec.run(NFT, &["list", "tables"], "").await else { return };
    for family in families {
        let table = format!("table {} {}", text::word(*family), text::table_name(*family));
        if !tables.lines().any(|line| line.trim() == table) {
            continue;
        }
        match exec.run(NFT, &["-f", "-"], &format!("delete {table}\n")).await {
            Ok(_) => info!(table, "nftables rules of an earlier flannel removed"),
            Err(error) => warn!(%error, table, "nftables rules of an earlier flannel cannot be removed"),
        }
    }
}

/// Looks for `rules` in `text`, which `nft -j list table` has written.
///
/// # Panics
/// They are all said to be there, though `text` does not name their chains.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str, rules: &RuleSet) {
    let table = Table::of(rules);
    for look in [Look::Start, Look::Resync] {
        let faults = json::faults(&table, text, look);
        let named = table.chains.iter().all(|chain| text.contains(chain.name) || text.contains("\\u"));
        assert!(named || !faults.is_empty(), "nothing is wrong with {text:?}");
    }
}
