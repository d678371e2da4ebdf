//! What programs print. Neither a reader who has gone nor a disk that is full ends one in a panic, as with `println!`,
//! which the crate refuses.

use std::{
    fmt::Display,
    io::{self, Write as _},
};

/// Prints on standard output; whether anybody reads on. Whoever does not has seen enough: `flannel-agent status | head`.
///
/// # Errors
/// When it cannot be written.
pub fn print(text: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true),
    }
}

/// Says a line on standard error. Where that cannot be written there is nobody to tell.
pub fn say(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
