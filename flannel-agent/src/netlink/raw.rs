//! Messages of netlink as they come, of which no kind may go unseen: the crate that decodes them knows some
//! disciplines, filters and chains, and whoever uses another must not be passed over.

/// Length of a message's header (include/uapi/linux/netlink.h, `struct nlmsghdr`), bytes.
pub(super) const HEADER: usize = 16;
/// An attribute's type without its flags: it is nested, it is in network order.
const TYPE: u16 = 0x3fff;
/// Flag in an attribute's type: it holds others.
pub(super) const NESTED: u16 = 1 << 15;

/// What kind of message it is (RTM_*, or subsystem and kind).
pub(super) fn number(message: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?)).filter(|_| message.len() >= HEADER)
}

/// The number at `offset` of what follows the header, host order.
pub(super) fn word(message: &[u8], offset: usize) -> Option<u32> {
    let at = HEADER + offset;
    Some(u32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?))
}

/// The attributes in `bytes`: type and value. Stops at the first whose length cannot be.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (length, kind) = (rest.get(..2)?, rest.get(2..4)?);
        let length = usize::from(u16::from_ne_bytes(length.try_into().ok()?));
        let kind = u16::from_ne_bytes(kind.try_into().ok()?) & TYPE;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of that type.
pub(super) fn value(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

/// Writes an attribute, of at most some hundred bytes, behind `bytes`.
pub(super) fn put(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend(((value.len() + 4) as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The text in an attribute, without the zero that ends it.
pub(super) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_end_where_their_lengths_cannot_be() {
        let bytes = [7, 0, 1, 0x80, b'a', b'b', 0, 0xff, 4, 0, 2, 0, 3, 0, 3, 0];
        let found: Vec<_> = attributes(&bytes).collect();
        assert_eq!(found, [(1, &b"ab\0"[..]), (2, &[][..])]);
        assert_eq!(text(found[0].1), "ab");
        assert_eq!(attributes(&[200, 0, 1, 0, 1]).count(), 0);
        assert_eq!(
            (number(&bytes), word(&bytes, 0), number(&[0; 15])),
            (Some(u16::from_ne_bytes([b'a', b'b'])), None, None)
        );
    }
}
