//! `install-conf SOURCE DESTINATION`: puts a file in place in one step, as kube-flannel's init container does with
//! the CNI configuration. Files of other kinds, as the plugin itself, are welcome.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::{env, path::Path, process::ExitCode};

use flannel_agent::{cni::install::install, telemetry::output::say};

fn main() -> ExitCode {
    let words: Vec<_> = env::args_os().skip(1).collect();
    let [source, destination] = words.as_slice() else {
        say("usage: install-conf SOURCE DESTINATION, two files");
        return ExitCode::FAILURE;
    };
    match install(Path::new(source), Path::new(destination)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("install-conf: {error}"));
            ExitCode::FAILURE
        }
    }
}
