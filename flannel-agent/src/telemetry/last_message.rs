//! Trouble that lasts is logged once.

/// What was logged last, to log each thing once while it lasts.
#[derive(Debug, Default)]
pub(crate) struct LastMessage(Option<String>);

impl LastMessage {
    /// Whether `text` is other than what was said last; from now on it is.
    pub(crate) fn is_news(&mut self, text: &(impl ToString + ?Sized)) -> bool {
        let text = text.to_string();
        let news = self.0.as_ref() != Some(&text);
        self.0 = Some(text);
        news
    }

    /// Ends what was said; whether there was something.
    pub(crate) fn is_over(&mut self) -> bool {
        self.0.take().is_some()
    }
}
