//! What becomes of packets in a chain, and by which rule.

use super::{Base, Truth};

/// What may become of packets in a chain.
#[derive(Clone, Debug, Default)]
pub(super) struct Ends {
    pub(super) accepted: Truth,
    pub(super) dropped: Truth,
    /// They get another source, or another destination.
    pub(super) translated: Truth,
    /// The rule that drops them: the surest.
    pub(super) by: Option<Culprit>,
    /// All that may drop them, in order; `None` is the policy.
    pub(super) all: Vec<Option<Culprit>>,
    /// The first rule that may translate them.
    pub(super) translator: Option<Culprit>,
    /// They come to the end of it.
    pub(super) fall: Truth,
}

/// A rule that drops packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Culprit {
    pub(super) chain: String,
    pub(super) number: u64,
    pub(super) text: String,
    /// It drops whatever reaches it.
    pub(super) sweeping: bool,
}

impl Culprit {
    /// In the words of the program that has made it.
    pub(super) fn named(&self, base: &Base) -> String {
        let Self { chain, number, text, .. } = self;
        let place = match *chain == base.name {
            true => base.place.clone(),
            false => format!("chain {chain}, which {} leads to", base.place),
        };
        match text.is_empty() {
            true => format!("the rule with handle {number} of {place}"),
            false => format!("rule {number} of {place}: `{text}`"),
        }
    }
}

impl Ends {
    /// Dropped by what is among `all`: the surest is `by`.
    pub(super) fn drop(&mut self, truth: Truth, by: Option<Culprit>, all: Vec<Option<Culprit>>) {
        if truth == Truth::No {
            return;
        }
        for one in all {
            if !self.all.contains(&one) {
                self.all.push(one);
            }
        }
        if truth > self.dropped {
            (self.dropped, self.by) = (truth, by);
        }
    }

    pub(super) fn translate(&mut self, truth: Truth, by: Option<Culprit>) {
        if truth > Truth::No && self.translator.is_none() {
            self.translator = by;
        }
        self.translated = self.translated.max(truth);
    }
}
