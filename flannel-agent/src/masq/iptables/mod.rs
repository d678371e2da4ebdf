//! The rules in the hands of iptables, in either of its back ends.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use tracing::{info, warn};

use super::{
    exec::{Exec, ExecError},
    keep::{Firewall, Flows, Look},
    rules::RuleSet,
};
use crate::{netlink::FLOW_CHAIN, values::Family};
use backend::{Backend, Kind};
use others::Others;
use programs::Anywhere;
use saved::{Saved, SavedRule, SavedTable};
use table::Table;

mod backend;
mod each_packet;
mod helped;
mod of_nft;
pub(super) mod others;
mod plain;
pub(super) mod programs;
mod saved;
mod spec;
mod table;
#[cfg(test)]
mod tests;

/// What one keeper looks after.
#[derive(Clone, Debug)]
pub(super) struct Families {
    /// The family whose rules it keeps.
    pub(super) own: Family,
    /// Families that are to have none.
    pub(super) without: Vec<Family>,
}

/// One family's rules, kept by iptables or ip6tables.
pub(super) struct Iptables<E> {
    exec: E,
    backend: Backend,
    rules: RuleSet,
    /// The cluster's network.
    network: Option<IpNetwork>,
    /// Families that are to have no rules.
    without: Vec<Family>,
    /// Networks that past runs may have left rules for, of either family.
    earlier: Vec<IpNetwork>,
    /// Why the rules that mark established flows are not among them.
    unmarked: Option<String>,
    /// What is kept from that mark.
    others: Others,
    /// What an earlier look had found, and is to be kept from it no more.
    dropped: Vec<SavedRule>,
}

impl<E: Exec> Iptables<E> {
    /// Chooses the back end, and says which and why. `rules` makes the rules, told whether MASQUERADE can
    /// draw ports at random.
    pub(super) async fn detect(
        mut exec: E,
        families: Families,
        earlier: Vec<IpNetwork>,
        rules: impl FnOnce(bool) -> RuleSet,
    ) -> Result<Self, ExecError> {
        let Families { own: family, without } = families;
        let backend = Backend::detect(&mut exec, family).await?;
        info!(
            program = backend.program(family, ""),
            version = backend.version_text,
            because = backend.because,
            "masquerade and forward rules by iptables"
        );
        let rules = rules(backend.has_random_fully());
        let network = rules.flow.iter().flatten().find_map(|rule| rule.source.map(|source| source.network));
        Ok(Self {
            exec,
            backend,
            rules,
            network,
            without,
            earlier,
            unmarked: None,
            others: Others::default(),
            dropped: Vec::new(),
        })
    }

    /// The same, looking for what others have beside these rules.
    pub(super) fn asking(self, anywhere: Anywhere) -> Self {
        Self { others: self.others.asking(anywhere), ..self }
    }

    /// Whether the kernel tells of changes to these rules.
    pub(super) fn is_nft(&self) -> bool {
        self.backend.is_nft()
    }

    fn tables(&self) -> [Table; 3] {
        let [nat, filter, mangle] = Table::of(&self.rules, &of_family(&self.earlier, self.rules.family));
        [nat, filter, mangle.with_exceptions(self.others.exceptions(), &self.dropped)]
    }

    /// Whether to look at `table`. Asking for it makes it, and packets then take the way through it: what
    /// nobody else may need is left alone, unless something is to be in it.
    fn is_kept(table: &Table) -> bool {
        table.name != "mangle" || table.is_wanted()
    }

    async fn save(&mut self, table: &Table) -> Result<Saved, ExecError> {
        let program = self.backend.program(self.rules.family, "-save");
        let text = self.exec.run(&program, &["-t", table.name], "").await?;
        Ok(Saved::parse(&text))
    }

    /// Looks which flows connection tracking, or a rule of others, has to see whole. `tables` of ours have just been read.
    async fn look_for_exceptions(&mut self, tables: Vec<(&str, SavedTable)>) {
        let Some(network) = self.rules.flow.as_ref().and(self.network) else { return };
        let before = self.others.exceptions().to_vec();
        self.others.look(&mut self.exec, network, Some(&self.backend), tables).await;
        for rule in before {
            if !self.dropped.contains(&rule) {
                self.dropped.push(rule);
            }
        }
        let wanted = self.others.exceptions();
        self.dropped.retain(|rule| !wanted.contains(rule));
    }

    async fn put_right(&mut self, table: &Table, look: Look) -> Result<(), ExecError> {
        let saved = self.save(table).await?.table(table.name);
        if table.faults(&saved, look).is_empty() {
            return Ok(());
        }
        let program = self.backend.program(self.rules.family, "-restore");
        let input = table.restore(&saved, look);
        self.exec.run(&program, self.backend.restore_arguments(), &input).await?;
        Ok(())
    }

    /// The exemption of peers takes a match, iprange, that other rules do not. Where the kernel lacks it,
    /// they are to be in place all the same. Whether that has helped.
    async fn without_iprange(&mut self, look: Look, error: &ExecError) -> bool {
        let rules = self.rules.clone();
        self.rules.exempt.retain(|rule| rule.destination_not.is_none());
        if self.rules != rules {
            let [nat, ..] = self.tables();
            if self.put_right(&nat, look).await.is_ok() {
                warn!(
                    %error,
                    "this kernel lacks iptables' match iprange: where others masquerade what pods send, \
                     they do so to peers, too"
                );
                return true;
            }
        }
        self.rules = rules;
        false
    }
}

impl<E: Exec> Iptables<E> {
    /// What marks flows takes a table and a match, mangle and conntrack, that other rules do not. Where the kernel
    /// lacks them, at the start, the others are to be in place all the same. Whether `table` is that one.
    fn without_flows(&mut self, table: &Table, look: Look, error: &ExecError) -> bool {
        let lacking = look == Look::Start
            && table.name == "mangle"
            && matches!(error, ExecError::Failed { .. })
            && self.rules.flow.take().is_some();
        if lacking {
            self.unmarked = Some(error.to_string());
        }
        lacking
    }
}

impl<E: Exec + Send> Firewall for Iptables<E> {
    async fn faults(&mut self, look: Look) -> Result<Vec<String>, ExecError> {
        let mut found = BTreeMap::new();
        for table in self.tables().into_iter().filter(Self::is_kept) {
            match self.save(&table).await {
                Ok(saved) => drop(found.insert(table.name, saved.table(table.name))),
                Err(error) if self.without_flows(&table, look, &error) => {}
                Err(error) => return Err(error),
            }
        }
        // Rules of the third, nat, see the first packet of a flow alone.
        let tables =
            ["mangle", "filter"].into_iter().filter_map(|name| Some((name, found.get(name)?.clone())));
        self.look_for_exceptions(tables.collect()).await;
        let marking = found.get("mangle").and_then(|table| table.chain(FLOW_CHAIN)).unwrap_or_default();
        self.dropped.retain(|rule| marking.contains(rule));
        let tables = self.tables();
        let kept = tables.iter().filter(|table| Self::is_kept(table));
        Ok(kept.filter_map(|table| Some(table.faults(found.get(table.name)?, look))).flatten().collect())
    }

    async fn repair(&mut self, look: Look) -> Result<(), ExecError> {
        let [nat, filter, mangle] = self.tables();
        let mut outcome = self.put_right(&nat, look).await;
        if let Err(error @ ExecError::Failed { .. }) = &outcome
            && self.without_iprange(look, error).await
        {
            outcome = Ok(());
        }
        // One table's trouble is not the other's.
        outcome = self.put_right(&filter, look).await.and(outcome);
        if Self::is_kept(&mangle) {
            match self.put_right(&mangle, look).await {
                // What keeps the other tables from being written, too, is another trouble.
                Err(error) if outcome.is_ok() && self.without_flows(&mangle, look, &error) => {}
                marked => outcome = marked.and(outcome),
            }
        }
        outcome
    }

    async fn remove_others(&mut self) {
        for family in &self.without {
            for kind in Kind::all(&self.exec, *family) {
                remove_from(&mut self.exec, kind, *family, &self.earlier).await;
            }
        }
        let [.., mangle] = self.tables();
        if !Self::is_kept(&mangle) {
            remove_table(&mut self.exec, self.backend.kind(), self.rules.family, &mangle).await;
        }
        // What the other back end has of ours would masquerade beside us.
        for kind in self.backend.others(&self.exec, self.rules.family) {
            remove_from(&mut self.exec, kind, self.rules.family, &self.earlier).await;
        }
    }

    fn adapts(&self) -> bool {
        self.others.adapts()
    }

    fn each_packet(&self) -> &[String] {
        self.others.each_packet()
    }

    fn flows(&self) -> Flows {
        match (&self.unmarked, &self.rules.flow) {
            (Some(because), _) => Flows::Unmarked(because.clone()),
            (None, Some(_)) => Flows::Marked,
            (None, None) => Flows::NotAsked,
        }
    }
}

/// Removes all rules of flannel's from iptables, of both families and in both back ends, as far as there are
/// programs for it.
pub(super) async fn remove<E: Exec>(exec: &mut E, earlier: &[IpNetwork]) {
    for family in Family::BOTH {
        for kind in Kind::all(exec, family) {
            remove_from(exec, kind, family, earlier).await;
        }
    }
}

async fn remove_from<E: Exec>(exec: &mut E, kind: Kind, family: Family, earlier: &[IpNetwork]) {
    // All tables there are: asking for one by name would make it.
    let Ok(text) = exec.run(&kind.program(family, "-save"), &[], "").await else { return };
    let saved = Saved::parse(&text);
    for table in Table::without_ours(family, &of_family(earlier, family)) {
        remove_found(exec, kind, family, &table, &saved).await;
    }
}

fn of_family(networks: &[IpNetwork], family: Family) -> Vec<IpNetwork> {
    networks.iter().filter(|network| Family::of_network(**network) == family).copied().collect()
}

/// Removes what is flannel's from a table that is to hold nothing of it.
async fn remove_table<E: Exec>(exec: &mut E, kind: Kind, family: Family, table: &Table) {
    if let Ok(text) = exec.run(&kind.program(family, "-save"), &[], "").await {
        remove_found(exec, kind, family, table, &Saved::parse(&text)).await;
    }
}

async fn remove_found<E: Exec>(exec: &mut E, kind: Kind, family: Family, table: &Table, saved: &Saved) {
    let found = saved.table(table.name);
    if table.faults(&found, Look::Start).is_empty() {
        return;
    }
    let program = kind.program(family, "-restore");
    match exec.run(&program, &["--noflush"], &table.restore(&found, Look::Start)).await {
        Ok(_) => info!(program, table = table.name, "rules of an earlier flannel removed"),
        Err(error) => warn!(%error, table = table.name, "rules of an earlier flannel cannot be removed"),
    }
}

/// Reads `text` as iptables-save's, and looks for `rules` of `network` in it.
///
/// # Panics
/// The input of iptables-restore has other lines than those that it is made of.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str, network: IpNetwork, rules: &RuleSet) {
    let saved = Saved::parse(text);
    let exceptions = helped::exceptions(&saved.table(helped::RAW), network, super::rules::FLOW);
    for table in Table::of(rules, &[network]).into_iter().chain(Table::without_ours(rules.family, &[network]))
    {
        let table = table.with_exceptions(&exceptions, &[]);
        let there = saved.table(table.name);
        for look in [Look::Start, Look::Resync] {
            let _ = table.faults(&there, look);
            let input = table.restore(&there, look);
            let words = ["*", ":", "-A ", "-I ", "-D ", "-F ", "-X ", "COMMIT"];
            for line in input.lines() {
                assert!(words.iter().any(|word| line.starts_with(word)), "{line:?} of\n{input}");
            }
        }
    }
}
