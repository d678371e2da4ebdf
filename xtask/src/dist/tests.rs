use std::{fs, path::Path, process::Command};

use super::*;

/// A release whose programs are texts, packed into `out`.
fn pack(out: &Path, made_in: &Path) -> Vec<String> {
    fs::create_dir_all(made_in.join("bin")).unwrap();
    fs::create_dir_all(out).unwrap();
    for name in [compile::AGENT, compile::CNI_PLUGIN, compile::INSTALL_CONF] {
        fs::write(made_in.join("bin").join(name), name).unwrap();
        fs::write(made_in.join("bin").join(format!("{name}.debug")), "debug").unwrap();
    }
    let programs = compile::Programs::in_directory(made_in.join("bin"));
    let release =
        Release { architecture: Architecture::Arm64, programs: &programs, time: 1_700_000_000, out };
    let work = made_in.join("work");
    let base = made_in.join("base");
    fs::create_dir_all(base.join("etc")).unwrap();
    fs::write(base.join("etc/passwd"), "root").unwrap();
    let image = image::pack(&release, &base, &made_in.join("image")).unwrap();
    let step = Step::start("packing");
    release.pack(&step, &work, true).unwrap().into_iter().chain([image]).collect()
}

fn said(program: &str, arguments: &[&str], file: &Path) -> String {
    let output = Command::new(program).args(arguments).arg(file).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn two_builds_in_two_directories_give_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| {
        let out = directory.path().join(name).join("out");
        (pack(&out, &directory.path().join(name)), out)
    });
    assert_eq!(a.0, b.0);
    for file in &a.0 {
        assert_eq!(fs::read(a.1.join(file)).unwrap(), fs::read(b.1.join(file)).unwrap(), "{file}");
    }
}

#[test]
fn archives_hold_what_users_of_upstreams_look_for() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let files = pack(&out, directory.path());
    let file = |part: &str| out.join(files.iter().find(|file| file.ends_with(part)).unwrap());

    let listed = said("tar", &["--list", "--gzip", "--file"], &file("linux-arm64.tar.gz"));
    assert_eq!(listed.lines().collect::<Vec<_>>(), ["README.md", "flanneld", "mk-docker-opts.sh"]);
    let listed = said("tar", &["--list", "--gzip", "--file"], &file(".tgz"));
    assert_eq!(listed.trim(), "flannel-arm64");

    let package = said("dpkg-deb", &["--contents"], &file(".deb"));
    for path in ["./usr/bin/flanneld", "./usr/lib/systemd/system/flanneld.service", "./etc/default/flanneld"]
    {
        assert!(package.contains(path), "{path} is not in\n{package}");
    }
    assert!(package.lines().all(|line| line.contains("root/root")), "{package}");
    let fields = said("dpkg-deb", &["--field"], &file(".deb"));
    assert!(fields.contains("Architecture: arm64") && fields.contains("Conflicts: flannel"), "{fields}");

    let image = said("tar", &["--list", "--file"], &file(".oci.tar"));
    assert!(image.contains("index.json") && image.contains("oci-layout"), "{image}");
    assert_eq!(
        image.lines().filter(|line| line.starts_with("blobs/sha256/") && line.len() > 60).count(),
        4,
        "{image}"
    );
}
