//! The kernel's own fast path for what it forwards: an nft flowtable (Documentation/networking/nf_flowtable.rst of Linux).

use anyhow::{Context as _, Result};
use flannel_lab::Node;

/// Has established flows of `node` skip its forward path, whichever devices they use.
pub(super) fn load(node: &Node) -> Result<()> {
    let listing = node.netns().ip("-json link show")?;
    let links: Vec<serde_json::Value> = serde_json::from_str(&listing).context("ip -json link")?;
    let names: Vec<&str> =
        links.iter().filter_map(|link| link["ifname"].as_str()).filter(|name| *name != "lo").collect();
    let rules = format!(
        "table inet bench-flowtable {{\n\
         flowtable fast {{ hook ingress priority filter; devices = {{ {} }}; }}\n\
         chain forward {{\n\
         type filter hook forward priority filter;\n\
         meta l4proto {{ tcp, udp }} ct state established flow add @fast\n\
         }}\n\
         }}\n",
        names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
    );
    node.nft(&rules).context(
        "load an nft flowtable, for which the kernel needs CONFIG_NF_FLOW_TABLE and nft_flow_offload",
    )
}
