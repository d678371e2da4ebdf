use serde_json::json;

use super::*;

const FAMILIES: Families = Families { v4: true, v6: true };

fn leases() -> NodeLeases {
    let prefix = AnnotationPrefix::new("flannel.alpha.coreos.com").unwrap();
    NodeLeases::new(prefix, "me".to_owned(), FAMILIES)
}

/// A stock node of vxlan, `host` in the last octets of its address and MAC.
fn node(name: &str, uid: &str, cidrs: &[&str], host: u8) -> NodeRecord {
    let data = format!(r#"{{"VNI":1,"VtepMAC":"0e:00:00:00:00:{host:02x}"}}"#);
    annotated(name, uid, cidrs, &format!("192.0.2.{host}"), &data)
}

fn annotated(name: &str, uid: &str, cidrs: &[&str], public_ip: &str, data: &str) -> NodeRecord {
    NodeRecord::from_json(&json!({
        "metadata": {"name": name, "uid": uid, "resourceVersion": "1", "annotations": {
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-data": data,
            "flannel.alpha.coreos.com/public-ip": public_ip,
            "flannel.alpha.coreos.com/public-ipv6": "2001:db8::7",
            "flannel.alpha.coreos.com/backend-v6-data": data,
        }},
        "spec": {"podCIDRs": cidrs},
    }))
}

fn bare(name: &str, uid: &str, cidrs: &[&str]) -> NodeRecord {
    NodeRecord::from_json(&json!({"metadata": {"name": name, "uid": uid}, "spec": {"podCIDRs": cidrs}}))
}

/// An event in short: `=` and all, `+` and one, `-` and one; subnet and the last octet of the address.
fn short(event: Option<LeaseEvent>) -> String {
    let lease = |lease: &Lease| format!("{} {}", lease.subnet, lease.attrs.public_ip.octets()[3]);
    match event {
        None => String::new(),
        Some(LeaseEvent::Upsert(upsert)) => format!("+{}", lease(&upsert)),
        Some(LeaseEvent::Remove(subnet)) => format!("-{subnet}"),
        Some(LeaseEvent::Snapshot(all)) => {
            format!("={}", all.iter().map(lease).collect::<Vec<_>>().join(", "))
        }
    }
}

#[test]
fn nodes_come_change_and_go() {
    let mut leases = leases();
    let all =
        [node("me", "0", &["10.0.0.0/24"], 9), node("a", "1", &["10.0.1.0/24"], 1), bare("b", "2", &[])];
    assert_eq!(short(Some(leases.all(&all))), "=10.0.1.0/24 1");
    assert_eq!(short(leases.put(&bare("b", "2", &["10.0.2.0/24"]))), "", "flannel has not been there yet");
    assert_eq!(short(leases.put(&node("b", "2", &["10.0.2.0/24"], 2))), "+10.0.2.0/24 2");
    assert_eq!(short(leases.put(&node("b", "2", &["10.0.2.0/24"], 2))), "", "kubelet's news are none");
    assert_eq!(short(leases.put(&node("b", "2", &["10.0.2.0/24"], 3))), "+10.0.2.0/24 3");
    assert_eq!(short(leases.put(&node("me", "0", &["10.0.0.0/24"], 8))), "");
    assert_eq!(short(leases.deleted(&node("a", "1", &["10.0.1.0/24"], 1))), "-10.0.1.0/24");
    assert_eq!(short(leases.deleted(&node("a", "1", &["10.0.1.0/24"], 1))), "");
    assert_eq!(short(Some(leases.all(&[]))), "=");
}

#[test]
fn an_update_of_one_family_counts() {
    let mut leases = leases();
    let cidrs = ["10.0.1.0/24", "fd00:1::/64"];
    leases.all(&[node("a", "1", &cidrs, 1)]);
    let before =
        leases.put(&annotated("a", "1", &cidrs, "192.0.2.1", r#"{"VNI":1,"VtepMAC":"0e:00:00:00:00:01"}"#));
    assert_eq!(before, None);
    let moved =
        leases.put(&annotated("a", "1", &cidrs, "192.0.2.5", r#"{"VNI":1,"VtepMAC":"0e:00:00:00:00:01"}"#));
    assert_eq!(short(moved), "+10.0.1.0/24&fd00:1::/64 5", "though nothing of IPv6 changed");
}

#[test]
fn a_node_made_anew_with_another_subnet_leaves_the_old_one() {
    let mut leases = leases();
    leases.all(&[node("a", "1", &["10.0.1.0/24"], 1), node("b", "2", &["10.0.2.0/24"], 2)]);
    // The deletion went unseen.
    let again = leases.put(&node("a", "3", &["10.0.7.0/24"], 1));
    assert_eq!(short(again), "=10.0.2.0/24 2, 10.0.7.0/24 1");
    let bare_again = leases.put(&bare("b", "4", &["10.0.8.0/24"]));
    assert_eq!(short(bare_again), "-10.0.2.0/24", "another object; flannel has not been there yet");
}

#[test]
fn garbage_on_a_node_leaves_its_lease_and_everybody_elses() {
    let mut leases = leases();
    leases.all(&[node("a", "1", &["10.0.1.0/24"], 1), node("b", "2", &["10.0.2.0/24"], 2)]);
    let whole = "=10.0.1.0/24 1, 10.0.2.0/24 2";
    for garbage in [
        annotated("a", "1", &["10.0.1.0/24"], "nonsense", "{}"),
        annotated("a", "1", &["10.0.1.0/24"], "192.0.2.1", "nonsense"),
        annotated("a", "1", &["10.0.1.0/24"], "192.0.2.1", r#"{"VtepMAC":"00:00:00:00:00:00"}"#),
        bare("a", "1", &["10.0.1.0/24"]),
    ] {
        assert_eq!(short(leases.put(&garbage)), "");
        assert_eq!(short(Some(leases.snapshot())), whole);
        let listed = [garbage, node("b", "2", &["10.0.2.0/24"], 2)];
        assert_eq!(short(Some(leases.all(&listed))), whole, "listed again");
    }
    assert_eq!(short(leases.put(&node("a", "1", &["10.0.1.0/24"], 4))), "+10.0.1.0/24 4");
    assert_eq!(
        short(leases.put(&annotated("a", "1", &["10.0.9.0/24"], "nonsense", ""))),
        "-10.0.1.0/24",
        "it has another"
    );
}

#[test]
fn a_subnet_assigned_twice_stays_with_the_first() {
    let mut leases = leases();
    leases.all(&[node("b", "2", &["10.0.1.0/24"], 2)]);
    assert_eq!(short(leases.put(&node("a", "1", &["10.0.1.0/24"], 1))), "=10.0.1.0/24 2");
    assert_eq!(short(leases.put(&node("a", "1", &["10.0.1.0/24"], 3))), "=10.0.1.0/24 2");
    assert_eq!(short(leases.deleted(&node("b", "2", &["10.0.1.0/24"], 2))), "=10.0.1.0/24 3");
    assert_eq!(short(leases.deleted(&node("a", "1", &["10.0.1.0/24"], 3))), "-10.0.1.0/24");
}

#[test]
fn nodes_may_swap_subnets() {
    let mut leases = leases();
    leases.all(&[node("a", "1", &["10.0.1.0/24"], 1), node("b", "2", &["10.0.2.0/24"], 2)]);
    leases.put(&node("a", "3", &["10.0.2.0/24"], 1));
    let swapped = leases.put(&node("b", "4", &["10.0.1.0/24"], 2));
    assert_eq!(short(swapped), "=10.0.1.0/24 2, 10.0.2.0/24 1");
}
