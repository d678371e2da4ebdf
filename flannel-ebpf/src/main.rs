//! flannel-ebpf's programs for tc and XDP.
//!
//! What happens at a hook is in the file of `flannel_common::path` that has its name. Here is what that is made of: the
//! entry point of each hook, the packet ([`ctx`]), what is done to it ([`act`]) and the maps ([`maps`]). A packet whose
//! headers the kernel refuses to change goes the kernel path, unchanged.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

#[cfg(target_arch = "bpf")]
mod act;
#[cfg(target_arch = "bpf")]
mod ctx;
#[cfg(target_arch = "bpf")]
mod family;
#[cfg(target_arch = "bpf")]
mod forgotten;
#[cfg(target_arch = "bpf")]
mod from_overlay;
#[cfg(target_arch = "bpf")]
mod from_pod;
#[cfg(target_arch = "bpf")]
mod from_underlay;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod notes;
#[cfg(target_arch = "bpf")]
mod size;
#[cfg(target_arch = "bpf")]
mod socket_state;
#[cfg(target_arch = "bpf")]
mod to_overlay;
#[cfg(target_arch = "bpf")]
mod to_pod;
#[cfg(target_arch = "bpf")]
mod to_underlay;
#[cfg(all(target_arch = "bpf", feature = "trace"))]
mod trace;
#[cfg(all(target_arch = "bpf", not(feature = "trace")))]
#[path = "untraced.rs"]
mod trace;
#[cfg(target_arch = "bpf")]
mod try_room;
#[cfg(target_arch = "bpf")]
mod xdp;

/// A panic that survived optimisation is an endless loop, which the verifier refuses to load.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    use std::io::Write as _;

    let advice = "flannel-ebpf holds BPF programs: build them with `cargo xtask build-ebpf`";
    let _ = writeln!(std::io::stderr(), "{advice}");
    std::process::exit(1);
}
