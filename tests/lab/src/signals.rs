//! What a program of the lab does when it is told to end.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

use super::{abandon, output::say};

/// Runs a program of the lab, which is told to end by its user or by signals: says what is wrong, if anything is.
pub fn run(program: impl FnOnce() -> Result<()>) -> ExitCode {
    match clean_up().and_then(|()| program()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// On SIGINT, SIGTERM and SIGHUP removes what this process has made, then ends it.
fn clean_up() -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("signal runtime")?;
    let (mut interrupt, mut terminate, mut hang_up) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hang_up.recv() => {}
                }
            });
            say("interrupted: removing what was built");
            abandon();
            std::process::exit(130);
        })
        .context("signal thread")?;
    Ok(())
}
