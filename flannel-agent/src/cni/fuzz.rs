//! Any bytes as what the CNI plugin reads: what a fuzzer of it runs.

#![expect(
    clippy::expect_used,
    reason = "what is expected is a promise: a fuzzer is to find where it is broken"
)]

use super::{CniError, NetConf, SubnetEnv, delegate_config, object};

/// The plugin's configuration, `subnet.env`, and what a delegate has said or is kept of a container, with a zero byte
/// between them.
///
/// # Panics
/// An error is rendered as something else than JSON, or a delegate would be told something that is none.
pub(crate) fn inputs(bytes: &[u8]) {
    let mut parts = bytes.splitn(3, |byte| *byte == 0);
    let [conf, env, said] = [(); 3].map(|()| parts.next().unwrap_or_default());
    let conf = NetConf::parse(&String::from_utf8_lossy(conf));
    let env = SubnetEnv::parse(&String::from_utf8_lossy(env));
    if let Err(error) = &conf {
        is_json(error);
    }
    if let Ok(conf) = &conf {
        if let Err(error) = conf.valid_containers() {
            is_json(&error);
        }
        if let Ok(env) = &env {
            match delegate_config(conf, env) {
                Ok(config) => {
                    let text = serde_json::to_vec(&config).expect("JSON");
                    assert_eq!(object(&text), Some(config), "kept, it is read again");
                }
                Err(error) => is_json(&error),
            }
        }
    }
    let _ = object(said);
    if let Some(error) = CniError::of_delegate(said) {
        is_json(&error);
    }
}

fn is_json(error: &CniError) {
    let text = error.render("1.1.0");
    assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
}
