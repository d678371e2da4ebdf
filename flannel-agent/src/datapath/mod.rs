//! Where plans meet the kernel.
