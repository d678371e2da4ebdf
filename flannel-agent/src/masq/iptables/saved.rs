//! What `iptables-save` writes.

use std::collections::{BTreeMap, BTreeSet};

/// Every table it wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Saved {
    tables: BTreeMap<String, SavedTable>,
}

/// One table: its chains, and each chain's rules in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SavedTable {
    chains: BTreeMap<String, Vec<SavedRule>>,
}

/// A rule, without the chain it is in.
#[derive(Clone, Debug)]
pub(super) struct SavedRule {
    /// As it was written.
    pub(super) text: String,
    options: BTreeSet<Vec<String>>,
}

impl Saved {
    /// Lines that are not understood are skipped: no rule of ours is among them.
    pub(super) fn parse(text: &str) -> Self {
        let mut saved = Self::default();
        let mut table: Option<&mut SavedTable> = None;
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('*') {
                table = Some(saved.tables.entry(name.to_owned()).or_default());
            } else if let (Some(table), Some(chain)) = (&mut table, line.strip_prefix(':')) {
                let name = chain.split_whitespace().next().unwrap_or_default();
                table.chains.entry(name.to_owned()).or_default();
            } else if let (Some(table), Some(rule)) = (&mut table, line.strip_prefix("-A "))
                && let Some((chain, spec)) = rule.split_once(' ')
            {
                table.chains.entry(chain.to_owned()).or_default().push(SavedRule::new(spec));
            }
        }
        saved
    }

    /// A table; one that was not written is empty.
    pub(super) fn table(&self, name: &str) -> SavedTable {
        self.tables.get(name).cloned().unwrap_or_default()
    }

    /// Whether any table has a chain of this name.
    pub(super) fn has_chain(&self, name: &str) -> bool {
        self.tables.values().any(|table| table.chains.contains_key(name))
    }

    /// How many rules fit `wanted`.
    pub(super) fn count(&self, wanted: impl Fn(&str, &SavedRule) -> bool) -> usize {
        let chains = self.tables.values().flat_map(|table| &table.chains);
        chains.map(|(chain, rules)| rules.iter().filter(|rule| wanted(chain, rule)).count()).sum()
    }
}

impl SavedTable {
    /// The rules of all chains.
    pub(super) fn rules(&self) -> impl Iterator<Item = &SavedRule> {
        self.chains.values().flatten()
    }

    /// The rules of a chain; none if there is no such chain.
    pub(super) fn chain(&self, name: &str) -> Option<&[SavedRule]> {
        self.chains.get(name).map(Vec::as_slice)
    }
}

impl SavedRule {
    /// `spec` in any order of its options.
    pub(super) fn new(spec: &str) -> Self {
        Self { text: spec.to_owned(), options: options(spec) }
    }

    /// Its `--comment`.
    pub(super) fn has_comment(&self, comment: &str) -> bool {
        self.options.contains(&vec!["--comment".to_owned(), comment.to_owned()])
    }

    /// What stands behind an option, if the rule has it, not negated.
    pub(super) fn value(&self, option: &str) -> Option<&str> {
        self.options.iter().find_map(|words| match words.as_slice() {
            [name, value] if name == option => Some(value.as_str()),
            _ => None,
        })
    }

    /// Its options, each with what belongs to it.
    pub(super) fn options(&self) -> impl Iterator<Item = &[String]> {
        self.options.iter().map(Vec::as_slice)
    }

    /// Whether it has this option, with just these words.
    pub(super) fn has(&self, option: &[&str]) -> bool {
        self.options().any(|words| words == option)
    }

    /// Whether it jumps to `chain`.
    pub(super) fn jumps_to(&self, chain: &str) -> bool {
        self.options.contains(&vec!["-j".to_owned(), chain.to_owned()])
    }
}

/// The same conditions and target: versions of iptables differ in the order they write them in.
impl PartialEq for SavedRule {
    fn eq(&self, other: &Self) -> bool {
        self.options == other.options
    }
}

impl Eq for SavedRule {}

/// Each option with what belongs to it: `! -s NETWORK`, `-m mark`, `--mark VALUE`.
fn options(spec: &str) -> BTreeSet<Vec<String>> {
    let mut options = BTreeSet::new();
    let mut option: Vec<String> = Vec::new();
    for word in words(spec) {
        let begins = word == "!" || (word.starts_with('-') && option.last().is_none_or(|last| last != "!"));
        if begins && !option.is_empty() {
            options.insert(std::mem::take(&mut option));
        }
        option.push(word);
    }
    options.insert(option);
    options
}

/// Words, of which one in double quotes may have spaces and, behind backslashes, quotes.
fn words(spec: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut letters = spec.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().extend(letters.next()),
            _ if letter.is_whitespace() && !quoted => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rules_are_the_same_in_any_order_of_their_options() {
        let one =
            SavedRule::new("! -s 10.0.0.0/8 -m comment --comment \"a b\" -m mark --mark 0x1/0x1 -j RETURN");
        let two =
            SavedRule::new("-m mark --mark 0x1/0x1 ! -s 10.0.0.0/8 -m comment --comment \"a b\" -j RETURN");
        assert_eq!(one, two);
        assert!(one.has_comment("a b") && one.jumps_to("RETURN"));
        for other in [
            "-s 10.0.0.0/8 -m comment --comment \"a b\" -m mark --mark 0x1/0x1 -j RETURN",
            "! -s 10.0.0.0/8 -m comment --comment \"a c\" -m mark --mark 0x1/0x1 -j RETURN",
            "! -s 10.0.0.0/8 -m comment --comment \"a b\" -m mark ! --mark 0x1/0x1 -j RETURN",
            "! -s 10.0.0.0/8 -m comment --comment \"a b\" -m mark --mark 0x1/0x1 -j ACCEPT",
        ] {
            assert_ne!(one, SavedRule::new(other));
        }
    }

    #[test]
    fn quotes_and_backslashes() {
        assert_eq!(
            words(r#"-m comment --comment "say \"a b\"" -j X"#),
            ["-m", "comment", "--comment", "say \"a b\"", "-j", "X"]
        );
        assert_eq!(words("a \"\" b"), ["a", "", "b"]);
    }

    proptest! {
        #[test]
        fn anything_is_read(text in "(\\*[a-z]{1,3}\n|:[A-C] - \\[0:0\\]\n|-A [A-C] [-!a-z\"\\\\ ]{0,20}\n|\\PC{0,20}\n){0,12}") {
            let saved = Saved::parse(&text);
            let _ = saved.count(|_, rule| rule.has_comment("x"));
        }
    }
}
