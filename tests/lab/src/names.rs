//! The names of one lab's namespaces.

use std::{
    collections::BTreeMap,
    fs::File,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result};

use super::{
    Netns,
    command::{run, tool},
    teardown,
};

/// Names the namespaces of one lab.
#[derive(Debug)]
pub(crate) struct Names {
    id: String,
    /// Every namespace made, by name. Held open, so that none later gets the number of one of these and
    /// what is in it is taken for ours.
    made: Mutex<BTreeMap<String, File>>,
}

impl Names {
    pub(crate) fn new(id: String) -> Self {
        Self { id, made: Mutex::default() }
    }

    /// What every name begins with.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn netns(&self, name: &str) -> Result<Netns> {
        self.register(Netns::create(format!("{}-{name}", self.id))?)
    }

    /// Names the namespace that another program made for the process `pid`.
    pub(crate) fn name_netns_of(&self, pid: u32, name: &str) -> Result<Netns> {
        self.register(Netns::of_process(format!("{}-{name}", self.id), pid)?)
    }

    fn register(&self, netns: Netns) -> Result<Netns> {
        let file = File::open(netns.path()).with_context(|| format!("open {}", netns.path().display()))?;
        locked(&self.made).insert(netns.name().to_owned(), file);
        Ok(netns)
    }

    /// Removes a namespace before the lab ends.
    pub(crate) fn remove(&self, netns: &Netns) -> Result<()> {
        locked(&self.made).remove(netns.name());
        run(tool("ip").args(["netns", "del", netns.name()])).map(drop)
    }

    /// What is left of the lab on the machine.
    pub(crate) fn residue(&self) -> Result<Vec<String>> {
        teardown::residue(&self.id, locked(&self.made).values())
    }
}

/// The value behind a lock, whoever panicked with it.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
