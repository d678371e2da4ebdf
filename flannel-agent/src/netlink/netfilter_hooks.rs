//! The programs of eBPF among what netfilter calls at its hooks, in this network namespace: what `nft list hooks` shows.

use netlink_packet_core::NLM_F_DUMP;
use nix::errno::Errno;

use super::{
    Netfilter, NetlinkError,
    netfilter::{GENERIC, big_endian, of_ip},
    raw::{HEADER, put, value},
};
use crate::values::Family;

/// Subsystem and kind of the messages (include/uapi/linux/netfilter/nfnetlink_hook.h).
const HOOKS: u16 = 12 << 8;
/// NFNLA_HOOK_HOOKNUM, NFNLA_HOOK_CHAIN_INFO; NFNLA_HOOK_INFO_DESC, NFNLA_HOOK_INFO_TYPE; NFNLA_HOOK_BPF_ID.
const NUMBER: u16 = 1;
const INFO: u16 = 6;
const DESCRIPTION: u16 = 1;
const TYPE: u16 = 2;
const PROGRAM: u16 = 1;
/// NFNL_HOOK_TYPE_BPF.
const BPF: u32 = 2;

/// A program at one of netfilter's hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetfilterProgram {
    /// Whose packets it sees.
    pub family: Family,
    /// `NF_INET_*`.
    pub hook: u32,
    /// Its number.
    pub program: u32,
}

impl Netfilter {
    /// The numbers of the programs that see packets of `family` at `hook` (`NF_INET_*`); `None` where this kernel does not tell
    /// (CONFIG_NETFILTER_NETLINK_HOOK).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn programs_at(&mut self, family: Family, hook: u32) -> Result<Option<Vec<u32>>, NetlinkError> {
        let mut wanted = Vec::new();
        put(&mut wanted, NUMBER, &hook.to_be_bytes());
        match self.request(HOOKS, HOOKS, NLM_F_DUMP, of_ip(family), &wanted) {
            Ok((messages, _)) => Ok(Some(messages.iter().filter_map(|message| program(message)).collect())),
            Err(NetlinkError::Socket(Errno::EINVAL | Errno::EOPNOTSUPP)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The program that a message tells of; `None` where it is of something else at the hook.
fn program(message: &[u8]) -> Option<u32> {
    let info = value(message.get(HEADER + GENERIC..)?, INFO)?;
    (big_endian(value(info, TYPE)?)? == BPF)
        .then(|| value(info, DESCRIPTION).and_then(|description| big_endian(value(description, PROGRAM)?)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_chains() {
        let message = |kind: u32| {
            let mut description = Vec::new();
            put(&mut description, PROGRAM, &77u32.to_be_bytes());
            let mut info = Vec::new();
            put(&mut info, DESCRIPTION, &description);
            put(&mut info, TYPE, &kind.to_be_bytes());
            let mut message = vec![0; HEADER + GENERIC];
            put(&mut message, NUMBER, &2u32.to_be_bytes());
            put(&mut message, INFO, &info);
            message
        };
        // NFNL_HOOK_TYPE_NFTABLES.
        assert_eq!(
            [program(&message(BPF)), program(&message(1)), program(&[0; HEADER + GENERIC])],
            [Some(77), None, None]
        );
    }
}
