//! What a start finds: rules of earlier runs, a kernel that lacks something, two back ends.

use super::*;

/// Of an agent with other marks, be they of an earlier version or of another flag.
#[tokio::test]
async fn start_removes_the_rules_of_other_marks() {
    let mut kept = iptables(Memory::with(&["iptables"]), options()).await;
    let before = "-m mark --mark 0x2000/0x6000 -m comment --comment \"flanneld exempt\" -j RETURN";
    kept.exec.chain("iptables", "nat", "POSTROUTING").unwrap().push(before.to_owned());
    kept.settle(Look::Start).await;
    let flowing = |bit| RuleOptions { flow_mark: Some(bit), exempt_mark: Some(bit << 1), ..options() };
    for bit in [0x1, 0x10] {
        kept = iptables(kept.exec, flowing(bit)).await;
        kept.settle(Look::Start).await;
    }
    let all = kept.exec.save("iptables", "nat") + &kept.exec.save("iptables", "mangle");
    assert!(all.contains("--mark 0x20/0x4020") && all.contains("--set-xmark 0x10/0x10"), "{all}");
    for gone in ["0x2000", "0x40/0x4040", "0x2/0x4002", "0x1/0x1"] {
        assert!(!all.contains(gone), "{gone} is still there:\n{all}");
    }
}

/// What stock flannel of several ages leaves, and our own run with another network.
#[tokio::test]
async fn start_replaces_the_rules_of_earlier_runs_in_one_step() {
    let mut memory = Memory::with(&["iptables"]);
    let left = r#"*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A POSTROUTING -s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE
-A POSTROUTING -s 10.9.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A POSTROUTING -s 10.9.1.0/24 -d 10.9.0.0/16 -m mark ! --mark 0x4000/0x4000 -m comment --comment "flanneld exempt" -j RETURN
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -s 10.9.0.0/16 -d 10.9.0.0/16 -m comment --comment "flanneld masq" -j RETURN
COMMIT
"#;
    memory.restore("iptables", left).unwrap();
    memory.restores.clear();
    let mut kept = iptables(memory, options()).await;
    kept.settle(Look::Start).await;
    let nat = kept.exec.restores.iter().filter(|input| input.starts_with("*nat")).count();
    assert_eq!(nat, 1, "one atomic step");
    kept.change("nat", "POSTROUTING", |rules| {
        assert_eq!(rules.iter().position(|rule| rule.contains("docker0")), Some(2), "{rules:?}");
        rules.remove(2);
    });
    assert_eq!(kept.exec.save("iptables", "nat"), NAT);
}

#[tokio::test]
async fn rules_of_a_run_with_ip_masq_go_without_it() {
    let mut kept = iptables(Memory::with(&["iptables"]), options()).await;
    kept.settle(Look::Start).await;
    let mut without = iptables(kept.exec, RuleOptions { ip_masq: false, ..options() }).await;
    without.settle(Look::Start).await;
    let nat = without.exec.save("iptables", "nat");
    assert!(!nat.contains("flanneld masq") && !nat.contains("FLANNEL-POSTRTG"), "{nat}");
    assert!(nat.contains("flanneld exempt"), "{nat}");
}

#[tokio::test]
async fn kernel_without_iprange_has_all_rules_but_the_one() {
    let mut memory = Memory::with(&["iptables"]);
    memory.lacks = Some("iprange");
    let mut kept = iptables(memory, options()).await;
    kept.settle(Look::Start).await;
    let lines = NAT.lines().filter(|line| !line.contains("iprange"));
    let golden: String = lines.map(|line| format!("{line}\n")).collect();
    assert_eq!(kept.exec.save("iptables", "nat"), golden);
    // Any other failure is one, and is tried again with all rules.
    kept.exec.lacks = Some("MASQUERADE");
    kept.change("nat", "FLANNEL-POSTRTG", Vec::clear);
    assert!(kept.repair(Look::Resync).await.is_err());
    kept.exec.lacks = None;
    kept.settle(Look::Resync).await;
    assert_eq!(kept.exec.save("iptables", "nat"), golden);
}

#[tokio::test]
async fn kernel_that_cannot_mark_flows_has_all_other_rules() {
    let marking = RuleOptions { flow_mark: Some(FLOW_MARK), ..options() };
    for lacks in ["conntrack", "*mangle"] {
        let mut memory = Memory::with(&["iptables"]);
        memory.lacks = Some(lacks);
        let mut kept = iptables(memory, marking).await;
        assert_eq!(kept.flows(), Flows::Marked, "until it is known better");
        kept.settle(Look::Start).await;
        assert!(matches!(kept.flows(), Flows::Unmarked(because) if because.contains("RULE_INSERT")));
        assert_eq!(kept.exec.save("iptables", "nat"), NAT);
        assert_eq!(kept.exec.save("iptables", "filter"), FILTER);
    }
    // Where nothing can be written, that is not what is lacking.
    let mut memory = Memory::with(&["iptables"]);
    memory.lacks = Some("COMMIT");
    let mut kept = iptables(memory, marking).await;
    assert!(kept.repair(Look::Start).await.is_err());
    kept.exec.lacks = None;
    kept.settle(Look::Start).await;
    assert_eq!(kept.flows(), Flows::Marked);
    // Later on a failure is one.
    kept.exec.lacks = Some("conntrack");
    kept.change("mangle", "FLANNEL-FLOW", Vec::clear);
    assert!(kept.repair(Look::Resync).await.is_err());
    assert_eq!(kept.flows(), Flows::Marked);
    assert_eq!(iptables(Memory::with(&["iptables"]), options()).await.flows(), Flows::NotAsked);
}

#[tokio::test]
async fn back_end_is_where_the_hosts_rules_are() {
    let all = ["iptables", "iptables-nft", "iptables-legacy"];
    let chosen = async |change: fn(&mut Memory)| {
        let mut memory = Memory::with(&all);
        change(&mut memory);
        Backend::detect(&mut memory, Family::V4).await.unwrap()
    };
    assert_eq!(chosen(|_| {}).await.kind(), Kind::Plain);
    let legacy = chosen(|memory| {
        memory.chain("iptables-legacy", "nat", "POSTROUTING").unwrap().push("-j DOCKER".into());
    });
    assert_eq!(legacy.await.kind(), Kind::Legacy);
    let nft = chosen(|memory| {
        memory.chain("iptables-nft", "filter", "FORWARD").unwrap().push("-j DOCKER".into());
    });
    assert_eq!(nft.await.kind(), Kind::Nft);
    let hinted = chosen(|memory| {
        memory.chains("iptables-nft", "mangle").push(("KUBE-IPTABLES-HINT".into(), Vec::new()));
        memory.chain("iptables-legacy", "nat", "POSTROUTING").unwrap().push("-j DOCKER".into());
    });
    assert_eq!(hinted.await.kind(), Kind::Nft);
    // A flanneld that chose wrongly does not make it right.
    let misled = chosen(|memory| {
        memory.restore("iptables-legacy", NAT).unwrap();
    });
    assert_eq!(misled.await.kind(), Kind::Plain);
    let mut only = Memory::with(&["iptables-legacy"]);
    only.chain("iptables-legacy", "nat", "POSTROUTING").unwrap().push("-j SOMEBODY".into());
    assert_eq!(Backend::detect(&mut only, Family::V4).await.unwrap().kind(), Kind::Legacy);
}

#[tokio::test]
async fn missing_iptables_names_package_and_program() {
    let error = Backend::detect(&mut Memory::default(), Family::V6).await.unwrap_err().to_string();
    assert_eq!(error, "ip6tables is not installed: install the package iptables");
}

#[tokio::test]
async fn rules_in_the_other_back_end_are_removed() {
    let mut memory = Memory::with(&["iptables", "iptables-nft", "iptables-legacy"]);
    memory.restore("iptables-legacy", NAT).unwrap();
    memory.restore("iptables-nft", &NAT.replace("flanneld exempt", "mine")).unwrap();
    let mut kept = iptables(memory, options()).await;
    assert_eq!(kept.backend.kind(), Kind::Nft, "{}", kept.backend.because);
    kept.settle(Look::Start).await;
    kept.remove_others().await;
    assert!(!kept.exec.save("iptables-legacy", "nat").contains("FLANNEL"));
    assert_eq!(kept.faults(Look::Start).await.unwrap(), Vec::<String>::new());
}
