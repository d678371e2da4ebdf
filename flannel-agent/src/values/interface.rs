//! Names of interfaces as rules have them.

/// Whether `interface` is the one `named`, or one of those that begin so where the name ends in a character of `wildcards`:
/// `*` in nft, `+` in iptables.
pub fn is_interface(named: &str, wildcards: &[char], interface: &str) -> bool {
    match named.strip_suffix(wildcards) {
        Some(beginning) => interface.starts_with(beginning),
        None => interface == named,
    }
}

#[cfg(test)]
mod tests {
    use super::is_interface;

    #[test]
    fn only_a_wildcard_at_the_end_stands_for_others() {
        for (named, interface, expected) in [
            ("eth0", "eth0", true),
            ("eth0", "eth01", false),
            ("eth*", "eth01", true),
            ("eth+", "eth01", false),
            ("*", "lo", true),
        ] {
            assert_eq!(is_interface(named, &['*'], interface), expected, "{named} {interface}");
        }
        assert!(is_interface("eth+", &['+', '*'], "eth01"));
    }
}
