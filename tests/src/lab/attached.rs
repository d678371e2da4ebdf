//! Which programs of tc a node's interfaces run, as the kernel has it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use flannel_agent::bpf::Attachment;
use flannel_common::path::Hook;
use serde_json::Value;

use super::Netns;

/// By interface and program, each way in which it is attached there: a packet meets it as often.
pub type Attachments = BTreeMap<(String, &'static str), Vec<Attachment>>;

impl Netns {
    /// Our programs of tc on the interfaces in here.
    pub fn attachments(&self) -> Result<Attachments> {
        let shown: Value = serde_json::from_str(&self.run("bpftool", &["-j", "net", "show"])?)?;
        let mut found = Attachments::new();
        for entry in shown[0]["tc"].as_array().context("bpftool net: no tc")? {
            let text = |key: &str| entry[key].as_str().unwrap_or_default();
            let (way, name) = match text("kind").split_once('/') {
                Some(("tcx", _)) => (Attachment::Tcx, Some(text("name"))),
                Some(("clsact", _)) => (Attachment::Clsact, text("name").strip_prefix("flannel_")),
                _ => continue,
            };
            let hook = Hook::ALL.into_iter().find(|hook| name == Some(hook.program()));
            if let Some(hook) = hook {
                found.entry((text("devname").to_owned(), hook.program())).or_default().push(way);
            }
        }
        Ok(found)
    }
}
