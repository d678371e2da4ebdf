//! How the agent fares.

/// How things stand, for status and health.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The first snapshot of the leases has come.
    pub synced: bool,
    /// Peers that are reached.
    pub peers: usize,
    /// Leases that are not followed and should be looked into.
    pub skipped: usize,
    /// Changes that failed and will be tried again.
    pub pending: usize,
    /// The last failure that is still standing.
    pub last_error: Option<String>,
    /// How much is left to the kernel's path for others' hooks, and one of them and where it is.
    pub hooked: Option<(usize, String)>,
    /// Why a VXLAN device cannot be made, or not be set up.
    pub without_device: Option<String>,
    /// Why no other node can be reached: the external interface is gone or down.
    pub without_underlay: Option<String>,
    /// Why the state of the kernel could not be read the last time.
    pub unreadable: Option<String>,
    /// Passes that read the state of the kernel.
    pub passes: u64,
}

impl Summary {
    /// In one line, the worst first.
    pub(super) fn describe(&self, server: &str, trouble: Option<&str>) -> String {
        let mut parts = Vec::new();
        if !self.synced {
            parts.push("reading the leases".to_owned());
        } else {
            parts.push(format!("peers reached: {}", self.peers));
        }
        if self.pending > 0 {
            parts.push(format!("changes that failed and will be tried again: {}", self.pending));
        }
        if let Some(error) = &self.last_error {
            parts.push(error.clone());
        }
        if self.skipped > 0 {
            parts.push(format!("leases that cannot be followed, see the log: {}", self.skipped));
        }
        if let Some((count, first)) = &self.hooked {
            parts.push(format!(
                "left to the kernel's path for others' hooks: {count} ({first}{})",
                if *count > 1 { ", ..." } else { "" }
            ));
        }
        if let Some(trouble) = trouble {
            parts.push(format!("forwarding goes on without {server}: {trouble}"));
        }
        parts.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines() {
        assert_eq!(Summary::default().describe("etcd", None), "reading the leases");
        let good = Summary { synced: true, peers: 3, passes: 1, ..Summary::default() };
        assert_eq!(good.describe("etcd", None), "peers reached: 3");
        let bad = Summary { pending: 2, skipped: 1, last_error: Some("no route".to_owned()), ..good };
        assert_eq!(
            bad.describe("etcd", Some("refused")),
            "peers reached: 3; changes that failed and will be tried again: 2; no route; leases that cannot be followed, \
             see the log: 1; forwarding goes on without etcd: refused"
        );
    }

    #[test]
    fn what_is_left_to_the_kernel_is_said() {
        let hooked = "qdisc tbf at egress on veth1".to_owned();
        let summary =
            |count| Summary { synced: true, hooked: Some((count, hooked.clone())), ..Summary::default() };
        assert_eq!(
            summary(2).describe("etcd", None),
            "peers reached: 0; left to the kernel's path for others' hooks: 2 (qdisc tbf at egress on veth1, ...)"
        );
        assert!(summary(1).describe("etcd", None).ends_with("on veth1)"));
    }
}
