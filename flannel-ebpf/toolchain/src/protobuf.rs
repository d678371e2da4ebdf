//! protoc, with which etcd-client's own build script compiles etcd's interface.

use std::{env, path::PathBuf, process::Command};

use crate::{
    Error, Result,
    run::{find_in_path, output},
};

/// A protoc that works.
#[derive(Clone, Debug)]
pub struct Protoc {
    /// The executable.
    pub path: PathBuf,
    /// What it calls itself.
    pub version: String,
}

/// Lets protoc compile protobuf's own definitions, which etcd's interface includes. It obeys the
/// variables that the build obeys.
pub fn check_protobuf() -> Result<Protoc> {
    let set = env::var_os("PROTOC").map(PathBuf::from);
    let Some(path) = set.or_else(|| find_in_path("protoc").into_iter().next()) else {
        return Err(Error::NoProtoc { output: "it is not on PATH".to_owned() });
    };
    let said = |error| match error {
        Error::Command { output, .. } => output,
        other => other.to_string(),
    };
    let version = output(Command::new(&path).arg("--version"))
        .map_err(|error| Error::NoProtoc { output: said(error) })?
        .trim()
        .to_owned();
    let mut command = Command::new(&path);
    if let Some(include) = env::var_os("PROTOC_INCLUDE") {
        command.arg("-I").arg(include);
    }
    command.args(["--descriptor_set_out=/dev/null", "google/protobuf/descriptor.proto"]);
    output(&mut command).map_err(|error| Error::NoProtobufIncludes { output: said(error) })?;
    Ok(Protoc { path, version })
}
