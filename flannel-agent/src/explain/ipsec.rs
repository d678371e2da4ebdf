//! What IPsec policies of the kernel do to a packet on the kernel path.

use super::{At, Outcome, Step, walk::Walk};
use crate::netlink::{DecidedPacket, IpsecVerdict, xfrm::Direction};

impl Walk {
    /// Asks the policies of these directions, in order; what becomes of the packet where one drops it.
    pub(super) fn by_ipsec(&mut self, ways: &[Direction], packet: &DecidedPacket) -> Option<Outcome> {
        for way in ways {
            let what = match self.ipsec.decide(*way, packet) {
                IpsecVerdict::Pass => continue,
                IpsecVerdict::Block(policy) => {
                    let which = policy.map_or_else(
                        || {
                            "the default for packets that no policy is about (ip xfrm policy getdefault)"
                                .to_owned()
                        },
                        |policy| format!("an IPsec policy (ip xfrm policy: {})", policy.describe()),
                    );
                    let what = format!("{which} blocks it");
                    self.steps.push(Step::of_kernel(At::Ipsec, None, what.clone()));
                    return Some(Outcome::Dropped { by: what });
                }
                // One that a forwarded packet has to have come by is met by what arrives in ESP.
                IpsecVerdict::Transform(_) if *way != Direction::Out => continue,
                IpsecVerdict::Transform(policy) => {
                    format!(
                        "a policy puts it into another packet, which is not followed: {}",
                        policy.describe()
                    )
                }
            };
            self.steps.push(Step::of_kernel(At::Ipsec, None, what));
        }
        None
    }
}
