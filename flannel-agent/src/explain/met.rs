//! The hooks of netfilter that a packet meets.

/// Where a packet is in netfilter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    /// It comes in by one interface, and leaves by another.
    Forwarded(u32, u32),
    /// It comes in by this interface, for this node.
    In(u32),
    /// It is of this node, and leaves by this interface.
    Out(u32),
    /// It comes into a bridge by this port.
    ByPort(u32),
    /// A bridge hands it from one port to another.
    Bridged(u32, u32),
    /// This bridge, which does so, has iptables called.
    CalledBy(u32),
    /// It leaves a bridge by this port.
    OutOfPort(u32),
}

/// A hook, and the interfaces that are known there.
pub(super) type Hook = (&'static str, Option<u32>, Option<u32>);

impl Met {
    /// The hooks that it meets. Those of bridges are met where `is_bridge`; there ports are not known.
    pub(super) fn hooks(self, is_bridge: impl Fn(u32) -> bool) -> Vec<Hook> {
        let of_bridge = |name, index| is_bridge(index).then_some((name, None, None));
        let comes = |by| {
            let own = [("ingress", Some(by), None), ("prerouting", Some(by), None)];
            of_bridge("bridge input", by).into_iter().chain(own)
        };
        let leaves = |out| {
            let own = [("postrouting", None, Some(out)), ("egress", None, Some(out))];
            own.into_iter().chain(of_bridge("bridge output", out))
        };
        let mut hooks: Vec<Hook> = Vec::new();
        match self {
            Self::Forwarded(by, out) => {
                hooks.extend(comes(by));
                hooks.push(("forward", Some(by), Some(out)));
                hooks.extend(leaves(out));
            }
            Self::In(by) => {
                hooks.extend(comes(by));
                hooks.push(("input", Some(by), None));
            }
            Self::Out(out) => {
                hooks.push(("output", None, Some(out)));
                hooks.extend(leaves(out));
            }
            Self::ByPort(port) => {
                hooks.extend([("ingress", Some(port), None), ("bridge prerouting", Some(port), None)]);
            }
            Self::CalledBy(bridge) => hooks.extend([
                ("prerouting", Some(bridge), None),
                ("forward", Some(bridge), Some(bridge)),
                ("postrouting", None, Some(bridge)),
            ]),
            Self::Bridged(from, to) => hooks.push(("bridge forward", Some(from), Some(to))),
            Self::OutOfPort(port) => {
                hooks.extend([("bridge postrouting", None, Some(port)), ("egress", None, Some(port))]);
            }
        }
        hooks
    }
}
