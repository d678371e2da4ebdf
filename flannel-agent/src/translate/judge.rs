//! Which translations are ones for programs.

use std::net::SocketAddr;

use ipnetwork::IpNetwork;

use crate::netlink::{ConntrackEntry, ConntrackStatus, ConntrackTuple};

/// Why a flow stays on the kernel path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The pod has not begun it: the entry is of the other direction.
    NotOfPod,
    /// The other end has not answered yet, or it is over.
    NotEstablished,
    /// Nothing of it is translated, or not by netfilter's NAT.
    NotTranslated,
    /// The pod's own address or port is translated, too, as with masquerading.
    Source,
    /// A helper reads it, or its TCP sequence numbers are translated.
    Helped,
    /// The backend is on this node, or on none of the cluster's.
    Backend,
}

/// The backend of the flow that `asked` is the original direction of, where programs can translate it. The node has
/// `subnet` of the cluster's `network`.
pub(super) fn backend(
    entry: &ConntrackEntry,
    asked: &ConntrackTuple,
    (network, subnet): (IpNetwork, IpNetwork),
) -> Result<SocketAddr, Refusal> {
    use ConntrackStatus as Is;
    if entry.original != *asked {
        return Err(Refusal::NotOfPod);
    }
    if !entry.status.has(Is::SEEN_REPLY) || entry.status.has(Is::DYING) {
        return Err(Refusal::NotEstablished);
    }
    if entry.status.has(Is::HELPED) || entry.status.has(Is::SEQUENCE_TRANSLATED) {
        return Err(Refusal::Helped);
    }
    if entry.status.has(Is::SOURCE_TRANSLATED) || entry.reply.destination != asked.source {
        return Err(Refusal::Source);
    }
    if !entry.status.has(Is::DESTINATION_TRANSLATED) {
        return Err(Refusal::NotTranslated);
    }
    let backend = entry.reply.source;
    if !network.contains(backend.ip())
        || subnet.contains(backend.ip())
        || network.contains(asked.destination.ip())
    {
        return Err(Refusal::Backend);
    }
    Ok(backend)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flannel_common::layout::FlowProtocol;

    use super::*;
    use crate::netlink::TcpState;

    fn tuple(source: &str, destination: &str) -> ConntrackTuple {
        let protocol = FlowProtocol::Tcp;
        ConntrackTuple {
            protocol,
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    fn judged(edit: impl FnOnce(&mut ConntrackEntry)) -> Result<SocketAddr, Refusal> {
        let asked = tuple("10.244.1.2:40000", "10.96.0.10:80");
        let status = ConntrackStatus::SEEN_REPLY.0 | ConntrackStatus::DESTINATION_TRANSLATED.0;
        let mut entry = ConntrackEntry {
            id: 7,
            original: asked,
            reply: tuple("10.244.2.3:8080", "10.244.1.2:40000"),
            status: ConntrackStatus(status),
            tcp: Some(TcpState::Established),
            left: Duration::from_secs(300),
        };
        edit(&mut entry);
        let share = ("10.244.0.0/16".parse().unwrap(), "10.244.1.0/24".parse().unwrap());
        backend(&entry, &asked, share)
    }

    fn also(status: ConntrackStatus) -> impl FnOnce(&mut ConntrackEntry) {
        move |entry| entry.status.0 |= status.0
    }

    #[test]
    fn a_backend_of_another_node_is_found() {
        assert_eq!(judged(|_| {}), Ok("10.244.2.3:8080".parse().unwrap()));
        assert_eq!(judged(also(ConntrackStatus::ASSURED)), Ok("10.244.2.3:8080".parse().unwrap()));
    }

    #[test]
    fn everything_else_stays_with_the_kernel() {
        use ConntrackStatus as Is;
        assert_eq!(judged(also(Is::SOURCE_TRANSLATED)), Err(Refusal::Source));
        assert_eq!(judged(also(Is::HELPED)), Err(Refusal::Helped));
        assert_eq!(judged(also(Is::SEQUENCE_TRANSLATED)), Err(Refusal::Helped));
        assert_eq!(judged(also(Is::DYING)), Err(Refusal::NotEstablished));
        assert_eq!(judged(|entry| entry.status = Is::DESTINATION_TRANSLATED), Err(Refusal::NotEstablished));
        assert_eq!(judged(|entry| entry.status = Is::SEEN_REPLY), Err(Refusal::NotTranslated));
        let other_port = tuple("10.244.2.3:8080", "10.244.1.2:40001");
        assert_eq!(judged(|entry| entry.reply = other_port), Err(Refusal::Source));
        let masqueraded = tuple("10.244.2.3:8080", "10.244.1.0:40000");
        assert_eq!(judged(|entry| entry.reply = masqueraded), Err(Refusal::Source));
        for elsewhere in ["10.244.1.3:8080", "192.0.2.1:8080"] {
            assert_eq!(
                judged(|entry| entry.reply = tuple(elsewhere, "10.244.1.2:40000")),
                Err(Refusal::Backend)
            );
        }
        let answered = tuple("10.96.0.10:80", "10.244.1.2:40000");
        assert_eq!(judged(|entry| entry.original = answered), Err(Refusal::NotOfPod));
    }
}
