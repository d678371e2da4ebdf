//! Memory that was needed for a moment goes back to the system.
#![cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "malloc_trim(3) is the C library's, and has no safe interface")
)]

/// Gives back what is free. glibc keeps whatever lies below the last allocation that lives, in every thread's arena: after
/// a look at all tables of a large node that is as much as what the agent really holds.
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and locks each arena while it looks at it (MT-Safe).
    let _ = unsafe { nix::libc::malloc_trim(0) };
}
