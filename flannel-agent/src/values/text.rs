//! Text that others wrote, for messages.

/// The beginning of `text`: at most `limit` characters, marked where cut.
pub(crate) fn shorten(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortens_at_characters() {
        assert_eq!(shorten("äöü", 2), "äö...");
        assert_eq!(shorten("äöü", 3), "äöü");
    }
}
