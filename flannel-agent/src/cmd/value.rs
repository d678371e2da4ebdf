//! Values of the commands' flags: each says what is expected where it is given another.

use std::{net::IpAddr, ops::RangeInclusive};

use ipnetwork::IpNetwork;

/// A whole number of `what` within `range`.
pub(super) fn whole<T: TryFrom<u64>>(
    what: &'static str,
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number = text.parse::<u64>().ok().filter(|number| range.contains(number));
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| match *range.end() {
            u64::MAX => format!("write a number of {what}, {} or more", range.start()),
            end => format!("write a number of {what}, {} to {end}", range.start()),
        })
    }
}

/// None of anything would show nothing, for ever.
pub(super) fn at_least_one(
    what: &'static str,
) -> impl Fn(&str) -> Result<u64, String> + Clone + Send + Sync + 'static {
    whole(what, 1..=u64::MAX)
}

/// The same of 32 bits.
pub(super) fn number(
    what: &'static str,
) -> impl Fn(&str) -> Result<u32, String> + Clone + Send + Sync + 'static {
    whole(what, 1..=u32::MAX.into())
}

/// A port of TCP or UDP.
pub(super) fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| "write a port, 0 to 65535".to_owned())
}

/// One address.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "write an IP address, as 10.244.1.2 or fd00::2".to_owned())
}

/// Addresses: one, or all of a prefix.
pub(super) fn end(text: &str) -> Result<IpNetwork, String> {
    text.parse().map_err(|_| "write an IP address or a prefix, as 10.244.1.2 or 10.244.2.0/24".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_is_said_of_what_is_none() {
        let seconds = whole::<u64>("seconds", 1..=60);
        assert_eq!(seconds("60"), Ok(60));
        for text in ["-1", "0", "61", "x", "", "1.5"] {
            assert_eq!(seconds(text), Err("write a number of seconds, 1 to 60".to_owned()), "{text}");
        }
        assert_eq!(at_least_one("lines")("-1"), Err("write a number of lines, 1 or more".to_owned()));
        assert_eq!(whole::<u8>("hops", 0..=255)("256"), Err("write a number of hops, 0 to 255".to_owned()));
        assert_eq!(end("10.244.1.2").map(|end| end.prefix()), Ok(32));
        assert!(end("foo").is_err_and(|why| why.contains("prefix")));
        assert!(address("10.244.1.0/24").is_err_and(|why| why.contains("10.244.1.2")));
        assert!(port("65536").is_err() && port("0") == Ok(0));
    }
}
