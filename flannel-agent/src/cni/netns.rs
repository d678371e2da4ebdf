//! The pod's network namespace, looked at but not entered: that is the delegate's part.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use super::{
    error::{CniError, Code},
    invocation::Invocation,
};

/// [`check_not_ours`] of a namespace that may be gone, or that the runtime does not name any more.
pub(super) fn check_not_ours_if_there(invocation: &Invocation) -> Result<(), CniError> {
    match invocation.netns.try_exists() {
        Ok(true) => check_not_ours(invocation),
        _ => Ok(()),
    }
}

/// Refuses our own namespace for a pod: the delegate would move the host's addresses and routes about.
pub(super) fn check_not_ours(invocation: &Invocation) -> Result<(), CniError> {
    if invocation.netns_may_be_ours {
        return Ok(());
    }
    let inode = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
    let path = invocation.netns.as_path();
    let pods = inode(path)
        .map_err(|error| CniError::new(Code::Netns, format!("CNI_NETNS: {}: {error}", path.display())))?;
    // Without /proc there is nothing to compare with, and the delegate looks as well.
    match inode(Path::new("/proc/self/ns/net")) {
        Ok(own) if own == pods => Err(CniError::new(
            Code::Netns,
            format!("CNI_NETNS: {} is the plugin's own network namespace, not a pod's", path.display()),
        )),
        _ => Ok(()),
    }
}
