//! Flows whose every packet connection tracking has to see: those of a helper, which reads along for the connections
//! they announce (FTP, SIP, TFTP), and those with timeouts of their own.
//!
//! Which those are is said by rules with the target CT in table raw; no match of iptables tells afterwards (`helper` is
//! about the connections announced). So their packets are kept from the mark by the protocol and the ports that such a
//! rule names. What else it asks for is passed over: more flows than need it stay on the kernel's path, never fewer.

use ipnetwork::IpNetwork;

use super::{
    each_packet::transport,
    saved::{SavedRule, SavedTable},
};

/// The table of the rules with target CT.
pub(super) const RAW: &str = "raw";

/// The rules that keep packets between addresses of `network` from what follows them, one for each rule of the table
/// `raw` that asks for a helper or a timeout, none twice.
pub(super) fn exceptions(raw: &SavedTable, network: IpNetwork, comment: &str) -> Vec<SavedRule> {
    let mut exceptions: Vec<SavedRule> = Vec::new();
    for rule in raw.rules().filter(|rule| rule.jumps_to("CT")) {
        if rule.value("--helper").is_none() && rule.value("--timeout").is_none() {
            continue;
        }
        let exception = SavedRule::new(&format!(
            "-s {network} -d {network} {}-m comment --comment \"{comment}\" -j RETURN",
            transport(rule, true)
        ));
        if !exceptions.contains(&exception) {
            exceptions.push(exception);
        }
    }
    exceptions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::masq::iptables::saved::Saved;

    #[test]
    fn what_has_a_helper_or_a_timeout_is_kept_from_the_mark() {
        let saved = Saved::parse(
            "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:CUSTOM - [0:0]\n\
             -A PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp\n\
             -A OUTPUT -d 10.0.0.0/8 -p tcp -m tcp --dport 21 -j CT --helper ftp\n\
             -A CUSTOM -i eth0 -p udp -m multiport --dports 69,1069 -j CT --helper tftp\n\
             -A CUSTOM -p tcp -m tcp ! --dport 5060 -j CT --helper sip\n\
             -A CUSTOM -j CT --timeout short\n\
             -A CUSTOM -p udp -m udp --dport 53 -j CT --notrack\n\
             -A CUSTOM -p tcp -m tcp --dport 22 -j ACCEPT\nCOMMIT\n",
        );
        let network = "10.244.0.0/16".parse().unwrap();
        let found = exceptions(&saved.table(RAW), network, "flanneld flow");
        let within = |conditions: &str| {
            let between = "-s 10.244.0.0/16 -d 10.244.0.0/16";
            format!("{between} {conditions}-m comment --comment \"flanneld flow\" -j RETURN")
        };
        let found: Vec<String> = found.into_iter().map(|rule| rule.text).collect();
        let mut wanted = vec![
            within(""),
            within("-p udp -m multiport --dports 69,1069 "),
            within("-p tcp "),
            within("-p tcp -m tcp --dport 21 "),
        ];
        let mut found = found;
        found.sort();
        wanted.sort();
        assert_eq!(found, wanted);
        assert!(exceptions(&SavedTable::default(), network, "flanneld flow").is_empty());
    }
}
