//! What others' rules ask of the mark: which flows have to meet them with each packet, or have a helper.
//!
//! A packet meets the rules of both back ends of iptables, so both are read, whichever holds ours. No table is made by
//! looking: packets would pass it from then on.

use ipnetwork::IpNetwork;
use tracing::{debug, info, warn};

use super::{
    backend::{Backend, Kind},
    each_packet::{self, Found},
    helped,
    of_nft::{self, NftRules},
    plain,
    programs::{Anywhere, Programs},
    saved::{Saved, SavedRule, SavedTable},
};
use crate::{
    masq::{
        exec::Exec,
        rules::{FLOW, Rule},
    },
    netlink::Netfilter,
    values::Family,
};

/// The tables that packets of established flows pass. Rules of the fifth, nat, see the first packet of a flow alone.
const TABLES: [&str; 4] = [helped::RAW, "mangle", "filter", "security"];

/// Tables that have just been read, by name.
pub(super) type Known<'a> = Vec<(&'a str, SavedTable)>;

/// A table that was read.
#[derive(Clone, Debug)]
pub(super) struct Read {
    /// What its rules are named by in front of their own words: program and table, as far as they are not the usual ones.
    pub(super) place: String,
    pub(super) table: SavedTable,
}

impl Read {
    /// A table of the back end that holds ours.
    pub(super) fn own(name: &str, table: SavedTable) -> Self {
        let place = if name == "filter" { String::new() } else { format!("-t {name} ") };
        Self { place, table }
    }
}

/// What the rules of others ask of the mark, of packets of one family between addresses of one network.
#[derive(Default)]
pub(in crate::masq) struct Others {
    /// None where it could not be asked, and in tests.
    netfilter: Option<Netfilter>,
    nft: NftRules,
    programs: Programs,
    /// What is kept from the mark, as the last look has found it.
    exceptions: Vec<SavedRule>,
    /// Rules of others for which each packet counts, as it has found them.
    each_packet: Vec<String>,
    /// It has found others than the one before.
    adapts: bool,
    /// The tables that iptables has in nft are read by its own program.
    reads_nft: bool,
    /// That tables cannot be read was said.
    said_unread: bool,
}

impl Others {
    /// The same, asking the kernel itself, too.
    pub(in crate::masq) fn asking(mut self, anywhere: Anywhere) -> Self {
        self.programs.anywhere = Some(anywhere);
        let netfilter = Netfilter::without_notices()
            .inspect_err(|error| debug!(%error, "tables of nft are not looked for"))
            .ok();
        Self { netfilter, ..self }
    }

    /// What is kept from the mark.
    pub(super) fn exceptions(&self) -> &[SavedRule] {
        &self.exceptions
    }

    /// The same in nobody's words.
    pub(in crate::masq) fn plain_exceptions(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        for rule in self.exceptions.iter().flat_map(plain::rules) {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        rules
    }

    /// The rules of others for which each packet counts.
    pub(in crate::masq) fn each_packet(&self) -> &[String] {
        &self.each_packet
    }

    /// Whether the last look has found other exceptions than the one before.
    pub(in crate::masq) const fn adapts(&self) -> bool {
        self.adapts
    }

    /// Looks which flows between addresses of `network` connection tracking, or a rule, has to see whole. None of ours are
    /// iptables'.
    pub(in crate::masq) async fn look_beside<E: Exec>(&mut self, exec: &mut E, network: IpNetwork) {
        self.look(exec, network, None, Vec::new()).await;
    }

    /// Looks which flows between addresses of `network` connection tracking, or a rule, has to see whole. Ours are in the
    /// back end `used`, of which the tables `known` have just been read.
    pub(super) async fn look<E: Exec>(
        &mut self,
        exec: &mut E,
        network: IpNetwork,
        used: Option<&Backend>,
        known: Known<'_>,
    ) {
        let tables = self.tables(exec, Family::of_network(network), used, known).await;
        let mut exceptions: Vec<SavedRule> = Vec::new();
        for rule in tables.iter().flat_map(|read| helped::exceptions(&read.table, network, FLOW)) {
            if exceptions.contains(&rule) {
                continue;
            }
            if !self.exceptions.contains(&rule) {
                info!(
                    rule = rule.text,
                    "a rule gives flows a helper of connection tracking, or timeouts of their own: they do not skip the stack"
                );
            }
            exceptions.push(rule);
        }
        let mut all = Vec::new();
        for Read { place, table } in &tables {
            let found = each_packet::found(table, network, FLOW).into_iter();
            all.extend(found.map(|found| Found { text: format!("{place}{}", found.text), ..found }));
        }
        if let Some(netfilter) = &mut self.netfilter {
            all.extend(self.nft.look(netfilter, network, !self.reads_nft));
            let programs = self.programs.look(netfilter, Family::of_network(network)).into_iter();
            all.extend(programs.map(|text| of_nft::of_all(text, network)));
        }
        let before = std::mem::take(&mut self.each_packet);
        for found in all {
            if !self.exceptions.contains(&found.exception) && !exceptions.contains(&found.exception) {
                say_of(&found.text, found.sees_all);
            }
            self.each_packet.push(found.text);
            if !exceptions.contains(&found.exception) {
                exceptions.push(found.exception);
            }
        }
        for rule in before.iter().filter(|rule| !self.each_packet.contains(rule)) {
            info!(
                rule,
                "what had to see each packet is gone: flows that it could see may skip the stack again"
            );
        }
        self.adapts = exceptions != self.exceptions;
        self.exceptions = exceptions;
    }

    /// All tables of iptables that packets pass, of both back ends.
    async fn tables<E: Exec>(
        &mut self,
        exec: &mut E,
        family: Family,
        used: Option<&Backend>,
        known: Known<'_>,
    ) -> Vec<Read> {
        let legacy = legacy_tables(family);
        // Where nobody can say which there are, ours are where nft's are.
        let nft = self.netfilter.as_mut().and_then(|netfilter| netfilter.tables(family).ok());
        let of_nft = |name: &str| nft.as_ref().is_none_or(|nft| nft.contains(name));
        let of_legacy = |name: &str| legacy.iter().any(|table| table == name);
        let mut read: Vec<Read> = Vec::new();
        if let Some(used) = used {
            let wanted = TABLES.into_iter().filter(|name| {
                let is_there = if used.is_nft() { of_nft(name) } else { of_legacy(name) };
                is_there && !known.iter().any(|(known, _)| known == name)
            });
            for name in wanted {
                let saved = save(exec, used.kind(), family, name).await;
                read.extend(saved.map(|table| Read::own(name, table)));
            }
        }
        read.extend(known.into_iter().map(|(name, table)| Read::own(name, table)));
        let others = match used {
            Some(used) => used.others(exec, family),
            None => Kind::all(exec, family),
        };
        for kind in &others {
            let wanted = TABLES.into_iter().filter(|name| match kind {
                Kind::Legacy => of_legacy(name),
                Kind::Nft => nft.is_some() && of_nft(name),
                Kind::Plain => of_legacy(name) || nft.is_some() && of_nft(name),
            });
            for name in wanted {
                let place = format!("{} -t {name} ", kind.program(family, ""));
                read.extend(save(exec, *kind, family, name).await.map(|table| Read { place, table }));
            }
        }
        self.reads_nft = used.is_some_and(Backend::is_nft) || others.iter().any(|kind| *kind != Kind::Legacy);
        let reads_legacy =
            used.is_some_and(|used| !used.is_nft()) || others.iter().any(|kind| *kind != Kind::Nft);
        self.say_unread(!reads_legacy && TABLES.into_iter().any(of_legacy), family);
        read
    }

    fn say_unread(&mut self, unread: bool, family: Family) {
        if unread && !std::mem::replace(&mut self.said_unread, true) {
            warn!(
                program = Kind::Legacy.program(family, "-save"),
                "legacy iptables has tables here, and the program that shows their rules is not installed: flows that such a \
                 rule has to see whole, as for a rate, skip the stack. Install it, or use --fast-path=overlay"
            );
        }
        self.said_unread &= unread;
    }
}

async fn save<E: Exec>(exec: &mut E, kind: Kind, family: Family, table: &str) -> Option<SavedTable> {
    let saved = exec.run(&kind.program(family, "-save"), &["-t", table], "").await;
    let text = saved.inspect_err(|error| debug!(%error, table, "a table cannot be read")).ok()?;
    Some(Saved::parse(&text).table(table))
}

/// Says for which rule flows do not skip the stack.
fn say_of(rule: &str, sees_all: bool) {
    if sees_all {
        warn!(
            rule,
            "a rule goes by rates, volumes or contents of packets, or copies them, and can see every flow, or a program does: no \
             flow skips the stack. Name the protocol, ports or addresses in the rule that it is about"
        );
    } else {
        info!(
            rule,
            "a rule goes by rates, volumes or contents of packets, or copies them: flows that it can see do not skip the \
             stack"
        );
    }
}

/// The tables that legacy iptables has made.
fn legacy_tables(family: Family) -> Vec<String> {
    let file = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    std::fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}
