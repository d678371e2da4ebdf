use std::{collections::BTreeMap, os::unix::ffi::OsStringExt as _};

use super::*;

fn read(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Cli, clap::Error> {
    let environment: BTreeMap<_, _> = environment.iter().copied().collect();
    let arguments = ["flanneld"].iter().chain(arguments).map(OsString::from);
    Cli::read(arguments, |name| environment.get(name).map(OsString::from))
}

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> RunOptions {
    read(arguments, environment).unwrap().run
}

fn text<T: ToString>(value: &Option<T>) -> String {
    value.as_ref().map(T::to_string).unwrap_or_default()
}

fn path(value: &Option<PathBuf>) -> String {
    value.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
}

fn regexes(run: &RunOptions) -> Vec<String> {
    run.iface_regex.iter().map(ToString::to_string).collect()
}

/// Name, how it reads, its default with upstream, and another value.
type Flag = (&'static str, fn(&RunOptions) -> String, &'static str, &'static str);

/// flanneld's flags, all but `version`.
const UPSTREAM: [Flag; 42] = [
    (
        "etcd-endpoints",
        |run| run.etcd.etcd_endpoints.clone(),
        "http://127.0.0.1:4001,http://127.0.0.1:2379",
        "https://a:1,https://b:2",
    ),
    ("etcd-prefix", |run| run.etcd.etcd_prefix.clone(), "/coreos.com/network", "/elsewhere"),
    ("etcd-keyfile", |run| path(&run.etcd.etcd_keyfile), "", "/key.pem"),
    ("etcd-certfile", |run| path(&run.etcd.etcd_certfile), "", "/cert.pem"),
    ("etcd-cafile", |run| path(&run.etcd.etcd_cafile), "", "/ca.pem"),
    ("etcd-username", |run| text(&run.etcd.etcd_username), "", "root"),
    ("etcd-password", |run| text(&run.etcd.etcd_password), "", "hunter2"),
    ("iface", |run| run.iface.join(" "), "", "eth1"),
    ("iface-regex", |run| regexes(run).join(" "), "", "^eth,[0-9]$"),
    ("iface-can-reach", |run| text(&run.iface_can_reach), "", "192.0.2.1"),
    ("subnet-file", |run| run.subnet_file.display().to_string(), "/run/flannel/subnet.env", "/x/subnet.env"),
    ("public-ip", |run| text(&run.public_ip), "", "192.0.2.7"),
    ("public-ipv6", |run| text(&run.public_ipv6), "", "2001:db8::7"),
    ("subnet-lease-renew-margin", |run| run.subnet_lease_renew_margin.to_string(), "60", "90"),
    ("ip-masq", |run| run.ip_masq.to_string(), "false", "true"),
    ("ip-masq-fully-random-disable", |run| run.ip_masq_fully_random_disable.to_string(), "false", "true"),
    ("kube-subnet-mgr", |run| run.kube.kube_subnet_mgr.to_string(), "false", "true"),
    ("kube-api-url", |run| text(&run.kube.kube_api_url), "", "http://127.0.0.1:8080"),
    (
        "kube-annotation-prefix",
        |run| run.kube.kube_annotation_prefix.clone(),
        "flannel.alpha.coreos.com",
        "example.org/a-",
    ),
    ("kubeconfig-file", |run| path(&run.kube.kubeconfig_file), "", "/kubeconfig"),
    ("healthz-ip", |run| run.healthz_ip.to_string(), "0.0.0.0", "::1"),
    ("healthz-port", |run| run.healthz_port.to_string(), "0", "8471"),
    ("metrics-peers", |run| run.metrics_peers.to_string(), "false", "true"),
    ("iptables-resync", |run| run.iptables_resync.to_string(), "5", "30"),
    ("iptables-forward-rules", |run| run.iptables_forward_rules.to_string(), "true", "false"),
    ("ip-blackhole-route", |run| run.ip_blackhole_route.to_string(), "false", "true"),
    (
        "net-config-path",
        |run| run.kube.net_config_path.display().to_string(),
        "/etc/kube-flannel/net-conf.json",
        "/net-conf.json",
    ),
    (
        "set-node-network-unavailable",
        |run| run.kube.set_node_network_unavailable.to_string(),
        "true",
        "false",
    ),
    ("v", |run| run.v.to_string(), "0", "-7"),
    ("vmodule", |run| text(&run.vmodule), "", "lease=4,route=2"),
    ("log_backtrace_at", |run| text(&run.log_backtrace_at), "", "main.go:7"),
    // Ours follow the same rules.
    ("etcd-api", |run| format!("{:?}", run.etcd.etcd_api).to_lowercase(), "auto", "v2"),
    ("lease-file", |run| path(&run.lease_file), "", "/etc/flannel/nodes.yaml"),
    ("log-format", |run| format!("{:?}", run.log_format).to_lowercase(), "text", "json"),
    ("fast-path", |run| run.fast_path.0.label().to_owned(), "flow", "overlay"),
    ("tc-attach", |run| run.tc_attach.label().to_owned(), "auto", "clsact"),
    ("xdp", |run| format!("{:?}", run.xdp).to_lowercase(), "off", "native"),
    ("xdp-unknown-vtep", |run| run.xdp_unknown_vtep.0.label().to_owned(), "drop", "count"),
    ("bpffs", |run| run.bpffs.display().to_string(), "/sys/fs/bpf", "/bpf"),
    ("snat-exempt-mark", |run| format!("{:#x}", run.snat_exempt_mark), "0x40", "0x20"),
    ("flow-mark", |run| format!("{:#x}", run.flow_mark), "0x1000", "0x800"),
    ("bpf-log", |run| format!("{:?}", run.bpf_log).to_lowercase(), "off", "warn"),
];

#[test]
fn the_command_line_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_flag_has_its_default_its_syntax_and_its_twin() {
    let defaults = run(&[], &[]);
    for (name, value, default, other) in UPSTREAM {
        assert_eq!(value(&defaults), default, "{name}");
        let variable = format!("FLANNELD_{}", name.to_uppercase().replace('-', "_"));
        for dashes in ["-", "--"] {
            let flag = format!("{dashes}{name}");
            let joined = format!("{flag}={other}");
            assert_eq!(value(&run(&[&joined], &[])), other, "{joined}");
            assert_eq!(value(&run(&[&joined], &[(&variable, default)])), other, "{joined} over {variable}");
            if matches!(default, "true" | "false") {
                assert_eq!(value(&run(&[&flag], &[(&variable, "false")])), "true", "{flag}");
            } else {
                assert_eq!(value(&run(&[&flag, other], &[])), other, "{flag} {other}");
            }
        }
        assert_eq!(value(&run(&[], &[(&variable, other)])), other, "{variable}");
        assert_eq!(value(&run(&[], &[(&variable, "")])), default, "{variable} of nothing");
        assert_eq!(value(&run(&[&format!("--{name}=")], &[])), default, "--{name}=");
        if !matches!(name, "iface" | "iface-regex") {
            let twice = [format!("--{name}={other}"), format!("--{name}={}", value(&defaults))];
            if !default.is_empty() {
                assert_eq!(value(&run(&[&twice[0], &twice[1]], &[])), default, "the last --{name}");
            }
        }
    }
}

#[test]
fn repeatable_flags_add_up_and_take_one_value_of_the_environment() {
    let options = run(&["-iface", "eth1", "--iface=10.0.0.1", "-iface-regex=a,b"], &[]);
    assert_eq!(
        (options.iface.clone(), regexes(&options)),
        (vec!["eth1".into(), "10.0.0.1".into()], vec!["a,b".into()])
    );
    let options = run(&["--iface=eth9"], &[("FLANNELD_IFACE", "a"), ("FLANNELD_IFACE_REGEX", "b,c d")]);
    assert_eq!((options.iface.clone(), regexes(&options)), (vec!["eth9".into()], vec!["b,c d".into()]));
    let options = run(&["--snat-exempt-cidr=192.0.2.0/24", "--snat-exempt-cidr", "198.51.100.0/24"], &[]);
    assert_eq!(options.snat_exempt_cidr.len(), 2);
}

#[test]
fn a_flag_set_to_nothing_is_not_set() {
    let twins = [("FLANNELD_ETCD_PREFIX", "/env")];
    let etcd =
        run(&["-etcd-keyfile=", "--etcd-prefix=", "--etcd-cafile", "", "-etcd-endpoints="], &twins).etcd;
    assert_eq!((etcd.etcd_keyfile, etcd.etcd_cafile, etcd.etcd_prefix.as_str()), (None, None, "/env"));
    assert_eq!(etcd.etcd_endpoints, "http://127.0.0.1:4001,http://127.0.0.1:2379");
}

#[test]
fn switches_never_take_the_next_word() {
    for (arguments, ip_masq, ignored) in [
        (&["-ip-masq", "-iface=eth1"][..], true, None),
        (&["--ip-masq=f", "-iface=eth1"], false, None),
        (&["--iface=eth1", "--ip-masq", "false"], true, Some(("ip-masq", 1))),
    ] {
        let cli = read(arguments, &[]).unwrap();
        assert_eq!((cli.run.ip_masq, cli.run.iface), (ip_masq, vec!["eth1".to_owned()]), "{arguments:?}");
        assert_eq!(cli.given.ignored(), ignored);
    }
}

/// As with upstream, which does not even say so.
#[test]
fn the_first_word_that_is_no_flag_ends_them() {
    let cli = read(&["--ip-masq", "true", "--etcd-password", "hunter2", "--nonsense"], &[]).unwrap();
    assert_eq!((cli.run.ip_masq, cli.run.etcd.etcd_password.clone()), (true, None));
    assert_eq!(cli.given.ignored(), Some(("ip-masq", 4)));
    assert!(!format!("{cli:?}").contains("hunter2"));
    for arguments in [&["-v=1", "--", "--nonsense"][..], &["-v=1", "-", "--nonsense"]] {
        assert!(read(arguments, &[]).unwrap().given.ignored().is_some());
    }
    assert_eq!(read(&["-v=1", "--"], &[]).unwrap().given.ignored(), None);
    assert!(read(&["--", "bpf", "counters"], &[]).unwrap().command.is_none());
}

#[test]
fn subcommands_go_on_as_they_are() {
    for arguments in [&["bpf", "counters", "--all", "-o", "json"][..], &["-v=5", "bpf", "counters", "--all"]]
    {
        let cli = read(arguments, &[("FLANNELD_V", "nonsense")]).unwrap();
        assert!(
            matches!(cli.command, Some(Command::Bpf(cmd::bpf::BpfCommand::Counters(options))) if options.all)
        );
        assert_eq!(cli.given.ignored(), None);
    }
    let error = read(&["bpff", "counters"], &[]).unwrap_err().to_string();
    assert!(error.contains("'bpf'"), "{error}");
}

#[test]
fn flags_of_etcd_may_stand_before_and_after_etcd_migrate() {
    let environment = [("FLANNELD_ETCD_PREFIX", "/net"), ("FLANNELD_ETCD_ENDPOINTS", "http://a:1")];
    for arguments in [
        &["etcd-migrate", "--etcd-endpoints=http://b:1", "--dry-run"][..],
        &["-etcd-endpoints", "http://b:1", "etcd-migrate", "--dry-run"],
        &["--etcd-endpoints=http://c:1", "etcd-migrate", "--etcd-endpoints", "http://b:1", "--dry-run"],
    ] {
        let Some(Command::EtcdMigrate(options)) = read(arguments, &environment).unwrap().command else {
            panic!("{arguments:?}")
        };
        let etcd = &options.etcd;
        assert_eq!((etcd.etcd_endpoints.as_str(), etcd.etcd_prefix.as_str()), ("http://b:1", "/net"));
        assert!(options.dry_run);
    }
    for arguments in [&["etcd-migrate", "--force"][..], &["etcd-migrate", "--undo", "--finish"]] {
        assert!(read(arguments, &[]).is_err(), "{arguments:?}");
    }
}

#[test]
fn a_bad_variable_is_reported_and_the_default_used() {
    let twins = [
        ("FLANNELD_HEALTHZ_PORT", "99999"),
        ("FLANNELD_IP_MASQ", "yes"),
        ("FLANNELD_IPTABLES_RESYNC", "0"),
        ("FLANNELD_V", "2"),
        ("FLANNELD_NONSENSE", "x"),
        ("FLANNELD_VERSION", "true"),
        ("FLANNELD_HELP", "true"),
    ];
    let cli = read(&[], &twins).unwrap();
    assert!(!cli.version && !cli.run.ip_masq);
    assert_eq!((cli.run.healthz_port, cli.run.public_ip, cli.run.v), (0, None, 2));
    let reports = cli.given.refused();
    assert_eq!(reports.len(), 3, "{reports:?}");
    for (variable, value, remedy) in [
        ("FLANNELD_HEALTHZ_PORT: ", "'99999'", "from 1 to 65535"),
        ("FLANNELD_IP_MASQ: ", "'yes'", "true or false"),
        ("FLANNELD_IPTABLES_RESYNC: ", "'0'", "at least 1"),
    ] {
        let report = reports.iter().find(|report| report.starts_with(variable)).unwrap();
        assert!(report.contains(value) && report.contains(remedy) && !report.contains('\n'), "{report}");
    }
    assert!(read(&["--healthz-port=1"], &twins).unwrap().given.refused().len() == 2);
}

#[test]
fn variables_of_scripts_are_named_where_their_flags_are_not_given() {
    let twins = [
        ("FLANNEL_ETCD_ENDPOINTS", "http://192.0.2.1:2379"),
        ("FLANNEL_ETCD_KEY", "/atomic.io/network"),
        ("FLANNEL_IFACE", ""),
        ("FLANNEL_OPTIONS", "-iface=eth0"),
    ];
    let misnamed = |flags: &[&str], twins: &[(&str, &str)]| -> Vec<String> {
        let given = read(flags, twins).unwrap().given;
        given.misnamed().iter().map(|(name, instead)| format!("{name} {instead}")).collect()
    };
    let prefix = "FLANNEL_ETCD_KEY FLANNELD_ETCD_PREFIX";
    let endpoints = "FLANNEL_ETCD_ENDPOINTS FLANNELD_ETCD_ENDPOINTS";
    let mut found = misnamed(&[], &twins);
    found.sort();
    assert_eq!(found, [endpoints, prefix]);
    assert_eq!(misnamed(&["-etcd-endpoints=http://192.0.2.1:2379"], &twins), [prefix]);
    let both = [&twins[..], &[("FLANNELD_ETCD_PREFIX", "/atomic.io/network")]].concat();
    assert_eq!(misnamed(&[], &both), [endpoints]);
}

/// As with upstream, and for a reason: the default would be another interface, another address.
#[test]
fn a_bad_variable_that_decides_where_packets_go_is_an_error() {
    for (variable, value, flag, remedy) in [
        ("FLANNELD_PUBLIC_IP", "node1", "--public-ip=192.0.2.1", "IPv4 address"),
        ("FLANNELD_PUBLIC_IPV6", "node1", "--public-ipv6=2001:db8::1", "IPv6 address"),
        ("FLANNELD_IFACE_REGEX", "eth(0", "--iface-regex=eth0", "unclosed group"),
        ("FLANNELD_IFACE_CAN_REACH", "gateway", "--iface-can-reach=192.0.2.1", "IP address"),
        ("FLANNELD_HEALTHZ_IP", "localhost", "--healthz-ip=127.0.0.1", "IP address"),
        ("FLANNELD_SUBNET_LEASE_RENEW_MARGIN", "1440", "--subnet-lease-renew-margin=60", "1439"),
        ("FLANNELD_FAST_PATH", "OFF", "--fast-path=off", "overlay"),
        ("FLANNELD_FAST_PATH", "off ", "--fast-path=off", "overlay"),
        ("FLANNELD_XDP_UNKNOWN_VTEP", "Drop", "--xdp-unknown-vtep=drop", "drop"),
        ("FLANNELD_FLOW_MARK", "3", "--flow-mark=0x1000", "one bit"),
        ("FLANNELD_FLOW_REFRESH", "5m", "--flow-refresh=5", "5m"),
        ("FLANNELD_SNAT_EXEMPT_NODES", "yes", "--snat-exempt-nodes", "true or false"),
    ] {
        let error = read(&["--ip-masq"], &[(variable, value)]).unwrap_err();
        let text = error.to_string();
        assert!(error.exit_code() != 0 && text.contains(remedy), "{text}");
        assert!(text.starts_with(&format!("error: {variable}: ")) && text.contains(value), "{text}");
        assert!(read(&[flag], &[(variable, value)]).is_ok(), "the command line wins");
        assert!(read(&["bpf", "counters"], &[(variable, value)]).is_ok(), "not of its concern");
        let help = read(&["--help"], &[(variable, value)]).unwrap_err();
        assert_eq!(help.kind(), ErrorKind::DisplayHelp);
        assert!(read(&["--version"], &[(variable, value)]).unwrap().version);
    }
    let cli = read(&[], &[("FLANNELD_SUBNET_LEASE_RENEW_MARGIN", "soon")]).unwrap();
    assert_eq!((cli.run.subnet_lease_renew_margin, cli.given.refused().len()), (60, 1));
}

#[test]
fn flows_are_asked_for_by_flag_or_variable() {
    let asked = |run: RunOptions| (run.fast_path.0.label(), run.flow_refresh, run.flow_table_size);
    assert_eq!(asked(run(&["-flow-refresh", "5"], &[])), ("flow", 5, 65_536));
    let variables = [
        ("FLANNELD_FAST_PATH", "all"),
        ("FLANNELD_FLOW_REFRESH", "7"),
        ("FLANNELD_FLOW_TABLE_SIZE", "200000"),
    ];
    assert_eq!(asked(run(&[], &variables)), ("all", 7, 200_000));
    assert_eq!(asked(run(&["--flow-table-size=1024"], &[])), ("flow", 30, 1024));
}

#[test]
fn wrong_values_name_flag_and_remedy() {
    for (arguments, words) in [
        (&["--fast-path=fast"][..], &["'fast'", "--fast-path", "overlay"][..]),
        (&["--flow-refresh=0"], &["'0'", "--flow-refresh", "1..=30"]),
        (&["--flow-refresh=31"], &["'31'", "--flow-refresh", "1..=30"]),
        (&["--flow-table-size=0"], &["'0'", "--flow-table-size", "1024"]),
        (&["--public-ip", "node1"], &["'node1'", "--public-ip", "IPv4 address"]),
        (&["--subnet-lease-renew-margin=1440"], &["'1440'", "--subnet-lease-renew-margin", "1439"]),
        (&["-healthz-port=http"], &["'http'", "--healthz-port", "65535"]),
        (&["-healthz-ip=localhost"], &["'localhost'", "--healthz-ip", "IP address"]),
        (&["-fast-path-hold=4"], &["'4'", "--fast-path-hold", "at least 5"]),
        (&["-iptables-resync=0"], &["'0'", "--iptables-resync", "at least 1"]),
        (&["-ip-masq=maybe"], &["'maybe'", "--ip-masq", "true or false"]),
        (&["-log-format=xml"], &["'xml'", "--log-format", "json"]),
        (&["-v=x"], &["'x'", "--v", "number"]),
        (&["--iface-regex=eth(0"], &["--iface-regex", "eth(0", "unclosed group", "write one as"]),
        (&["--iface-can-reach=gateway"], &["--iface-can-reach", "gateway"]),
        (&["--ifcae=eth0"], &["--ifcae", "--iface"]),
        (&["-etcd-endpoint", "http://a:1"], &["--etcd-endpoints"]),
        (&["--iface"], &["--iface", "value is required"]),
        (&["--=eth0"], &["no flag"]),
        (&["---iface"], &["no flag"]),
    ] {
        let error = read(arguments, &[]).unwrap_err();
        assert_ne!(error.exit_code(), 0);
        for word in words {
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}

#[test]
fn what_a_command_expects_is_said_of_what_it_was_given() {
    let ends = ["10.244.1.2", "10.244.2.3"];
    for (arguments, words) in [
        (&["status", "--watch=-1"][..], ["--watch", "'-1'", "a number of seconds, 1 to 3600"]),
        (&["peers", "--traffic=-1"], ["--traffic", "'-1'", "a number of seconds, 1 to 60"]),
        (&["top", "--interval=-1"], ["--every", "'-1'", "a number of seconds, 1 to 60"]),
        (&["top", "--count=0"], ["--count", "'0'", "a number of looks, 1 or more"]),
        (&["trace", "foo"], ["END", "'foo'", "an IP address or a prefix, as 10.244.1.2"]),
        (&["monitor", "--port=http"], ["--port", "'http'", "a port, 0 to 65535"]),
        (&["explain", "foo", "bar"], ["SRC", "'foo'", "an IP address, as 10.244.1.2"]),
        (&["explain", ends[0], ends[1], "--ttl=300"], ["--ttl", "'300'", "a number of hops, 0 to 255"]),
    ] {
        let error = read(arguments, &[]).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
    }
    // It is no value of anything.
    let error = read(&["top", "--intreval=3"], &[]).unwrap_err().to_string();
    assert!(error.contains("'--intreval'") && !error.contains("as a value"), "{error}");
    let Some(Command::Top(top)) = read(&["top", "--interval=3"], &[]).unwrap().command else {
        panic!("no top")
    };
    assert_eq!(top.every, 3);
}

#[test]
fn words_that_are_not_utf8_are_paths_or_errors() {
    let word = |text: &[u8]| OsString::from_vec(text.to_vec());
    let read = |argument: &[u8]| Cli::read([word(b"flanneld"), word(argument)], |_| None);
    assert_eq!(read(b"--subnet-file=/\xff").unwrap().run.subnet_file, PathBuf::from(word(b"/\xff")));
    assert!(read(b"--iface=\xff").is_err() && read(b"--\xff=1").is_err() && read(b"\xff").is_err());
    let cli =
        Cli::read([word(b"flanneld")], |name| (name == "FLANNELD_IFACE").then(|| word(b"\xff"))).unwrap();
    assert_eq!((cli.run.iface.len(), cli.given.refused().len()), (0, 1));
}

#[test]
fn help_is_grouped_and_compact() {
    for flag in ["-h", "-help", "--help", "--h"] {
        let error = read(&["-v=1", flag], &[]).unwrap_err();
        assert_eq!((error.kind(), error.exit_code()), (ErrorKind::DisplayHelp, 0));
        let help = error.to_string();
        for heading in ["etcd:", "Kubernetes:", "Network:", "Rules:", "Health:", "eBPF:", "Log:"] {
            assert_eq!(help.lines().filter(|line| *line == heading).count(), 1, "{help}");
        }
        assert!(help.contains("Usage: flanneld ") && help.contains("FLANNELD_"), "{help}");
        assert!(help.lines().count() < 150, "{} lines: {help}", help.lines().count());
    }
    let help = read(&["bpf", "counters", "--help"], &[]).unwrap_err();
    assert_eq!(help.kind(), ErrorKind::DisplayHelp);
    assert!(help.to_string().contains("Usage: flanneld bpf counters"), "{help}");
}

#[test]
fn two_marks_of_one_bit_are_refused() {
    let (own, default) = (["--flow-mark=0x20", "--snat-exempt-mark=32"], ["--flow-mark=0x40"]);
    for (arguments, bit) in [(&own[..], "0x20"), (&default[..], "0x40")] {
        let error = read(arguments, &[]).unwrap_err().to_string();
        assert!(error.contains(&format!("are both {bit}: give each a bit of its own")), "{error}");
    }
    assert!(read(&[], &[("FLANNELD_FLOW_MARK", "0x40")]).is_err());
    let other = run(&["--flow-mark=0x40", "--snat-exempt-mark=0x1000"], &[]).marks();
    assert_eq!((other.exempt, other.flow), (0x1000, 0x40));
}

#[test]
fn secrets_are_never_shown() {
    let secrets = ["--etcd-password=hunter2", "--etcd-endpoints=http://root:hunter2@a:1"];
    let cli = read(&secrets, &[("FLANNELD_KUBE_API_URL", "http://u:hunter2@a:1")]).unwrap();
    let twins = [("FLANNELD_ETCD_PASSWORD", "hunter2"), ("FLANNELD_ETCD_ENDPOINTS", "http://u:hunter2@a:1")];
    let by_environment = read(&[], &twins).unwrap();
    assert_eq!(by_environment.run.etcd.etcd_password.as_deref(), Some("hunter2"));
    for shown in [format!("{:?}", cli.given), format!("{:?}", cli.run.etcd), format!("{by_environment:?}")] {
        assert!(!shown.contains("hunter2") && shown.contains(HIDDEN), "{shown}");
    }
    for misspelled in [
        &["--etcd-pasword=hunter2"][..],
        &["--etcd-pasword", "hunter2"],
        &["---etcd-password=hunter2"],
        &["--=hunter2"],
        &["--etcd-password=hunter2", "--nonsense"],
        &["--etcd-password=hunter2", "-v=x"],
    ] {
        let error = read(misspelled, &[]).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn what_changes_nothing_is_named() {
    let without_effect = |arguments: &[&str]| -> Vec<String> {
        let cli = read(arguments, &[]).unwrap();
        cli.given.without_effect(&cli.run).into_iter().map(|(flags, _)| flags).collect()
    };
    let both = ["--etcd-prefix=/x", "--net-config-path=/x", "--vmodule=a=1"];
    assert_eq!(without_effect(&both), ["--net-config-path", "--vmodule"]);
    let in_kubernetes = [&["--kube-subnet-mgr"], &both[..]].concat();
    assert_eq!(without_effect(&in_kubernetes), ["--etcd-prefix", "--vmodule"]);
    assert!(without_effect(&[]).is_empty());
}

proptest::proptest! {
    #[test]
    fn reading_never_panics(arguments in proptest::collection::vec(
        "-{0,3}(iface|v|h|ip-masq|etcd-password|bpf|[a-z=]{0,3})(=[a-z0-9]{0,3})?|\\PC{0,4}", 0..5)) {
        let _ = Cli::read(std::iter::once("flanneld".to_owned()).chain(arguments).map(OsString::from), |_| None);
    }
}
