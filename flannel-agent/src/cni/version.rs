//! Versions of the CNI specification.

use serde_json::{Map, Value, json};

use super::{
    error::{CniError, Code},
    invocation::Verb,
};
use crate::values::shorten;

/// Every version there is, oldest first.
pub const SUPPORTED: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The last of them.
pub(super) const NEWEST: &str = "1.1.0";

/// What a configuration means that names none.
pub(super) const OLDEST: &str = "0.1.0";

/// For a person who starts the plugin by hand.
pub(super) fn about() -> String {
    format!(
        "CNI plugin flannel of flannel-ebpf {}: container runtimes start it, with CNI_COMMAND set\n\
         CNI protocol versions supported: {}\n",
        env!("CARGO_PKG_VERSION"),
        SUPPORTED.join(", ")
    )
}

/// The answer to VERSION.
pub(super) fn report() -> Vec<u8> {
    format!("{}\n", json!({ "cniVersion": NEWEST, "supportedVersions": SUPPORTED })).into_bytes()
}

/// Refuses a version that is not ours, and verbs that came later than the version of the configuration.
pub(super) fn check(version: &str, verb: Verb) -> Result<(), CniError> {
    let rank = |wanted: &str| SUPPORTED.iter().position(|version| *version == wanted);
    let Some(own) = rank(version) else {
        let details = format!("config is {version:?}, plugin supports {SUPPORTED:?}");
        return Err(CniError::new(Code::IncompatibleVersion, "incompatible CNI versions").detailed(details));
    };
    let since = match verb {
        Verb::Check => "0.4.0",
        Verb::Status | Verb::Gc => "1.1.0",
        Verb::Add | Verb::Del | Verb::Version => OLDEST,
    };
    if rank(since).is_some_and(|since| own < since) {
        let text = format!("config version does not allow {verb}");
        return Err(CniError::new(Code::IncompatibleVersion, text)
            .detailed(format!("cniVersion is {version}, and {verb} came with {since}")));
    }
    Ok(())
}

/// A result, with the `version` of the configuration where an old delegate leaves it out.
pub(super) fn complete(result: Vec<u8>, version: &str) -> Result<Vec<u8>, CniError> {
    let Ok(mut fields) = serde_json::from_slice::<Map<String, Value>>(&result) else {
        let text = String::from_utf8_lossy(&result);
        let shown = shorten(text.trim(), 200);
        return Err(CniError::new(
            Code::Decoding,
            format!("the delegate's result is no JSON object: {shown:?}"),
        ));
    };
    if fields.get("cniVersion").is_some_and(|version| version != "") {
        return Ok(result);
    }
    fields.insert("cniVersion".to_owned(), version.into());
    Ok(format!("{:#}\n", Value::Object(fields)).into_bytes())
}
