//! Empty: the programs are in `main.rs`, built for `bpfel-unknown-none` by the agent's build script.
//! This library exists so that the agent can name the crate as a build dependency and be rebuilt with it.
#![no_std]
