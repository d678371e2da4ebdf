//! Which programs of tc a node's interfaces run, as the kernel has it.

use std::collections::BTreeMap;

use anyhow::Result;
use aya::programs::{SchedClassifier, TcAttachType};
use flannel_agent::bpf::Attachment;
use flannel_common::path::Hook;
use nix::net::if_::if_nameindex;
use serde_json::Value;

use super::Netns;

/// By interface and program, each way in which it is attached there: a packet meets it as often.
pub type Attachments = BTreeMap<(String, &'static str), Vec<Attachment>>;

impl Netns {
    /// Our programs of tc on the interfaces in here.
    pub fn attachments(&self) -> Result<Attachments> {
        let mut found = Attachments::new();
        for (interface, links) in self.inside(linked)? {
            let filters = ["ingress", "egress"].map(|side| self.filters(&interface, side)).concat();
            let links = links.into_iter().map(|name| (Attachment::Tcx, name));
            for (way, name) in links.chain(filters.into_iter().map(|name| (Attachment::Clsact, name))) {
                if let Some(hook) = Hook::ALL.into_iter().find(|hook| hook.program() == name) {
                    found.entry((interface.clone(), hook.program())).or_default().push(way);
                }
            }
        }
        Ok(found)
    }

    /// The programs of our filters at one side of `interface`; none of one that is gone.
    fn filters(&self, interface: &str, side: &str) -> Vec<String> {
        let listing = self.run("tc", &["-j", "filter", "show", "dev", interface, side]).unwrap_or_default();
        let listing: Vec<Value> = serde_json::from_str(&listing).unwrap_or_default();
        let names = listing.iter().filter_map(|filter| filter["options"]["bpf_name"].as_str());
        names.filter_map(|name| Some(name.strip_prefix("flannel_")?.to_owned())).collect()
    }
}

/// Each interface, and the names of the programs in its tcx links.
fn linked() -> Result<Vec<(String, Vec<String>)>> {
    let listing = if_nameindex()?;
    let interfaces = listing.iter().map(|interface| interface.name().to_string_lossy().into_owned());
    Ok(interfaces.map(|interface| (interface.clone(), programs(&interface))).collect())
}

fn programs(interface: &str) -> Vec<String> {
    let sides = [TcAttachType::Ingress, TcAttachType::Egress];
    let listings = sides.into_iter().filter_map(|side| SchedClassifier::query_tcx(interface, side).ok());
    let programs = listings.flat_map(|(_, programs)| programs);
    programs.filter_map(|program| Some(program.name_as_str()?.to_owned())).collect()
}
