use std::collections::BTreeMap;

use super::*;

fn read(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Cli, clap::Error> {
    let environment: BTreeMap<_, _> = environment.iter().copied().collect();
    let arguments = ["flanneld"].iter().chain(arguments).map(OsString::from);
    Cli::read(arguments, |name| environment.get(name).map(OsString::from))
}

#[test]
fn the_command_line_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn one_dash_and_two_mean_the_same() {
    for arguments in [
        &["-iface", "eth1", "-v=4", "-public-ip=192.0.2.7"][..],
        &["--iface=eth1", "-v", "4", "--public-ip", "192.0.2.7"],
        &["-iface=eth1", "--v=4", "-public-ip", "192.0.2.7"],
    ] {
        let run = read(arguments, &[]).unwrap().run;
        assert_eq!((run.iface, run.v), (vec!["eth1".to_owned()], 4));
        assert_eq!(run.public_ip, Some(Ipv4Addr::new(192, 0, 2, 7)));
    }
}

#[test]
fn the_command_line_wins_over_the_environment_and_that_over_defaults() {
    let twins = [("FLANNELD_ETCD_PREFIX", "/env"), ("FLANNELD_V", "3"), ("FLANNELD_IFACE", "")];
    let run = read(&["--etcd-prefix=/line"], &twins).unwrap().run;
    assert_eq!((run.etcd.etcd_prefix.as_str(), run.v), ("/line", 3));
    assert!(run.iface.is_empty(), "an empty variable is none");
    let run = read(&[], &[]).unwrap().run;
    assert_eq!(run.etcd.etcd_endpoints, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
    assert_eq!(run.fast_path, FastPath(layout::FastPath::Overlay));
}

#[test]
fn a_flag_set_to_nothing_is_not_set() {
    let twins = [("FLANNELD_ETCD_PREFIX", "/env")];
    let etcd = read(&["-etcd-keyfile=", "--etcd-prefix="], &twins).unwrap().run.etcd;
    assert_eq!((etcd.etcd_keyfile, etcd.etcd_prefix.as_str()), (None, "/env"));
}

#[test]
fn wrong_values_name_flag_and_remedy() {
    for (arguments, words) in [
        (&["--fast-path=fast"][..], &["--fast-path", "overlay"][..]),
        (&["--public-ip=node1"], &["--public-ip", "IPv4 address"]),
        (&["--iface-regex=eth(0"], &["--iface-regex", "eth(0", "unclosed group", "write one as"]),
        (&["--iface-can-reach=gateway"], &["--iface-can-reach", "gateway"]),
        (&["--subnet-lease-renew-margin=1440"], &["--subnet-lease-renew-margin", "1439"]),
        (&["--ifcae=eth0"], &["--iface"]),
    ] {
        let error = read(arguments, &[]).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{error}");
        }
    }
}

#[test]
fn the_password_is_never_shown() {
    let cli = read(&["--etcd-password=hunter2"], &[]).unwrap();
    assert!(!format!("{cli:?}").contains("hunter2"));
}
