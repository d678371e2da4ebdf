//! Programs of eBPF at netfilter's hooks, which see each packet as rules do.

use tracing::debug;

use crate::{
    netlink::{Netfilter, NetfilterProgram},
    values::Family,
};

/// The hooks that forwarded packets pass (include/uapi/linux/netfilter.h, NF_INET_*).
const HOOKS: [(u32, &str); 3] = [(0, "prerouting"), (2, "forward"), (4, "postrouting")];

/// Tells of those of all network namespaces; `None` where this process may not ask.
pub(in crate::masq) type Anywhere = fn() -> Option<Vec<NetfilterProgram>>;

/// Looks for them.
#[derive(Default)]
pub(super) struct Programs {
    pub(super) anywhere: Option<Anywhere>,
    /// This kernel does not tell which are in this network namespace.
    untold: bool,
}

impl Programs {
    /// Those that see packets of `family` that are forwarded, in words. Where the kernel tells only that there are some, and not
    /// in which network namespace, all count.
    pub(super) fn look(&mut self, netfilter: &mut Netfilter, family: Family) -> Vec<String> {
        // The one takes a privilege that not every agent has, the other may take a module.
        let anywhere = self.anywhere.and_then(|anywhere| anywhere());
        if anywhere.as_ref().is_some_and(Vec::is_empty) {
            return Vec::new();
        }
        match self.here(netfilter, family) {
            Some(here) => here,
            None => {
                let anywhere =
                    anywhere.unwrap_or_default().into_iter().filter(|found| found.family == family);
                let name = |hook| HOOKS.into_iter().find(|(number, _)| *number == hook).map(|(_, name)| name);
                anywhere.filter_map(|found| Some(words(found.program, name(found.hook)?, family))).collect()
            }
        }
    }

    /// Those of this network namespace; `None` where the kernel does not tell, which to ask again takes it long.
    fn here(&mut self, netfilter: &mut Netfilter, family: Family) -> Option<Vec<String>> {
        let mut found = Vec::new();
        for (hook, name) in HOOKS {
            if self.untold {
                return None;
            }
            match netfilter.programs_at(family, hook) {
                Ok(Some(programs)) => found.extend(programs.into_iter().map(|it| words(it, name, family))),
                Ok(None) => self.untold = true,
                Err(error) => {
                    debug!(%error, "netfilter's hooks cannot be asked for");
                    return None;
                }
            }
        }
        (!self.untold).then_some(found)
    }
}

fn words(program: u32, hook: &str, family: Family) -> String {
    format!("BPF program {program} at netfilter's hook {hook} of {family}")
}
