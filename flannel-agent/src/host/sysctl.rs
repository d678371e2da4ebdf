//! Settings of the kernel's network stack, as files. They are those of the network namespace of the process.

use std::{fs, io, path::PathBuf};

/// Where the settings are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings<'a> {
    /// As every process sees them. Container runtimes make it read-only.
    pub(crate) own: &'a str,
    /// The same, where the manifest for Kubernetes mounts the host's for writing.
    pub(crate) mounted: &'a str,
}

/// Those of `net`.
pub(crate) const NET: Settings<'static> = Settings { own: "/proc/sys/net", mounted: "/host/proc/sys/net" };

impl Settings<'_> {
    /// File of the setting `name`, with slashes.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        PathBuf::from(self.own).join(name)
    }

    /// The value of `name`, without the line's end.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    pub(crate) fn read(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(self.file(name)).map(|value| value.trim_end().to_owned())
    }

    /// Sets `name`, by whichever file takes it.
    ///
    /// # Errors
    /// Neither does: why the first does not.
    pub(crate) fn write(&self, name: &str, value: &str) -> io::Result<()> {
        let mounted = PathBuf::from(self.mounted).join(name);
        fs::write(self.file(name), value).or_else(|error| {
            // What is not there is not made.
            if mounted.exists() { fs::write(mounted, value).map_err(|_| error) } else { Err(error) }
        })
    }
}
