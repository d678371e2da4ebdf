//! Text of others (of leases, of servers, of the kernel) made fit for a line: what would end the line, move the cursor or
//! turn the reading direction is written as an escape.

use std::{
    fmt::{self, Write as _},
    io,
};

use tracing::field::{Field, Visit};
use tracing_subscriber::{
    field::{MakeVisitor, VisitFmt, VisitOutput},
    fmt::{MakeWriter, format::Writer},
};

/// Whether a character is to be seen as it is: neither a control character, nor one that Unicode gives no picture of,
/// as the marks of direction and the ends of lines and paragraphs.
fn is_visible(character: char) -> bool {
    match character.is_ascii() {
        true => !character.is_ascii_control(),
        false => character.escape_debug().len() == 1,
    }
}

/// Writes to another writer, with escapes for what cannot be seen: `\n`, `\u{1b}`.
struct Visible<W>(W);

impl<W: fmt::Write> fmt::Write for Visible<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(|character| !is_visible(character)) {
            let (clean, strange) = rest.split_at(at);
            self.0.write_str(clean)?;
            let mut characters = strange.chars();
            for escape in characters.next().into_iter().flat_map(char::escape_debug) {
                self.0.write_char(escape)?;
            }
            rest = characters.as_str();
        }
        self.0.write_str(rest)
    }
}

/// `text` in one line, all of it to be seen.
pub fn visible(text: &impl fmt::Display) -> String {
    let mut line = String::new();
    // A string takes everything.
    let _ = write!(Visible(&mut line), "{text}");
    line
}

/// Writes the fields of an event as tracing-subscriber does, `name=value`, but all of them visible.
#[derive(Debug)]
pub(super) struct VisibleFields;

impl<'a> MakeVisitor<Writer<'a>> for VisibleFields {
    type Visitor = FieldWriter<'a>;

    fn make_visitor(&self, target: Writer<'a>) -> Self::Visitor {
        FieldWriter { writer: target, is_first: true, result: Ok(()) }
    }
}

#[derive(Debug)]
pub(super) struct FieldWriter<'a> {
    writer: Writer<'a>,
    is_first: bool,
    result: fmt::Result,
}

impl FieldWriter<'_> {
    fn write(&mut self, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
        if !std::mem::take(&mut self.is_first) {
            self.writer.write_char(' ')?;
        }
        match (field.name(), self.writer.has_ansi_escapes()) {
            ("message", _) => {}
            // Italic, and dimmed, as tracing-subscriber has them.
            (name, true) => write!(self.writer, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m")?,
            (name, false) => write!(self.writer, "{name}=")?,
        }
        write!(Visible(&mut self.writer), "{value:?}")
    }
}

impl Visit for FieldWriter<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.record_debug(field, &format_args!("{value}")),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Where a line of the crate log came from.
        if self.result.is_ok() && !field.name().starts_with("log.") {
            self.result = self.write(field, value);
        }
    }
}

impl VisitOutput<fmt::Result> for FieldWriter<'_> {
    fn finish(self) -> fmt::Result {
        self.result
    }
}

impl VisitFmt for FieldWriter<'_> {
    fn writer(&mut self) -> &mut dyn fmt::Write {
        &mut self.writer
    }
}

/// Writes lines of JSON, in which strings have no control characters of ASCII, to another writer, with JSON's escapes for
/// what else cannot be seen: the value is the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct VisibleJson<W>(pub(super) W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for VisibleJson<W> {
    type Writer = JsonLines<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        JsonLines(self.0.make_writer())
    }
}

#[derive(Debug)]
pub(super) struct JsonLines<W>(W);

impl<W: io::Write> io::Write for JsonLines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // An event comes in one piece.
        let text = String::from_utf8_lossy(bytes);
        let mut line = String::with_capacity(text.len());
        for character in text.chars() {
            if character == '\n' || is_visible(character) {
                line.push(character);
                continue;
            }
            for unit in character.encode_utf16(&mut [0; 2]) {
                // A string takes everything.
                let _ = write!(line, "\\u{unit:04x}");
            }
        }
        self.0.write_all(line.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_escaped_and_the_rest_is_not() {
        let hostile =
            "a\nb\r\tc\u{1b}[2J\u{7}\0\u{7f}\u{9b}31m\u{202e}d\u{2066}\u{2028}\u{200b}\u{feff}\u{e0041}";
        let escaped = visible(&hostile);
        assert_eq!(
            escaped,
            r"a\nb\r\tc\u{1b}[2J\u{7}\0\u{7f}\u{9b}31m\u{202e}d\u{2066}\u{2028}\u{200b}\u{feff}\u{e0041}"
        );
        let seen = r#"PublicIP: "192.0.2.1", 'é', 節, \n, 🙂"#;
        assert_eq!(visible(&seen), seen);
    }
}
