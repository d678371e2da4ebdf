//! Whole calls of the plugin, with a delegate that is a piece of shell.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
};

use tempfile::TempDir;

use super::*;

/// A directory with a delegate in it that notes what it is told and answers by `answer`, a piece of shell.
struct Stage {
    dir: TempDir,
}

impl Stage {
    fn new(answer: &str) -> Self {
        let stage = Self { dir: tempfile::tempdir().unwrap() };
        fs::write(stage.at("subnet.env"), V4).unwrap();
        fs::create_dir(stage.at("bin")).unwrap();
        let told = stage.at("told").display().to_string();
        let script = format!(
            "#!/bin/sh\necho \"$CNI_COMMAND $CNI_CONTAINERID $EXTRA\" >>{told}.env\ncat >{told}\n{answer}\n"
        );
        let plugin = stage.at("bin/bridge");
        fs::write(&plugin, script).unwrap();
        fs::set_permissions(plugin, Permissions::from_mode(0o755)).unwrap();
        stage
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn conf(&self, further: Value) -> Value {
        let mut conf = json!({
            "name": "net", "cniVersion": "1.1.0", "type": "flannel",
            "subnetFile": self.at("subnet.env"), "dataDir": self.at("data"),
        });
        conf.as_object_mut().unwrap().extend(further.as_object().unwrap().clone());
        conf
    }

    fn call(&self, verb: &str, conf: &Value) -> Result<Answer, CniError> {
        let environment = |name: &str| {
            let value = match name {
                "CNI_COMMAND" => verb.into(),
                "CNI_CONTAINERID" => "pod-1".into(),
                "CNI_IFNAME" => "eth0".into(),
                "CNI_NETNS" => self.at("subnet.env").into_os_string(),
                "CNI_PATH" => std::env::join_paths([Path::new("/nonexistent"), &self.at("bin")]).unwrap(),
                _ => return None,
            };
            Some(value)
        };
        answer(environment, &mut conf.to_string().as_bytes(), &mut String::new())
    }

    fn told(&self) -> Value {
        serde_json::from_slice(&fs::read(self.at("told")).unwrap()).unwrap()
    }
}

#[test]
fn add_keeps_what_it_delegates_and_del_takes_it_back() {
    let stage = Stage::new(r#"echo '{"cniVersion":"1.1.0","ips":[]}'"#);
    let conf = stage.conf(json!({}));
    let result = stage.call("ADD", &conf).unwrap();
    assert_eq!(result, Answer::Text(b"{\"cniVersion\":\"1.1.0\",\"ips\":[]}\n".to_vec()));
    let told = stage.told();
    assert_eq!(told, delegate_of(&conf, V4));
    let state = stage.at("data/pod-1");
    assert_eq!(serde_json::from_slice::<Value>(&fs::read(&state).unwrap()).unwrap(), told);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&state), mode(&stage.at("data"))), (0o600, 0o700));
    // What was configured and written meanwhile does not matter to DEL.
    fs::remove_file(stage.at("subnet.env")).unwrap();
    assert_eq!(stage.call("DEL", &conf).unwrap(), Answer::Nothing);
    assert_eq!(stage.told(), told);
    assert_eq!(fs::read_dir(stage.at("data")).unwrap().count(), 0);
    fs::remove_file(stage.at("told")).unwrap();
    assert_eq!(stage.call("DEL", &conf).unwrap(), Answer::Nothing);
    assert!(!stage.at("told").exists(), "there is nothing to tell the delegate");
}

#[test]
fn errors_of_the_delegate_are_passed_on_and_del_stays_to_be_done() {
    let stage = Stage::new(r#"echo '{"code":101,"msg":"no room","details":"at all"}'; exit 3"#);
    let conf = stage.conf(json!({}));
    let error = stage.call("ADD", &conf).unwrap_err();
    let rendered: Value = serde_json::from_str(&error.render("0.4.0")).unwrap();
    assert_eq!(
        rendered,
        json!({ "cniVersion": "0.4.0", "code": 101, "msg": "no room", "details": "at all" })
    );
    assert_eq!(stage.call("DEL", &conf).unwrap_err().code(), 101);
    assert!(stage.at("data/pod-1").exists());
    let garbled = Stage::new("echo boom; exit 1");
    let error = garbled.call("ADD", &garbled.conf(json!({}))).unwrap_err();
    assert!(error.code() == 999 && error.to_string().contains("boom"), "{error}");
    let nonsense = Stage::new("echo done");
    assert_eq!(nonsense.call("ADD", &nonsense.conf(json!({}))).unwrap_err().code(), 6);
}

#[test]
fn a_delegate_that_reads_nothing_and_one_that_writes_much() {
    let stage = Stage::new("");
    let script = "#!/bin/sh\nexec 0<&-\necho '{\"cniVersion\":\"1.1.0\"}'\n";
    fs::write(stage.at("bin/bridge"), script).unwrap();
    let long = "x".repeat(1 << 20);
    let conf = stage.conf(json!({ "delegate": { "long": long } }));
    assert!(matches!(stage.call("ADD", &conf).unwrap(), Answer::Text(_)));
    let stage = Stage::new(r#"printf '{"long":"'; head -c 1000000 /dev/zero | tr '\0' x; echo '"}'"#);
    let Answer::Text(result) =
        stage.call("ADD", &stage.conf(json!({ "delegate": { "long": long } }))).unwrap()
    else {
        panic!("no result");
    };
    let result: Value = serde_json::from_slice(&result).unwrap();
    assert_eq!((&result["cniVersion"], result["long"].as_str().unwrap().len()), (&json!("1.1.0"), 1_000_000));
}

#[test]
fn state_that_is_damaged_or_gone_does_not_keep_a_pod_or_its_address() {
    let stage = Stage::new("");
    let conf = stage.conf(json!({}));
    let state = stage.at("data/pod-1");
    fs::create_dir(stage.at("data")).unwrap();
    for damage in ["cut", "empty", "gone", "a directory"] {
        match damage {
            "cut" => fs::write(&state, "{\"cniVersion\": \"1.").unwrap(),
            "empty" => fs::write(&state, "").unwrap(),
            "a directory" => fs::create_dir(&state).unwrap(),
            _ => {}
        }
        assert_eq!(stage.call("DEL", &conf).unwrap(), Answer::Nothing, "{damage}");
        assert_eq!(stage.told(), delegate_of(&conf, V4), "{damage}: given back by what is configured now");
        assert!(!state.exists(), "{damage}");
        fs::remove_file(stage.at("told")).unwrap();
    }
    fs::create_dir(&state).unwrap();
    let told = Stage::new("echo '{}'");
    fs::copy(told.at("bin/bridge"), stage.at("bin/bridge")).unwrap();
    assert!(matches!(stage.call("ADD", &conf).unwrap(), Answer::Text(_)), "a directory is in ADD's way");
    assert!(state.is_file());
    fs::write(&state, "\0\0").unwrap();
    fs::remove_file(stage.at("subnet.env")).unwrap();
    stage.call("DEL", &conf).unwrap();
    assert!(!state.exists());
}

/// A delegate that fails would keep kubelet trying for ever about a container of which nothing is known.
#[test]
fn what_is_released_without_state_may_fail_and_never_is_the_hosts() {
    let stage = Stage::new("echo boom; exit 1");
    let conf = stage.conf(json!({}));
    assert_eq!(stage.call("DEL", &conf).unwrap(), Answer::Nothing);
    assert_eq!(stage.told(), delegate_of(&conf, V4));
    fs::remove_file(stage.at("told")).unwrap();
    let environment = |name: &str| match name {
        "CNI_NETNS" => Some("/proc/self/ns/net".into()),
        "CNI_COMMAND" => Some("DEL".into()),
        "CNI_PATH" => Some(stage.at("bin").into()),
        "CNI_NETNS_OVERRIDE" => None,
        _ => Some("x1".into()),
    };
    let answer = answer(environment, &mut conf.to_string().as_bytes(), &mut String::new()).unwrap();
    assert_eq!(answer, Answer::Nothing);
    assert!(!stage.at("told").exists(), "the delegate would remove the host's own interface");
}

#[test]
fn check_finds_no_fault_and_came_with_a_later_version() {
    let stage = Stage::new("exit 1");
    assert_eq!(stage.call("CHECK", &stage.conf(json!({ "cniVersion": "0.4.0" }))).unwrap(), Answer::Nothing);
    assert!(!stage.at("told").exists());
    let error = stage.call("CHECK", &stage.conf(json!({ "cniVersion": "0.3.1" }))).unwrap_err();
    assert!(
        error.code() == 1 && error.to_string().contains("config version does not allow CHECK"),
        "{error}"
    );
}

#[test]
fn status_is_whether_pods_could_be_added() {
    let stage = Stage::new(r#"[ "$CNI_COMMAND" = STATUS ]"#);
    let conf = stage.conf(json!({}));
    assert_eq!(stage.call("STATUS", &conf).unwrap(), Answer::Nothing);
    fs::remove_file(stage.at("subnet.env")).unwrap();
    assert_eq!(stage.call("STATUS", &conf).unwrap_err().code(), 50);
    fs::write(stage.at("subnet.env"), V4).unwrap();
    fs::remove_file(stage.at("bin/bridge")).unwrap();
    assert_eq!(stage.call("STATUS", &conf).unwrap_err().code(), 50);
    let unready = Stage::new(r#"echo '{"code":51,"msg":"full"}'; exit 1"#);
    assert_eq!(unready.call("STATUS", &unready.conf(json!({}))).unwrap_err().code(), 51);
    assert_eq!(stage.call("STATUS", &stage.conf(json!({ "cniVersion": "1.0.0" }))).unwrap_err().code(), 1);
}

#[test]
fn gc_is_delegated_and_forgets_containers_of_this_network_that_are_gone() {
    let stage = Stage::new("");
    fs::create_dir(stage.at("data")).unwrap();
    for (id, content) in [
        ("kept", r#"{"name":"net"}"#),
        ("gone", r#"{"name":"net"}"#),
        ("others", r#"{"name":"another"}"#),
        ("damaged", "{"),
    ] {
        fs::write(stage.at("data").join(id), content).unwrap();
    }
    let list = json!([{ "containerID": "kept", "ifname": "eth0" }]);
    let conf = stage.conf(json!({ "cni.dev/valid-attachments": list, "cni.dev/attachments": list }));
    assert_eq!(stage.call("GC", &conf).unwrap(), Answer::Nothing);
    assert_eq!(stage.told()["cni.dev/valid-attachments"], list);
    assert_eq!(stage.told()["cni.dev/attachments"], list);
    let left = |name: &str| stage.at("data").join(name).exists();
    assert_eq!(["kept", "gone", "others", "damaged"].map(left), [true, false, true, true]);
    for wrong in
        [json!({}), json!({ "cni.dev/valid-attachments": 1 }), json!({ "cni.dev/valid-attachments": [1] })]
    {
        assert_eq!(stage.call("GC", &stage.conf(wrong)).unwrap_err().code(), 7);
    }
    assert!(left("kept"));
}

#[test]
fn the_pods_namespace_is_not_our_own() {
    let stage = Stage::new("");
    let conf = stage.conf(json!({}));
    let call = |netns: &str, overridden: &str| {
        let environment = |name: &str| match name {
            "CNI_NETNS" => Some(netns.into()),
            "CNI_NETNS_OVERRIDE" => Some(overridden.into()),
            "CNI_COMMAND" => Some("ADD".into()),
            "CNI_PATH" => Some(stage.at("bin").into()),
            _ => Some("x1".into()),
        };
        answer(environment, &mut conf.to_string().as_bytes(), &mut String::new()).unwrap_err().code()
    };
    assert_eq!(call("/proc/self/ns/net", ""), 8);
    assert_eq!(call("/nonexistent", ""), 8);
    assert!(!stage.at("told").exists() && !stage.at("data").exists(), "nothing was touched");
    assert_eq!(call("/proc/self/ns/net", "TRUE"), 6, "that of the delegate, which answers nothing");
}

#[test]
fn variables_are_checked() {
    let base = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "pod-1"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ];
    let call = |name: &str, value: &str| {
        let environment = |wanted: &str| {
            let found = base.iter().find(|(name, _)| *name == wanted)?.1;
            Some(if wanted == name { value } else { found }.into())
        };
        answer(environment, &mut &b""[..], &mut String::new())
    };
    for (name, value, part) in [
        ("CNI_CONTAINERID", "", "required env variables [CNI_CONTAINERID] missing"),
        ("CNI_NETNS", "", "required env variables [CNI_NETNS] missing"),
        ("CNI_PATH", "", "required env variables [CNI_PATH] missing"),
        ("CNI_CONTAINERID", "../../etc/passwd", "CNI_CONTAINERID"),
        ("CNI_CONTAINERID", ".hidden", "CNI_CONTAINERID"),
        ("CNI_IFNAME", "..", "CNI_IFNAME"),
        ("CNI_IFNAME", "a/b", "CNI_IFNAME"),
        ("CNI_IFNAME", "a234567890123456", "15 bytes"),
        ("CNI_COMMAND", "add", "unknown CNI_COMMAND"),
    ] {
        let error = call(name, value).unwrap_err();
        assert!(error.code() == 4 && error.to_string().contains(part), "{name}={value}: {error}");
    }
    assert_eq!(call("CNI_CONTAINERID", &"x".repeat(256)).unwrap_err().code(), 4);
    assert_eq!(call("CNI_COMMAND", "").unwrap(), Answer::About);
    assert_eq!(call("CNI_NETNS", "/x").unwrap_err().code(), 6, "all is well but stdin");
}

#[test]
fn versions() {
    let report =
        answer(|name| (name == "CNI_COMMAND").then(|| "VERSION".into()), &mut &b""[..], &mut String::new());
    let Ok(Answer::Text(report)) = report else { panic!("{report:?}") };
    let report: Value = serde_json::from_slice(&report).unwrap();
    let all = json!(["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    assert_eq!(report, json!({ "cniVersion": "1.1.0", "supportedVersions": all }));
    let stage = Stage::new(r#"echo '{"ip4":{}}'"#);
    let error = stage.call("ADD", &stage.conf(json!({ "cniVersion": "1.2.0" }))).unwrap_err();
    assert!(error.code() == 1 && error.to_string().contains("1.2.0"), "{error}");
    let Answer::Text(result) = stage.call("ADD", &stage.conf(json!({ "cniVersion": "" }))).unwrap() else {
        panic!("no result");
    };
    assert_eq!(
        serde_json::from_slice::<Value>(&result).unwrap(),
        json!({ "cniVersion": "0.1.0", "ip4": {} })
    );
    assert_eq!(stage.told().get("cniVersion"), None, "the delegate is told what we were told");
}

#[test]
fn too_much_input_is_refused() {
    let long = vec![b' '; usize::try_from(INPUT_LIMIT).unwrap() + 1];
    let environment = |name: &str| Some(if name == "CNI_COMMAND" { "STATUS" } else { "x" }.into());
    let error = answer(environment, &mut long.as_slice(), &mut String::new()).unwrap_err();
    assert!(error.code() == 6 && error.to_string().contains("bytes"), "{error}");
    let error = answer(environment, &mut &b"\xff"[..], &mut String::new()).unwrap_err();
    assert!(error.code() == 6 && error.to_string().contains("UTF-8"), "{error}");
}
