//! What the agent keeps in the kernel of its node: how it comes, stays, is brought back, and changes hands.

mod identity;
mod kernel_datapath;
mod masquerade;
mod node_change;
mod repair;
mod restart;
mod swap;
