use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use proptest::prelude::*;
use tokio::{sync::watch, time::timeout};

use super::*;

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn set<const N: usize>(all: [&str; N]) -> BTreeSet<IpNetwork> {
    all.into_iter().map(net).collect()
}

#[test]
fn a_prefix_is_a_network_or_a_host() {
    assert_eq!(prefix("192.0.2.0/24"), Ok(net("192.0.2.0/24")));
    assert_eq!(prefix("192.0.2.77/24"), Ok(net("192.0.2.0/24")));
    assert_eq!(prefix("192.0.2.7"), Ok(net("192.0.2.7/32")));
    assert_eq!(prefix("2001:db8:1::7/32"), Ok(net("2001:db8::/32")));
    assert_eq!(prefix("2001:db8::7"), Ok(net("2001:db8::7/128")));
    for (text, part) in [
        ("0.0.0.0/0", "every destination"),
        ("10.0.0.0/0", "every destination"),
        ("::/0", "every destination"),
        ("10.0.0.0/33", "write a network"),
        ("10.0.0/8", "write a network"),
        ("2001:db8::/129", "write a network"),
        ("", "write a network"),
    ] {
        let error = prefix(text).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn a_file_is_networks_comments_and_empty_lines() {
    let text = "# ours\n192.0.2.0/24\n\n  198.51.100.7   # the printer\r\n2001:db8::/32\n192.0.2.0/24";
    assert_eq!(parse(text), Ok(set(["192.0.2.0/24", "198.51.100.7/32", "2001:db8::/32"])));
    assert_eq!(parse(""), Ok(BTreeSet::new()));
    let error = parse("# one\n192.0.2.0/24\n10.0.0.0/99 # typo\n").unwrap_err().to_string();
    assert!(error.starts_with("line 3: \"10.0.0.0/99\": write"), "{error}");
    let error = parse("192.0.2.0/24 198.51.100.0/24").unwrap_err().to_string();
    assert!(error.starts_with("line 1: \"192.0.2.0/24 198"), "{error}");
}

#[test]
fn the_flags_that_are_set_have_names() {
    let flags = Flags { prefixes: set(["192.0.2.0/24"]), file: Some("/x".into()), nodes: true };
    assert_eq!(flags.names(), ["--snat-exempt-cidr", "--snat-exempt-file", "--snat-exempt-nodes"]);
    assert_eq!(Flags::default().names(), [""; 0]);
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "[0-9./#a-f: \n]{0,60}") {
        if let Err(error) = parse(&text) {
            prop_assert!(error.line >= 1 && error.line <= text.lines().count());
        }
    }
}

async fn becomes(told: &mut watch::Receiver<Exemptions>, expected: BTreeSet<IpNetwork>) {
    let same = told.wait_for(|now| now.prefixes == expected);
    timeout(Duration::from_secs(10), same).await.expect("in time").expect("still told");
}

async fn stays(told: &watch::Receiver<Exemptions>, expected: BTreeSet<IpNetwork>) {
    tokio::time::sleep(Duration::from_millis(1600)).await;
    assert_eq!(told.borrow().prefixes, expected);
}

fn follow(path: &Path) -> impl Future<Output = watch::Receiver<Exemptions>> {
    Flags { prefixes: set(["10.0.0.0/8"]), file: Some(path.to_owned()), nodes: true }.follow()
}

#[tokio::test]
async fn a_file_is_followed_however_it_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("exempt");
    fs::write(&path, "192.0.2.0/24\n").unwrap();
    let mut told = follow(&path).await;
    assert!(told.borrow().nodes);
    assert_eq!(told.borrow().prefixes, set(["10.0.0.0/8", "192.0.2.0/24"]), "read before anything else");

    // In place, of the same length.
    fs::write(&path, "192.0.3.0/24\n").unwrap();
    becomes(&mut told, set(["10.0.0.0/8", "192.0.3.0/24"])).await;
    // By rename, as editors do.
    let other = directory.path().join("exempt.new");
    fs::write(&other, "192.0.4.0/24\n192.0.5.0/24\n").unwrap();
    fs::rename(&other, &path).unwrap();
    becomes(&mut told, set(["10.0.0.0/8", "192.0.4.0/24", "192.0.5.0/24"])).await;
    // A bad line, and then the file gone: what was good stays.
    fs::write(&path, "192.0.6.0/24\nnonsense\n").unwrap();
    stays(&told, set(["10.0.0.0/8", "192.0.4.0/24", "192.0.5.0/24"])).await;
    fs::remove_file(&path).unwrap();
    stays(&told, set(["10.0.0.0/8", "192.0.4.0/24", "192.0.5.0/24"])).await;
    fs::write(&path, "").unwrap();
    becomes(&mut told, set(["10.0.0.0/8"])).await;
}

#[tokio::test]
async fn a_file_that_is_absent_is_picked_up_and_followed_through_links() {
    // As a ConfigMap is mounted: the file is a link through a directory that is a link.
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let mut told = follow(&at("exempt")).await;
    assert_eq!(told.borrow().prefixes, set(["10.0.0.0/8"]));
    for (version, network) in [("v1", "192.0.2.0/24"), ("v2", "192.0.3.0/24")] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("exempt"), network).unwrap();
        symlink(version, at("data_tmp")).unwrap();
        fs::rename(at("data_tmp"), at("data")).unwrap();
        if !at("exempt").exists() {
            symlink("data/exempt", at("exempt")).unwrap();
        }
        becomes(&mut told, set(["10.0.0.0/8", network])).await;
    }
}

#[tokio::test]
async fn what_is_no_file_is_not_waited_for() {
    let told = follow(Path::new("/dev/zero")).await;
    assert_eq!(told.borrow().prefixes, set(["10.0.0.0/8"]));
}
