use super::*;
use crate::masq::rules::{RuleOptions, tests::options};
use flannel_common::mark::FLOW_MARK;
use memory::Memory;

mod memory;
mod starts;

fn options_v6() -> RuleOptions {
    RuleOptions {
        network: "fd00:10:244::/48".parse().unwrap(),
        subnet: "fd00:10:244:1::/64".parse().unwrap(),
        ..options()
    }
}

async fn iptables(memory: Memory, options: RuleOptions) -> Iptables<Memory> {
    let rules =
        |capable| RuleSet::new(&RuleOptions { random_fully: options.random_fully && capable, ..options });
    let families = Families { own: Family::of_network(options.network), without: Vec::new() };
    Iptables::detect(memory, families, vec![options.network], rules).await.unwrap()
}

impl Iptables<Memory> {
    /// Looks, repairs, and looks again: nothing may be left.
    async fn settle(&mut self, look: Look) {
        if !self.faults(look).await.unwrap().is_empty() {
            self.repair(look).await.unwrap();
        }
        assert_eq!(self.faults(look).await.unwrap(), Vec::<String>::new());
    }

    fn rules(&mut self, table: &str, chain: &str) -> Vec<String> {
        let back_end = self.backend.program(self.rules.family, "");
        self.exec.chain(&back_end, table, chain).cloned().unwrap_or_default()
    }

    fn change(&mut self, table: &str, chain: &str, change: impl FnOnce(&mut Vec<String>)) {
        let back_end = self.backend.program(self.rules.family, "");
        change(self.exec.chain(&back_end, table, chain).unwrap());
    }
}

const NAT: &str = r#"*nat
:PREROUTING - [0:0]
:INPUT - [0:0]
:OUTPUT - [0:0]
:POSTROUTING - [0:0]
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -s 10.244.1.0/24 -m mark --mark 0x40/0x4040 -m comment --comment "flanneld exempt" -j RETURN
-A POSTROUTING -s 10.244.1.0/24 -d 10.244.0.0/16 -m iprange ! --dst-range 10.244.1.0-10.244.1.255 -m mark ! --mark 0x4000/0x4000 -m comment --comment "flanneld exempt" -j RETURN
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.1.0/24 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 -d 10.244.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
COMMIT
"#;

const FILTER: &str = r#"*filter
:INPUT - [0:0]
:FORWARD - [0:0]
:OUTPUT - [0:0]
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
"#;

#[tokio::test]
async fn rules_of_ipv4_are_upstreams_in_its_order() {
    let mut kept = iptables(Memory::with(&["iptables"]), options()).await;
    kept.settle(Look::Start).await;
    assert_eq!(kept.exec.save("iptables", "nat"), NAT);
    assert_eq!(kept.exec.save("iptables", "filter"), FILTER);
}

#[tokio::test]
async fn rules_of_ipv6_are_the_same_with_its_networks() {
    let mut kept = iptables(Memory::with(&["ip6tables"]), options_v6()).await;
    kept.settle(Look::Start).await;
    let six = |text: &str| {
        text.replace("10.244.1.0-10.244.1.255", "fd00:10:244:1::-fd00:10:244:1:ffff:ffff:ffff:ffff")
            .replace("10.244.0.0/16", "fd00:10:244::/48")
            .replace("10.244.1.0/24", "fd00:10:244:1::/64")
            .replace("224.0.0.0/4", "ff00::/8")
    };
    assert_eq!(kept.exec.save("ip6tables", "nat"), six(NAT));
    assert_eq!(kept.exec.save("ip6tables", "filter"), six(FILTER));
}

#[tokio::test]
async fn without_flags_only_the_exemption_of_peers_is_left() {
    let options = RuleOptions { ip_masq: false, forward: false, exempt_mark: None, ..options() };
    let mut kept = iptables(Memory::with(&["iptables"]), options).await;
    kept.settle(Look::Start).await;
    let all = kept.exec.save("iptables", "nat") + &kept.exec.save("iptables", "filter");
    let rules: Vec<&str> = all.lines().filter(|line| line.starts_with("-A")).collect();
    let exemption = NAT.lines().find(|line| line.contains("iprange")).unwrap();
    assert_eq!(rules, [exemption]);
    assert!(!all.contains("FLANNEL-"), "{all}");
}

#[tokio::test]
async fn ports_are_random_only_if_wanted_and_iptables_is_not_too_old() {
    let old = Memory::of_version("iptables v1.6.1");
    let unwanted = RuleOptions { random_fully: false, ..options() };
    for (memory, options) in [(old, options()), (Memory::with(&["iptables"]), unwanted)] {
        let mut kept = iptables(memory, options).await;
        kept.settle(Look::Start).await;
        assert_eq!(kept.exec.save("iptables", "nat"), NAT.replace(" --random-fully", ""));
    }
    let old = Memory::of_version("iptables v1.6.1");
    assert_eq!(iptables(old, options()).await.backend.restore_arguments(), ["--noflush"]);
    let new = iptables(Memory::with(&["iptables"]), options()).await;
    assert_eq!(new.backend.restore_arguments(), ["--noflush", "--wait"]);
}

const MANGLE: &str = r#"*mangle
:PREROUTING - [0:0]
:INPUT - [0:0]
:FORWARD - [0:0]
:OUTPUT - [0:0]
:POSTROUTING - [0:0]
:FLANNEL-FLOW - [0:0]
-A POSTROUTING -m comment --comment "flanneld flow" -j FLANNEL-FLOW
-A FLANNEL-FLOW -s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment "flanneld flow" -j MARK --set-xmark 0x0/0x1000
-A FLANNEL-FLOW -s 10.244.0.0/16 -d 10.244.0.0/16 -m conntrack --ctstate SNAT,DNAT --ctorigdst 10.244.0.0/16 -m comment --comment "flanneld flow" -j RETURN
-A FLANNEL-FLOW -s 10.244.0.0/16 -d 10.244.0.0/16 -m conntrack --ctstate ESTABLISHED -m comment --comment "flanneld flow" -j MARK --set-xmark 0x1000/0x1000
COMMIT
"#;

/// Behind what others have in mangle, be it there before or not; and gone with the fast path that needs it. A
/// table that nobody needs is not even looked at, which would make it.
#[tokio::test]
async fn flows_are_marked_where_programs_learn_them() {
    let flowing = RuleOptions { flow_mark: Some(FLOW_MARK), ..options() };
    let mut kept = iptables(Memory::with(&["iptables"]), flowing).await;
    kept.settle(Look::Start).await;
    assert_eq!(kept.exec.save("iptables", "mangle"), MANGLE);
    kept.change("mangle", "FLANNEL-FLOW", |rules| rules.swap(0, 1));
    kept.settle(Look::Resync).await;
    assert_eq!(kept.exec.save("iptables", "mangle"), MANGLE);
    // A helper needs each packet of its flows.
    kept.exec.chains("iptables", "raw");
    kept.change("raw", "OUTPUT", |rules| rules.push("-p tcp -m tcp --dport 21 -j CT --helper ftp".into()));
    kept.settle(Look::Resync).await;
    let rules = kept.rules("mangle", "FLANNEL-FLOW");
    assert_eq!(rules.len(), 4, "{rules:?}");
    assert!(rules[1].contains("-p tcp -m tcp --dport 21 ") && rules[1].ends_with("-j RETURN"), "{rules:?}");
    kept.change("mangle", "POSTROUTING", |rules| rules.insert(0, "-j TTL --ttl-inc 1".into()));
    kept.settle(Look::Resync).await;
    let last = kept.rules("mangle", "POSTROUTING").pop().unwrap();
    assert!(last.ends_with("-j FLANNEL-FLOW"), "{last}");
    // So does a rule that counts packets, and both are forgotten with their rules.
    kept.change("filter", "FORWARD", |rules| rules.insert(0, "-p udp -j NFQUEUE --queue-num 1".into()));
    kept.settle(Look::Resync).await;
    let rules = kept.rules("mangle", "FLANNEL-FLOW");
    assert!(rules.len() == 5 && rules[2].contains("-p udp "), "{rules:?}");
    assert_eq!(kept.each_packet(), ["-A FORWARD -p udp -j NFQUEUE --queue-num 1"]);
    kept.change("raw", "OUTPUT", |rules| rules.clear());
    kept.change("filter", "FORWARD", |rules| drop(rules.remove(0)));
    kept.change("mangle", "FLANNEL-FLOW", |rules| rules.push("-j ACCEPT".into()));
    kept.settle(Look::Resync).await;
    let rules = kept.rules("mangle", "FLANNEL-FLOW");
    assert!(rules.len() == 4 && rules[3] == "-j ACCEPT", "what is another's stays: {rules:?}");

    let mut without = iptables(kept.exec, options()).await;
    without.settle(Look::Start).await;
    without.remove_others().await;
    assert_eq!(without.rules("mangle", "POSTROUTING"), ["-j TTL --ttl-inc 1"]);
    assert!(!without.exec.save("iptables", "mangle").contains("FLANNEL"));
    let mut never = iptables(Memory::with(&["iptables"]), options()).await;
    never.settle(Look::Start).await;
    never.remove_others().await;
    assert!(never.exec.restores.iter().all(|input| !input.contains("mangle")), "{:?}", never.exec.restores);
    assert!(!never.exec.has_table("iptables", "mangle"));
}

/// Upstream's TestRules: the input of restore, the comment in quotes.
#[test]
fn restore_payload_with_quoted_comments() {
    let [nat, filter, _] = Table::of(&RuleSet::new(&options()), &[]);
    let payload = r#"*filter
:FLANNEL-FWD - [0:0]
-A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
COMMIT
"#;
    assert_eq!(filter.restore(&Saved::default().table("filter"), Look::Start), payload);
    // Of a table whose rules are whole but for one jump, nothing else is touched.
    let saved = Saved::parse(
        &NAT.replace("-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n", ""),
    );
    let payload = r#"*nat
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
COMMIT
"#;
    assert_eq!(nat.restore(&saved.table("nat"), Look::Resync), payload);
}

/// Upstream's TestDeleteRules: six rules, their jump, and all of them gone again.
#[tokio::test]
async fn masquerade_rules_are_deleted_with_chain_and_jump() {
    let mut kept = iptables(Memory::with(&["iptables"]), options()).await;
    kept.settle(Look::Start).await;
    assert_eq!(
        kept.rules("nat", "FLANNEL-POSTRTG").len() + kept.rules("nat", "POSTROUTING").len(),
        6 + 1 + 2
    );
    let mut memory = kept.exec;
    remove(&mut memory, &[]).await;
    assert!(!memory.save("iptables", "nat").contains("-A "), "{memory:?}");
    assert!(!memory.save("iptables", "nat").contains("FLANNEL"), "{memory:?}");
}

/// Upstream's TestDeleteMoreRules: both tables, and nothing of anybody else's.
#[tokio::test]
async fn rules_of_two_tables_are_deleted_and_others_stay() {
    let mut kept = iptables(Memory::with(&["iptables"]), options()).await;
    let foreign = "-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE";
    kept.exec.chain("iptables", "nat", "POSTROUTING").unwrap().push(foreign.to_owned());
    kept.exec.chain("iptables", "filter", "FORWARD").unwrap().push("-j DOCKER-USER".to_owned());
    kept.settle(Look::Start).await;
    let mut memory = kept.exec;
    remove(&mut memory, &[]).await;
    let all = memory.save("iptables", "nat") + &memory.save("iptables", "filter");
    let rules: Vec<&str> = all.lines().filter(|line| line.starts_with("-A")).collect();
    assert_eq!(rules, [&format!("-A POSTROUTING {foreign}"), "-A FORWARD -j DOCKER-USER"]);
}

/// Upstream's TestBootstrapRules: a second start finds the rules. Where upstream deletes and appends each
/// again, nothing is done.
#[tokio::test]
async fn second_start_finds_the_rules_of_the_first() {
    let mut kept = iptables(Memory::with(&["iptables"]), options()).await;
    kept.settle(Look::Start).await;
    kept.exec.restores.clear();
    let mut again = iptables(kept.exec, options()).await;
    again.settle(Look::Start).await;
    assert_eq!(again.exec.restores, Vec::<String>::new());
}

/// Upstream's TestDeleteIP6Rules.
#[tokio::test]
async fn ipv6_rules_are_deleted() {
    let mut kept = iptables(Memory::with(&["ip6tables"]), options_v6()).await;
    kept.settle(Look::Start).await;
    let mut memory = kept.exec;
    remove(&mut memory, &[]).await;
    assert!(!memory.save("ip6tables", "nat").contains("-A "), "{memory:?}");
}

/// Upstream's TestEnsureRules and TestEnsureIP6Rules: rules beside others', and nothing done twice.
#[tokio::test]
async fn rules_are_ensured_beside_others_and_not_twice() {
    for (program, options) in [("iptables", options()), ("ip6tables", options_v6())] {
        let mut memory = Memory::with(&[program]);
        memory.chain(program, "nat", "POSTROUTING").unwrap().push("-j KUBE-POSTROUTING".to_owned());
        let mut kept = iptables(memory, options).await;
        kept.settle(Look::Start).await;
        assert_eq!(kept.exec.restores.len(), 2, "{:?}", kept.exec.restores);
        let postrouting = kept.rules("nat", "POSTROUTING");
        assert_eq!(postrouting[2], "-j KUBE-POSTROUTING");
        assert!(postrouting[3].ends_with("-j FLANNEL-POSTRTG"), "{postrouting:?}");
        kept.settle(Look::Resync).await;
        assert_eq!(kept.exec.restores.len(), 2, "{:?}", kept.exec.restores);
    }
}

#[tokio::test]
async fn every_damage_is_seen_named_and_repaired() {
    type Damage = fn(&mut Iptables<Memory>);
    let damages: [(&str, Damage); 9] = [
        ("2 of 2 exemptions are missing from POSTROUTING", |kept| {
            kept.change("nat", "POSTROUTING", Vec::clear);
        }),
        ("the exemptions do not come first in POSTROUTING: `-s 172.17.0.0/16 -j MASQUERADE` does", |kept| {
            kept.change("nat", "POSTROUTING", |rules| {
                rules.insert(0, "-s 172.17.0.0/16 -j MASQUERADE".into());
            });
        }),
        ("1 of 2 exemptions are missing from POSTROUTING", |kept| {
            kept.change("nat", "POSTROUTING", |rules| drop(rules.remove(0)));
        }),
        ("the jump to FLANNEL-POSTRTG is missing from POSTROUTING", |kept| {
            kept.change("nat", "POSTROUTING", |rules| rules.truncate(2));
        }),
        ("1 of 6 rules are missing from FLANNEL-POSTRTG", |kept| {
            kept.change("nat", "FLANNEL-POSTRTG", |rules| drop(rules.remove(2)));
        }),
        ("the rules of FLANNEL-POSTRTG are not those, or not in the order, wanted", |kept| {
            kept.change("nat", "FLANNEL-POSTRTG", |rules| rules.swap(1, 4));
        }),
        ("chain FLANNEL-POSTRTG is missing", |kept| {
            kept.change("nat", "POSTROUTING", |rules| rules.truncate(2));
            kept.exec.chains("iptables", "nat").retain(|(name, _)| name != "FLANNEL-POSTRTG");
        }),
        ("the jump to FLANNEL-FWD is missing from FORWARD", |kept| {
            kept.change("filter", "FORWARD", Vec::clear);
        }),
        ("2 of 2 rules are missing from FLANNEL-FWD", |kept| {
            kept.change("filter", "FLANNEL-FWD", Vec::clear)
        }),
    ];
    for (fault, damage) in damages {
        let mut kept = iptables(Memory::with(&["iptables"]), options()).await;
        kept.settle(Look::Start).await;
        damage(&mut kept);
        let faults = kept.faults(Look::Resync).await.unwrap();
        assert!(faults.iter().any(|found| found == fault), "{fault}: {faults:?}");
        kept.settle(Look::Resync).await;
        kept.exec.chain("iptables", "nat", "POSTROUTING").unwrap().retain(|rule| !rule.starts_with("-s 172"));
        assert_eq!(kept.exec.save("iptables", "nat"), NAT, "{fault}");
        assert_eq!(kept.exec.save("iptables", "filter"), FILTER, "{fault}");
    }
}

/// A second flanneld has the same chains; an administrator's rule is left, too.
#[tokio::test]
async fn two_daemons_of_other_networks_do_not_fight() {
    let theirs = RuleOptions {
        network: "10.9.0.0/16".parse().unwrap(),
        subnet: "10.9.3.0/24".parse().unwrap(),
        ..options()
    };
    let mut one = iptables(Memory::with(&["iptables"]), options()).await;
    one.settle(Look::Start).await;
    let mut two = iptables(one.exec, theirs).await;
    two.settle(Look::Start).await;
    one.exec = two.exec.clone();
    one.settle(Look::Resync).await;
    one.change("nat", "FLANNEL-POSTRTG", |rules| rules.insert(0, "-d 192.0.2.0/24 -j RETURN".into()));
    two.exec = one.exec.clone();
    assert_eq!(two.faults(Look::Resync).await.unwrap(), Vec::<String>::new());
    assert_eq!(one.faults(Look::Resync).await.unwrap(), Vec::<String>::new());
}
