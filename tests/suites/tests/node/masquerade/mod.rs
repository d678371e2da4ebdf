//! Masquerade and forward rules, by iptables in both its back ends and by nftables: the rules there are, whom
//! the receiver of a packet sees, and how rules come back.

mod golden;
mod managers;
mod node;
mod repair;
mod sources;
