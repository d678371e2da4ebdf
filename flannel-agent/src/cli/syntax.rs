//! The syntax of Go's flag package: one dash or two, `-f v` or `-f=v`, switches by `-b` or `-b=false`, and
//! the first word that is no flag, or `--`, ends them.

use std::{
    any::TypeId,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
};

use clap::{Arg, Command};

/// A command line taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// Names, without dashes, and values, in order.
    pub(super) flags: Vec<(String, OsString)>,
    /// Where reading stopped at what has to be answered or refused.
    pub(super) stop: Option<Stop>,
    /// What comes after the flags.
    pub(super) words: Vec<OsString>,
    /// `--` stands before the words.
    pub(super) ended: bool,
}

/// What ends reading early.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// `-h`, `--help`.
    Help,
    /// A flag that does not exist.
    Unknown(String),
    /// The last word is a flag that takes a value.
    NoValue(String),
    /// Dashes and no name.
    Malformed(String),
}

/// Takes `arguments`, without the program's name, apart; `command` knows the flags.
pub(super) fn split(command: &Command, arguments: impl IntoIterator<Item = OsString>) -> Line {
    let mut arguments = arguments.into_iter();
    let mut line = Line::default();
    while let Some(argument) = arguments.next() {
        let bytes = argument.as_bytes();
        if bytes == b"--" {
            line.ended = true;
            break;
        }
        if bytes.len() < 2 || bytes[0] != b'-' {
            line.words.push(argument);
            break;
        }
        let flag = bytes.strip_prefix(b"--").unwrap_or(&bytes[1..]);
        let (name, value) = match flag.iter().position(|byte| *byte == b'=') {
            Some(at) => (&flag[..at], Some(OsStr::from_bytes(&flag[at + 1..]).to_owned())),
            None => (flag, None),
        };
        let name = String::from_utf8_lossy(name).into_owned();
        if name.is_empty() || name.starts_with('-') {
            line.stop = Some(Stop::Malformed(format!("{}{name}", if name.is_empty() { "-" } else { "--" })));
            return line;
        }
        if name == "help" || name == "h" {
            line.stop = Some(Stop::Help);
            return line;
        }
        let Some(known) = command.get_arguments().find(|known| known.get_long() == Some(&name)) else {
            line.stop = Some(Stop::Unknown(name));
            return line;
        };
        let value = match value {
            Some(value) => value,
            None if is_switch(known) => OsString::from("true"),
            None => match arguments.next() {
                Some(value) => value,
                None => {
                    line.stop = Some(Stop::NoValue(name));
                    return line;
                }
            },
        };
        line.flags.push((name, value));
    }
    line.words.extend(arguments);
    line
}

/// Whether a flag may stand alone, and so never takes the next word.
fn is_switch(flag: &Arg) -> bool {
    flag.get_value_parser().type_id() == TypeId::of::<bool>()
}
