//! Init containers, started from the image's root directory. What the image's daemon does is tried with a real API
//! server, in the tests of Kubernetes.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use flannel_lab::{
    Image,
    command::run,
    in_lab, make_dir,
    manifest::{self, config_file},
};
use serde_json::Value;

/// Those of our manifest, and those of flannel's with our image: the same files come of them.
#[test]
fn init_containers_of_ours_and_of_flannels_install_the_same() -> Result<()> {
    in_lab(|lab| {
        let (node, image) = (lab.node()?, Image::build(lab)?);
        let [bin, conf, config] = ["/opt/cni/bin", "/etc/cni/net.d", "/etc/kube-flannel"];
        for directory in [bin, conf, config] {
            make_dir(&node.root_path(directory))?;
        }
        fs::write(node.root_path(config).join("cni-conf.json"), config_file("cni-conf.json")?)?;
        let root =
            [bin, conf, config].iter().fold(image.root(), |root, at| root.mount(&node.root_path(at), at));

        let pod = manifest::object("DaemonSet")?["spec"]["template"]["spec"].take();
        let words = |container: &Value| -> Vec<String> {
            let given =
                ["command", "args"].map(|field| container[field].as_array().cloned().unwrap_or_default());
            given.concat().iter().filter_map(|word| word.as_str().map(str::to_owned)).collect()
        };
        let ours: Vec<Vec<String>> =
            pod["initContainers"].as_array().context("init containers")?.iter().map(words).collect();
        let flannels = [
            ["cp", "-f", "/flannel", "/opt/cni/bin/flannel"],
            ["cp", "-f", "/etc/kube-flannel/cni-conf.json", "/etc/cni/net.d/10-flannel.conflist"],
        ];
        let flannels = flannels.map(|words| words.map(str::to_owned).to_vec()).to_vec();
        let installed = ["/opt/cni/bin/flannel", "/etc/cni/net.d/10-flannel.conflist"];
        let sources =
            [image.root().directory().join("flannel"), node.root_path(config).join("cni-conf.json")];
        for commands in [ours, flannels] {
            for words in commands {
                run(&mut root.command(node.netns(), &[], &words)?)?;
            }
            for (file, source) in installed.iter().zip(&sources) {
                let file = node.root_path(file);
                ensure!(fs::read(&file)? == fs::read(source)?, "{} is another", file.display());
                fs::remove_file(file)?;
            }
        }
        Ok(())
    })
}
