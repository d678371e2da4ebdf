//! Text that others wrote, for messages.

use std::borrow::Cow;

/// The beginning of `text`: at most `limit` characters, marked where cut.
pub(crate) fn shorten(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
    }
}

/// A rule as `iptables -S` lists it, with each probability as somebody typed it: the kernel keeps a share of 2^31, and the
/// program shows 0.3 as 0.29999999981.
pub(crate) fn as_typed(rule: &str) -> String {
    let mut words: Vec<Cow<'_, str>> = rule.split(' ').map(Cow::from).collect();
    for at in 1..words.len() {
        if words[at - 1] == "--probability"
            && let Ok(share) = words[at].parse::<f64>()
        {
            let digits = format!("{share:.9}");
            words[at] = digits.trim_end_matches('0').trim_end_matches('.').to_owned().into();
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_have_no_more_digits_than_the_kernel_keeps() {
        let rule =
            |share: &str| format!("-A FORWARD -m statistic --mode random --probability {share} -j DROP");
        for (listed, typed) in [
            ("0.29999999981", "0.3"),
            ("0.50000000000", "0.5"),
            ("0.33333333349", "0.333333333"),
            ("1.00000000000", "1"),
            ("x", "x"),
        ] {
            assert_eq!(as_typed(&rule(listed)), rule(typed));
        }
    }

    #[test]
    fn shortens_at_characters() {
        assert_eq!(shorten("äöü", 2), "äö...");
        assert_eq!(shorten("äöü", 3), "äöü");
    }
}
