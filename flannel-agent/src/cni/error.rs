//! Errors as the CNI specification wants them: JSON on standard output.

use std::fmt;

use serde_json::{Value, json};

/// What went wrong, for the runtime to act on (CNI specification 1.1.0, "Error", and the codes of its library).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Code {
    /// The configuration speaks a version that is not ours.
    IncompatibleVersion = 1,
    /// A variable of the environment is missing or wrong.
    Environment = 4,
    /// A file or a pipe failed.
    Io = 5,
    /// What should be JSON is not.
    Decoding = 6,
    /// The configuration says what cannot be.
    NetworkConfig = 7,
    /// The pod's network namespace is none, or our own.
    Netns = 8,
    /// What is missing is about to come.
    TryAgainLater = 11,
    /// STATUS: ADD cannot work now.
    NotAvailable = 50,
    /// Anything else.
    Internal = 999,
}

/// An error for the runtime.
#[derive(Clone, Debug, PartialEq)]
pub struct CniError {
    code: u64,
    message: String,
    details: String,
}

impl CniError {
    /// An error of ours.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code: code as u64, message: message.into(), details: String::new() }
    }

    /// The error a delegate wrote; `None` if it is none.
    pub(super) fn of_delegate(output: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(output).ok()?;
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let (code, message) = (value.get("code").and_then(Value::as_u64), text("msg"));
        let details = text("details").unwrap_or_default();
        if code.is_none() && message.is_none() {
            return None;
        }
        Some(Self {
            code: code.unwrap_or(Code::Internal as u64),
            message: message.unwrap_or_default(),
            details,
        })
    }

    /// The same with more about it.
    pub(super) fn detailed(self, details: impl Into<String>) -> Self {
        Self { details: details.into(), ..self }
    }

    /// The same under another code.
    pub(super) fn with(self, code: Code) -> Self {
        Self { code: code as u64, ..self }
    }

    /// Its code.
    pub fn code(&self) -> u64 {
        self.code
    }

    /// As JSON, in `version` of the specification.
    pub(super) fn render(&self, version: &str) -> String {
        let mut value = json!({ "cniVersion": version, "code": self.code, "msg": self.message });
        if !self.details.is_empty()
            && let Some(fields) = value.as_object_mut()
        {
            fields.insert("details".to_owned(), self.details.clone().into());
        }
        format!("{value:#}\n")
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, ": {}", self.details) }
    }
}

impl std::error::Error for CniError {}
