//! What the kernel under test does for the programs, which all other tests rely on.

use anyhow::{Context as _, ensure};
use flannel_agent::bpf::{Feature, Features};
use flannel_common::layout::FastPath;

use crate::{
    loaded::Loaded,
    sandbox::{bpftool, in_sandbox},
};

#[test]
fn every_feature_is_tried() {
    in_sandbox(|sandbox| {
        let features = Features::find()?;
        ensure!(features.rows().count() == Feature::ALL.len(), "{features:?}");
        // Newer than the kernels the tests are run on must be.
        for (feature, why) in features.rows().filter(|(feature, _)| *feature != Feature::PopClean) {
            ensure!(why.is_none(), "{}: {why:?}", feature.label());
        }
        ensure!(features.grant(FastPath::All) == (FastPath::All, None), "{features:?}");
        // The same with the programs loaded, and nothing is left where it was tried.
        let loaded = Loaded::new(sandbox)?;
        ensure!(*loaded.programs.features() == features, "{:?}", loaded.programs.features());
        let shown = bpftool(&["net", "show", "dev", "lo"])?;
        let hooks = shown[0]["tc"].as_array().context("what is attached")?;
        ensure!(hooks.is_empty(), "{shown}");
        Ok(())
    });
}
