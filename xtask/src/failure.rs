//! How a task fails: what is wrong, and what to do about it.

use std::process::{ExitCode, ExitStatus};

use anyhow::Error;

use crate::ui::say;

/// A failure with its remedy.
#[derive(Debug)]
pub(crate) struct Failure {
    wrong: String,
    remedy: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.wrong)
    }
}

impl std::error::Error for Failure {}

/// A program that has said itself why it failed; there is nothing to add but its status.
#[derive(Debug)]
struct Reported(u8);

impl std::fmt::Display for Reported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit status {}", self.0)
    }
}

impl std::error::Error for Reported {}

/// An error that says what is wrong and what to do.
pub(crate) fn failure(wrong: impl Into<String>, remedy: impl Into<String>) -> Error {
    Failure { wrong: wrong.into(), remedy: remedy.into() }.into()
}

/// The failure of a program whose own words the user has seen, so that they stay the last ones.
pub(crate) fn said(status: ExitStatus) -> Error {
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Reported(code.max(1)).into()
}

/// Tells the user, and turns the error into the task's exit status.
pub(crate) fn report(error: &Error) -> ExitCode {
    if let Some(Reported(code)) = error.downcast_ref() {
        return ExitCode::from(*code);
    }
    say(format_args!("error: {error:#}"));
    if let Some(failure) = error.downcast_ref::<Failure>() {
        say(format_args!("remedy: {}", failure.remedy));
    } else if let Some(error) = error.downcast_ref::<flannel_ebpf_toolchain::Error>() {
        say(format_args!("remedy: {}", error.remedy()));
    }
    ExitCode::FAILURE
}
