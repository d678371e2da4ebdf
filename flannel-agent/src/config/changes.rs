//! What differs between two network configurations.

use super::NetworkConfig;

impl NetworkConfig {
    /// What of `self` is otherwise in `new`, each as `Field: old -> new` with the names the configuration has.
    pub fn changes_to(&self, new: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        let mut field = |name: &str, old: String, new: String| {
            if old != new {
                changes.push(format!("{name}: {old} -> {new}"));
            }
        };
        // A family that is off has nothing more to say.
        let (old4, new4) = (self.ipv4.as_ref(), new.ipv4.as_ref());
        field("EnableIPv4", old4.is_some().to_string(), new4.is_some().to_string());
        if let (Some(old), Some(new)) = (old4, new4) {
            field("Network", old.network.to_string(), new.network.to_string());
            field("SubnetLen", old.subnet_len.to_string(), new.subnet_len.to_string());
            field("SubnetMin", old.subnet_min.to_string(), new.subnet_min.to_string());
            field("SubnetMax", old.subnet_max.to_string(), new.subnet_max.to_string());
        }
        let (old6, new6) = (self.ipv6.as_ref(), new.ipv6.as_ref());
        field("EnableIPv6", old6.is_some().to_string(), new6.is_some().to_string());
        if let (Some(old), Some(new)) = (old6, new6) {
            field("IPv6Network", old.network.to_string(), new.network.to_string());
            field("IPv6SubnetLen", old.subnet_len.to_string(), new.subnet_len.to_string());
            field("IPv6SubnetMin", old.subnet_min.to_string(), new.subnet_min.to_string());
            field("IPv6SubnetMax", old.subnet_max.to_string(), new.subnet_max.to_string());
        }
        field("EnableNFTables", self.enable_nftables.to_string(), new.enable_nftables.to_string());
        field("Backend.Type", self.backend_kind().to_owned(), new.backend_kind().to_owned());
        let other_kind = new.backend_kind();
        match (&self.backend, &new.backend) {
            (Ok(old), Ok(new)) if self.backend_kind() == other_kind => {
                for (name, old, new) in old.changes_to(new) {
                    field(name, old, new);
                }
            }
            // Options may hold secrets (wireguard's and ipsec's PSK), so they are not shown.
            (old, new) if self.backend_kind() == other_kind && old != new => {
                changes.push("Backend: other options".to_owned());
            }
            _ => {}
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, prelude::BASE64_STANDARD};

    use super::*;

    fn changes(old: &str, new: &str) -> Vec<String> {
        let [old, new] = [old, new].map(|json| NetworkConfig::parse(json.as_bytes()).unwrap());
        old.changes_to(&new)
    }

    #[test]
    fn name_fields_and_both_values() {
        let old = r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}"#;
        assert_eq!(
            changes(
                old,
                r#"{"Network":"10.4.0.0/16","SubnetLen":25,"EnableNFTables":true,
                    "Backend":{"Type":"vxlan","VNI":7,"Port":4789,"MTU":1400,"DirectRouting":true}}"#
            ),
            [
                "Network: 10.3.0.0/16 -> 10.4.0.0/16",
                "SubnetLen: 24 -> 25",
                "SubnetMin: 10.3.1.0 -> 10.4.0.128",
                "SubnetMax: 10.3.255.0 -> 10.4.255.128",
                "EnableNFTables: false -> true",
                "Backend.VNI: 1 -> 7",
                "Backend.Port: unset -> 4789",
                "Backend.MTU: unset -> 1400",
                "Backend.DirectRouting: false -> true",
            ]
        );
        assert_eq!(
            changes(old, r#"{"Network":"10.3.0.0/16","Backend":{"Type":"host-gw"}}"#),
            ["Backend.Type: vxlan -> host-gw"]
        );
        assert_eq!(
            changes(
                old,
                r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"vxlan"}}"#
            ),
            ["EnableIPv4: true -> false", "EnableIPv6: false -> true"]
        );
        let six = |len| {
            format!(
                r#"{{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetLen":{len}}}"#
            )
        };
        assert_eq!(changes(&six(64), &six(63))[0], "IPv6SubnetLen: 64 -> 63");
    }

    #[test]
    fn of_secrets_are_not_shown() {
        let with = |psk: &str| {
            format!(r#"{{"Network":"10.3.0.0/16","Backend":{{"Type":"wireguard","PSK":"{psk}"}}}}"#)
        };
        let [old, new] = [7, 8].map(|byte| BASE64_STANDARD.encode([byte; 32]));
        assert_eq!(changes(&with(&old), &with(&new)), ["Backend.PSK: (a secret) -> (another)"]);
        assert_eq!(changes(&with(&old), &with("")), ["Backend.PSK: (a secret) -> none"]);
        // Of one that is not built nobody knows which are.
        let unbuilt = |psk| {
            format!(r#"{{"Network":"10.3.0.0/16","Backend":{{"Type":"ali-vpc","AccessKeySecret":"{psk}"}}}}"#)
        };
        assert_eq!(changes(&unbuilt("one"), &unbuilt("two")), ["Backend: other options"]);
    }

    #[test]
    fn of_spelling_are_none() {
        let old = r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}"#;
        let new = r#"{ "network": "10.3.9.9/16", "SubnetLen": 24, "Backend": {"type": "VXLAN", "VNI": 1, "Port": 0} }"#;
        assert_eq!(changes(old, new), [""; 0]);
    }
}
