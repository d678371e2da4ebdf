//! Which of the machine's iptables to use: rules of the legacy back end and rules of the nft back end do
//! not see each other, so ours must be where the host's are.

use crate::{
    masq::exec::{Exec, ExecError},
    values::Family,
};

use super::saved::{Saved, SavedRule};

/// Chains that kubelet makes so that others can tell where the rules are.
const HINTS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];

/// First version that can wait for the lock in restore, and whose MASQUERADE has `--random-fully`.
const CAPABLE: [u32; 3] = [1, 6, 2];

/// One iptables of this machine, for either family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Backend {
    kind: Kind,
    /// Why this one, for the log.
    pub(super) because: String,
    version: [u32; 3],
    /// As it says it itself.
    pub(super) version_text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `iptables`, whichever it is.
    Plain,
    Nft,
    Legacy,
}

impl Kind {
    /// The name of a program: `suffix` is nothing, `-save` or `-restore`.
    pub(super) fn program(self, family: Family, suffix: &str) -> String {
        let name = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let infix = match self {
            Self::Plain => "",
            Self::Nft => "-nft",
            Self::Legacy => "-legacy",
        };
        format!("{name}{infix}{suffix}")
    }

    /// All that a family has rules in: both back ends, or the only one there is.
    pub(super) fn all(exec: &impl Exec, family: Family) -> Vec<Self> {
        let there = |kind: &Self| exec.has(&kind.program(family, "-save"));
        let split: Vec<Self> = [Self::Nft, Self::Legacy].into_iter().filter(there).collect();
        if split.is_empty() { [Self::Plain].into_iter().filter(there).collect() } else { split }
    }
}

impl Backend {
    /// The one that holds the rules of kubelet, or else most rules, or else the one that is called `iptables`.
    /// Flannel's own rules do not count: an earlier flanneld may have been wrong.
    pub(super) async fn detect(exec: &mut impl Exec, family: Family) -> Result<Self, ExecError> {
        let mut found = Vec::new();
        for kind in [Kind::Nft, Kind::Legacy] {
            let save = kind.program(family, "-save");
            if exec.has(&save) && exec.has(&kind.program(family, "-restore")) {
                // A back end that the kernel lacks holds nothing.
                let text = exec.run(&save, &[], "").await.unwrap_or_default();
                found.push((kind, Saved::parse(&text)));
            }
        }
        let hinted = found.iter().find(|(_, saved)| HINTS.iter().any(|hint| saved.has_chain(hint)));
        let most = found.iter().max_by_key(|(_, saved)| others(saved));
        let tie = found.iter().all(|(_, saved)| most.is_none_or(|(_, best)| others(saved) == others(best)));
        let (kind, because) = if let Some((kind, _)) = hinted {
            (*kind, "kubelet's rules are there".to_owned())
        } else if let Some((kind, saved)) = most.filter(|_| !tie) {
            (*kind, format!("{} rules of others are there", others(saved)))
        } else if exec.has(&Kind::Plain.program(family, "-restore")) || found.is_empty() {
            (Kind::Plain, "it is this machine's default, and nothing says otherwise".to_owned())
        } else {
            (found[0].0, "it is the only one there is".to_owned())
        };
        let version_text = exec.run(&kind.program(family, ""), &["--version"], "").await?;
        let version_text = version_text.trim().to_owned();
        Ok(Self { kind, because, version: version(&version_text), version_text })
    }

    pub(super) fn program(&self, family: Family, suffix: &str) -> String {
        self.kind.program(family, suffix)
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// The other back ends of this machine.
    pub(super) fn others(&self, exec: &impl Exec, family: Family) -> Vec<Kind> {
        let is_other = |kind: &Kind| {
            let same = self.kind == Kind::Plain && self.is_nft() == (*kind == Kind::Nft);
            *kind != self.kind && !same
        };
        Kind::all(exec, family).into_iter().filter(is_other).collect()
    }

    /// Whether changes of its rules are told by the kernel's nf_tables.
    pub(super) fn is_nft(&self) -> bool {
        self.version_text.contains("nf_tables")
    }

    /// Whether MASQUERADE has `--random-fully`.
    pub(super) fn has_random_fully(&self) -> bool {
        self.version >= CAPABLE
    }

    /// Arguments of its `-restore`.
    pub(super) fn restore_arguments(&self) -> &'static [&'static str] {
        if self.version >= CAPABLE { &["--noflush", "--wait"] } else { &["--noflush"] }
    }
}

/// Rules that are not flannel's.
fn others(saved: &Saved) -> usize {
    saved.count(|chain, rule| {
        let named = |rule: &SavedRule| {
            rule.jumps_to("FLANNEL-POSTRTG")
                || rule.jumps_to("FLANNEL-FWD")
                || rule.text.contains("\"flanneld ")
        };
        !chain.starts_with("FLANNEL-") && !named(rule)
    })
}

/// The version in `iptables v1.8.9 (nf_tables)`; none counts as the oldest.
fn version(text: &str) -> [u32; 3] {
    let word = text.split_whitespace().find_map(|word| word.strip_prefix('v')).unwrap_or_default();
    let mut numbers = word.split('.').map(|number| number.parse().unwrap_or(0));
    std::array::from_fn(|_| numbers.next().unwrap_or(0))
}
