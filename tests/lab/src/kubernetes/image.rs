//! The image of the container file, as a root directory: what its last stage copies, on this machine's Debian.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use flannel_ebpf_toolchain::workspace_root;

use crate::{
    Lab, Root, agent_binary,
    command::{run, tool},
    make_dir,
    manifest::directory,
};

/// An image that containers are started from. They share it: what they write is in their mounts.
#[derive(Clone, Debug)]
pub struct Image {
    root: Root,
}

impl Image {
    /// Builds it in `lab`. Its packages are those of this machine, which has the same ones for the lab; one that is
    /// missing here is an error.
    pub fn build(lab: &Lab) -> Result<Self> {
        let root = Root::new(lab.dir().join("image"))?;
        let text = fs::read_to_string(directory().join("Containerfile"))?;
        let (_, stage) = text.rsplit_once("\nFROM ").context("a last stage")?;
        ensure!(stage.starts_with("docker.io/library/debian:"), "{stage}");
        let packages =
            stage.lines().find_map(|line| line.split_once("--no-install-recommends ")).context("packages")?;
        for package in packages.1.split_whitespace().filter(|word| *word != "\\") {
            let known = run(tool("dpkg-query").args(["--show", "--showformat=${Status}", package]))?;
            ensure!(known.ends_with("ok installed"), "{package} is not installed: {known}");
        }
        let repository = workspace_root();
        let built = agent_binary()?;
        for line in stage.lines().filter_map(|line| line.strip_prefix("COPY --from=build ")) {
            let (source, destination) = line.split_once(' ').context("a source and a destination")?;
            let source = match source.strip_prefix("/build/target/release/") {
                Some(binary) => {
                    let path = built.with_file_name(binary);
                    ensure!(path.is_file(), "no {}: build it (cargo build -p flannel-agent)", path.display());
                    path
                }
                None => repository.join(source.trim_start_matches("/build/")),
            };
            let destination = root.directory().join(destination.trim_start_matches('/'));
            make_dir(destination.parent().context("a directory")?)?;
            fs::copy(&source, &destination).with_context(|| source.display().to_string())?;
        }
        Ok(Self { root: root.sealed() })
    }

    /// Its root directory.
    pub fn root(&self) -> Root {
        self.root.clone()
    }
}
