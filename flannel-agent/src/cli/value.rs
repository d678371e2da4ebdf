//! The values of flags, as Go's flag package and flanneld read them.

use std::{ffi::OsStr, net::Ipv4Addr};

use regex::Regex;

/// What stands for a secret where values are shown.
pub(super) const HIDDEN: &str = "<hidden>";

/// What Go's strconv.ParseBool takes.
pub(super) fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("write true or false".to_owned()),
    }
}

/// Nearly what Go's regexp takes: `\Q...\E` and `\C` are unknown here.
pub(super) fn regex(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| {
        format!(
            "could not compile the regular expression: {error}\nwrite one as eth.* or 192\\.0\\.2\\.[0-9]+"
        )
    })
}

pub(super) fn ipv4(text: &str) -> Result<Ipv4Addr, String> {
    text.parse().map_err(|_| "write an IPv4 address, as 192.0.2.1".to_owned())
}

/// `-v`: any number, as with klog.
pub(super) fn verbosity(text: &str) -> Result<i32, String> {
    within(text, i32::MIN.into()..=i32::MAX.into(), "write a number, as 2")
}

/// `--subnet-lease-renew-margin`.
pub(super) fn renew_margin(text: &str) -> Result<u16, String> {
    within(text, 1..=1439, "write a number of minutes from 1 to 1439")
}

/// `--fast-path-hold`.
pub(super) fn hold(text: &str) -> Result<u32, String> {
    const REMEDY: &str = "write a number of seconds, at least 5, or 0 for ever";
    within(text, 0..=u32::MAX.into(), REMEDY).and_then(|seconds: u32| match seconds {
        1..5 => Err(REMEDY.to_owned()),
        seconds => Ok(seconds),
    })
}

/// `--snat-exempt-mark` and `--flow-mark`: one bit, which is not Kubernetes'.
pub(super) fn mark_bit(text: &str) -> Result<u32, String> {
    /// kubelet's KUBE-MARK-DROP and kube-proxy's KUBE-MARK-MASQ.
    const KUBERNETES: u32 = 0x8000 | 0x4000;
    const REMEDY: &str =
        "write a number of one bit, as 0x1000, that no other program of this node uses in packets' marks";
    match within::<u32>(text, 1..=u32::MAX.into(), REMEDY)? {
        bit if bit & KUBERNETES != 0 => Err(format!("{bit:#x} is Kubernetes': {REMEDY}")),
        bit if bit.is_power_of_two() => Ok(bit),
        bits => Err(format!("{bits:#x} has {} bits: {REMEDY}", bits.count_ones())),
    }
}

/// `--iptables-resync`.
pub(super) fn seconds(text: &str) -> Result<u32, String> {
    within(text, 1..=u32::MAX.into(), "write a number of seconds, at least 1")
}

/// `--healthz-port`; a negative one serves nothing, as upstream has it.
pub(super) fn healthz_port(text: &str) -> Result<u16, String> {
    let remedy = "write a port from 1 to 65535, or 0 to serve nothing";
    within(text, i64::MIN..=65535, remedy).map(|port: i64| u16::try_from(port).unwrap_or(0))
}

fn within<T: TryFrom<i64>>(
    text: &str,
    range: std::ops::RangeInclusive<i64>,
    remedy: &str,
) -> Result<T, String> {
    let number = go_int(text).filter(|number| range.contains(number));
    number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| remedy.to_owned())
}

/// What Go's strconv.ParseInt takes with base 0: a sign, `0x`, `0o`, `0b` or a leading 0 for octal, and `_`
/// between digits.
pub(super) fn go_int(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, rest) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    // With a prefix an underscore may also stand right after it.
    let rest = if radix == 10 { rest } else { rest.strip_prefix('_').unwrap_or(rest) };
    if rest.starts_with('_') || rest.ends_with('_') || rest.contains("__") || rest.starts_with(['+', '-']) {
        return None;
    }
    let magnitude = i128::from_str_radix(&rest.replace('_', ""), radix).ok()?;
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

/// The value of the flag `name` as a log may show it: no password, and no user in a URL.
pub(super) fn shown(name: &str, value: &OsStr) -> String {
    let text = value.to_string_lossy();
    if name == "etcd-password" || (text.contains('@') && is_url(name)) {
        return HIDDEN.to_owned();
    }
    text.into_owned()
}

fn is_url(name: &str) -> bool {
    matches!(name, "etcd-endpoints" | "kube-api-url")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_as_go_reads_them() {
        for (text, number) in [
            ("0", Some(0)),
            ("10", Some(10)),
            ("-3", Some(-3)),
            ("+3", Some(3)),
            ("0x1F", Some(31)),
            ("-0x_1f", Some(-31)),
            ("010", Some(8)),
            ("0o17", Some(15)),
            ("0b101", Some(5)),
            ("1_000", Some(1000)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("", None),
            ("-", None),
            ("+-3", None),
            ("0x", None),
            ("0x-1", None),
            ("08", None),
            ("_1", None),
            ("1_", None),
            ("1__0", None),
            ("1.5", None),
            (" 1", None),
            ("ten", None),
        ] {
            assert_eq!(go_int(text), number, "{text:?}");
        }
    }

    #[test]
    fn ranges_of_numbers() {
        assert_eq!(verbosity("-2147483648"), Ok(i32::MIN));
        assert!(verbosity("2147483648").is_err());
        assert_eq!((renew_margin("1"), renew_margin("1439")), (Ok(1), Ok(1439)));
        assert!(renew_margin("0").is_err() && renew_margin("1440").is_err());
        assert!(seconds("0").is_err() && seconds("-5").is_err());
        assert_eq!((healthz_port("65535"), healthz_port("0"), healthz_port("-1")), (Ok(65535), Ok(0), Ok(0)));
        assert!(healthz_port("65536").is_err());
    }

    #[test]
    fn a_mark_is_one_bit_that_is_not_kubernetes() {
        for (text, bit) in [("0x1000", 0x1000), ("1", 1), ("0x80000000", 0x8000_0000), ("0b10", 2)] {
            assert_eq!(mark_bit(text), Ok(bit));
        }
        for (text, said) in [
            ("0", "number of one bit"),
            ("0x100000000", "number of one bit"),
            ("bit", "number of one bit"),
            ("0x3000", "0x3000 has 2 bits"),
            ("0x4000", "0x4000 is Kubernetes'"),
            ("0x8000", "0x8000 is Kubernetes'"),
            ("0x4001", "0x4001 is Kubernetes'"),
        ] {
            let error = mark_bit(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn reading_numbers_never_panics(text in "\\PC{0,8}|[-+]?(0[xXbBoO]?)?[_0-9a-f]{0,20}") {
            let _ = go_int(&text);
        }
    }
}
