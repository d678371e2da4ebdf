//! What the operator exempts from masquerading: destinations that pods reach with their own address.
//!
//! ```text
//! --snat-exempt-cidr, --snat-exempt-file, --snat-exempt-nodes ─▶ Exemptions ─▶ plan() ─▶ snat_exempt_v4, snat_exempt_v6
//! ```

use std::{collections::BTreeSet, path::PathBuf};

use ipnetwork::IpNetwork;
use tokio::sync::watch;

use crate::plan::Exemptions;

mod file;

pub use file::{BadLine, parse};

/// A network as an operator writes it: a CIDR, or the address of one host. Host bits are dropped.
///
/// # Errors
/// What is wrong with it and what to write instead.
pub fn prefix(text: &str) -> Result<IpNetwork, String> {
    let network: IpNetwork = text.parse().map_err(|_| {
        "write a network or an address, as 192.0.2.0/24, 192.0.2.7 or 2001:db8::/32".to_owned()
    })?;
    if network.prefix() == 0 {
        return Err(
            "a network of /0 would exempt every destination: without masquerading pods reach nothing \
                    outside the cluster; name the networks that know the way back to pods"
                .to_owned(),
        );
    }
    Ok(IpNetwork::new(network.network(), network.prefix()).unwrap_or(network))
}

/// What the flags say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--snat-exempt-cidr`.
    pub prefixes: BTreeSet<IpNetwork>,
    /// `--snat-exempt-file`.
    pub file: Option<PathBuf>,
    /// `--snat-exempt-nodes`.
    pub nodes: bool,
}

impl Flags {
    /// The flags that are set, by name: what is lost where there is no eBPF.
    pub fn names(&self) -> Vec<&'static str> {
        let set = [
            (!self.prefixes.is_empty(), "--snat-exempt-cidr"),
            (self.file.is_some(), "--snat-exempt-file"),
            (self.nodes, "--snat-exempt-nodes"),
        ];
        set.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect()
    }

    /// Reads the file, if one is named, and goes on reading it when it changes, for as long as the runtime
    /// lives and anyone listens. Never fails: what is wrong with the file is logged, and its last good
    /// content stays in force.
    pub async fn follow(self) -> watch::Receiver<Exemptions> {
        let exemptions = Exemptions { prefixes: self.prefixes.clone(), nodes: self.nodes };
        let (tell, told) = watch::channel(exemptions);
        if let Some(path) = self.file {
            let mut file = file::ExemptFile::new(path, self.prefixes, tell);
            file.first_look().await;
            tokio::spawn(file.run());
        }
        told
    }
}

#[cfg(test)]
mod tests;
