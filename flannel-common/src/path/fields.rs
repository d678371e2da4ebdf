//! For which packets of a flow an acceptance is.
//!
//! Rules and routes may go by DSCP, ECN or TTL, and the packets of one flow may have several of each: telephony and ssh
//! change DSCP, TCP that asks for congestion marks does so in some packets and not in others. So an acceptance holds
//! for packets with the DSCP and the TTL of the one that brought it. Of ECN, whose values come and go within moments,
//! it says for which it was given. Any other packet takes the kernel path, and may be accepted in its turn.

/// Bits of DSCP and TTL.
const KIND: u32 = 0x3fff;
/// A bit for each value of ECN.
pub const ANY_ECN: u32 = 0xf << 14;

/// Those of a packet with the TOS byte or traffic class `class` and the TTL or hop limit `hops`, on its way in.
#[inline(always)]
pub const fn of(class: u8, hops: u8) -> u32 {
    hops as u32 | (class as u32 >> 2) << 8 | 1 << (14 + (class as u32 & 3))
}

/// Whether what was `accepted` is the same but for ECN as of a packet with the fields `of`.
#[inline(always)]
pub const fn are_alike(accepted: u32, of: u32) -> bool {
    (accepted ^ of) & KIND == 0
}

/// Whether what was `accepted` holds for a packet with the fields `of`.
#[inline(always)]
pub const fn hold(accepted: u32, of: u32) -> bool {
    are_alike(accepted, of) && accepted & of & ANY_ECN != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_value_of_any_field_is_told_from_the_first() {
        for (class, hops) in [(0, 64), (0xb8, 64), (0x10, 1), (0xff, 255)] {
            let accepted = of(class, hops);
            assert!(hold(accepted, of(class, hops)));
            for bit in 0..8 {
                assert!(!hold(accepted, of(class ^ 1 << bit, hops)), "class {class:#x}, bit {bit}");
                assert!(!hold(accepted, of(class, hops ^ 1 << bit)), "{hops} hops, bit {bit}");
            }
        }
    }

    #[test]
    fn values_of_ecn_are_accepted_beside_each_other() {
        let accepted = of(0xb8, 64) | of(0xba, 64);
        assert!(hold(accepted, of(0xb8, 64)) && hold(accepted, of(0xba, 64)));
        assert!(!hold(accepted, of(0xb9, 64)) && are_alike(accepted, of(0xb9, 64)));
    }
}
