//! What agents with another layout of the maps have pinned beside ours.
//!
//! Their maps mean nothing to us. Their links are good: a link gets our program in one step, so that an upgrade leaves no
//! moment at which a hook has no program, or two.

use std::fs;

use super::{
    PinError, Pins,
    pins::{entries, remove},
};

impl Pins {
    /// Version of the layout: `v4`.
    pub fn layout(&self) -> String {
        self.root.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// The pins of agents with other layouts under the same bpffs, older or newer.
    ///
    /// # Errors
    /// When the directory cannot be read. One that is absent is empty.
    pub fn of_other_layouts(&self) -> Result<Vec<Self>, PinError> {
        let Some(directory) = self.root.parent() else { return Ok(Vec::new()) };
        let is_layout = |name: &String| {
            name.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok())
                && *name != self.layout()
        };
        let names = entries(directory)?.into_iter().filter(is_layout);
        Ok(names.map(|name| Self { root: directory.join(name) }).collect())
    }

    /// Moves the links of `other` and its notes about qdiscs here, and removes all else it has pinned. Its programs run
    /// on until their links get others. A hook that is in use here stays as it is.
    ///
    /// # Errors
    /// When a pin cannot be moved or removed; what went before it is done.
    pub fn take_over(&self, other: &Self) -> Result<(), PinError> {
        for (interface, hook) in other.pinned_links()? {
            let (from, to) = (other.link(&interface, hook), self.link(&interface, hook));
            if fs::symlink_metadata(&to).is_ok() {
                continue;
            }
            if let Some(directory) = to.parent() {
                Self::make(directory)?;
            }
            fs::rename(&from, &to).map_err(|error| PinError::Io { action: "move", path: from, error })?;
        }
        for ifindex in other.noted_clsacts()? {
            self.note_clsact(ifindex)?;
            other.forget_clsact(ifindex)?;
        }
        other.clear()
    }

    /// Removes every pin, links of hooks that only another version knows among them.
    fn clear(&self) -> Result<(), PinError> {
        for directory in entries(&self.links())? {
            let directory = self.links().join(directory);
            for name in entries(&directory)? {
                remove(&directory.join(name))?;
            }
        }
        self.remove_all()
    }

    /// Removes every pin of every other layout.
    ///
    /// # Errors
    /// When one cannot be removed; what went before it is gone.
    pub(super) fn clear_other_layouts(&self) -> Result<(), PinError> {
        self.of_other_layouts()?.iter().try_for_each(Self::clear)
    }
}
