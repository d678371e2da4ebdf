//! The kernel half of the dataplane against a real kernel: each test in a network namespace of its own.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod device;
mod direct;
mod echoes;
mod external_interface;
mod families;
mod namespace;
mod objects;
mod particular;
mod reconciler;
mod surroundings;
