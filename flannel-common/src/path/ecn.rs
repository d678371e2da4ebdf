//! Congestion marks across the tunnel (RFC 6040, as include/net/inet_ecn.h has it).

const MASK: u8 = 0b11;
const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const ECT_0: u8 = 0b10;
const CE: u8 = 0b11;

/// TOS byte of the outer header: DSCP 0, and the inner mark, except that the outer header of a packet
/// already marked starts anew at ECT(0) (`INET_ECN_encapsulate`).
#[inline(always)]
pub const fn encapsulate(inner_tos: u8) -> u8 {
    match inner_tos & MASK {
        CE => ECT_0,
        mark => mark,
    }
}

/// TOS byte of the inner header after decapsulation (`INET_ECN_decapsulate`); `None` when the outer
/// header says congestion to a flow that could not be told, which the kernel drops.
#[inline(always)]
pub const fn decapsulate(outer_tos: u8, inner_tos: u8) -> Option<u8> {
    match (inner_tos & MASK, outer_tos & MASK) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) | (CE, _) => Some(inner_tos),
        (_, CE) => Some(inner_tos | CE),
        (ECT_0, ECT_1) => Some((inner_tos & !MASK) | ECT_1),
        (_, _) => Some(inner_tos),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_follow_rfc_6040() {
        assert_eq!(encapsulate(0xb8 | NOT_ECT), NOT_ECT);
        assert_eq!(encapsulate(ECT_0), ECT_0);
        assert_eq!(encapsulate(ECT_1), ECT_1);
        assert_eq!(encapsulate(CE), ECT_0);
        // Rows: inner; columns: outer NOT_ECT, ECT(1), ECT(0), CE (RFC 6040, figure 4).
        let table = [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (ECT_0, [Some(ECT_0), Some(ECT_1), Some(ECT_0), Some(CE)]),
            (CE, [Some(CE); 4]),
        ];
        for (inner, row) in table {
            for (outer, expected) in [NOT_ECT, ECT_1, ECT_0, CE].into_iter().zip(row) {
                assert_eq!(decapsulate(outer, inner), expected, "inner {inner:#04b} outer {outer:#04b}");
                assert_eq!(decapsulate(outer, inner | 0xb8), expected.map(|tos| tos | 0xb8));
            }
        }
    }
}
