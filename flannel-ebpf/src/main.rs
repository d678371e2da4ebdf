//! flannel-ebpf's tc programs: wrap the packet, decide, count, act.
//!
//! What a packet deserves is decided in `flannel_common::path`; here one `match` turns the verdict into
//! what the kernel is told. A packet whose headers the kernel refuses to change goes the kernel's way,
//! unchanged.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod act;
#[cfg(target_arch = "bpf")]
mod ctx;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
mod v6;

/// A panic that survived optimisation is an endless loop, which the verifier refuses to load.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("flannel-ebpf holds BPF programs: build them with `cargo xtask build-ebpf`");
    std::process::exit(1);
}
