//! The programs at their hooks, held by pinned links so that they go on without the agent.

use std::{collections::BTreeSet, io, time::Duration};

use aya::{
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, LinkError, PinnedLink},
        tc::{SchedClassifierLink, TcAttachOptions},
    },
    sys::SyscallError,
};
use aya_log::EbpfLogger;
use flannel_common::path::Hook;
use nix::net::if_::if_nametoindex;
use tracing::{debug, warn};

use super::{
    PinError, Pins, Programs,
    loader::{chain, classifier},
};

const LOG_PERIOD: Duration = Duration::from_millis(100);

/// A program that could not be attached or detached.
#[derive(Debug, thiserror::Error)]
#[error("cannot attach {} to {interface}: {reason}", .hook.program())]
pub struct AttachError {
    /// To what.
    pub interface: String,
    /// Where.
    pub hook: Hook,
    /// Why not.
    pub reason: String,
}

const fn side(hook: Hook) -> TcAttachType {
    match hook {
        Hook::FromPod | Hook::FromUnderlay => TcAttachType::Ingress,
        Hook::ToOverlay => TcAttachType::Egress,
    }
}

impl Programs {
    /// Attaches the program of `hook` to `interface` and pins the link. A link an earlier agent pinned
    /// gets the new program in one step: no packet meets a hook without one.
    ///
    /// # Errors
    /// When the kernel refuses; what was attached before stays.
    pub fn attach(&mut self, interface: &str, hook: Hook) -> Result<(), AttachError> {
        let failed = |reason: String| AttachError { interface: interface.to_owned(), hook, reason };
        let pin = self.pins.link(interface, hook);
        let program = classifier(&mut self.ebpf, hook).map_err(|error| failed(chain(&error)))?;
        if let Some(link) = pinned(&pin).map_err(|error| failed(chain(&error)))?
            && replace(program, link).is_ok()
            && runs(program, interface, side(hook))
        {
            return Ok(());
        }
        // No link, or one of an interface that is gone or renamed.
        self.pins.remove_link(interface, hook).map_err(|error| failed(chain(&error)))?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = program
            .attach_with_options(interface, side(hook), options)
            .map_err(|error| failed(describe(&error)))?;
        let link = program.take_link(id).map_err(|error| failed(chain(&error)))?;
        let link = FdLink::try_from(link).map_err(|error| failed(chain(&error)))?;
        if let Some(directory) = pin.parent() {
            Pins::make(directory).map_err(|error| failed(chain(&error)))?;
        }
        link.pin(&pin).map_err(|error| failed(chain(&error)))?;
        Ok(())
    }

    /// Gives every pinned link this process's program, in place.
    ///
    /// # Errors
    /// When pins cannot be listed or removed.
    pub fn adopt(&mut self) -> Result<(), PinError> {
        self.forget_gone()?;
        for (interface, hook) in self.pins.pinned_links()? {
            if let Err(error) = self.attach(&interface, hook) {
                // The old program goes on; the plan says whether it should.
                warn!(interface, hook = hook.program(), %error, "kept the program of an earlier agent");
            }
        }
        Ok(())
    }

    /// Removes the pins of interfaces that are gone: the links in them hold nothing any more.
    ///
    /// # Errors
    /// When pins cannot be listed or removed.
    pub fn forget_gone(&self) -> Result<(), PinError> {
        for (interface, hook) in self.pins.pinned_links()? {
            if if_nametoindex(interface.as_str()).is_err() {
                debug!(interface, hook = hook.program(), "removed the link of an interface that is gone");
                self.detach(&interface, hook)?;
            }
        }
        Ok(())
    }

    /// Takes the program of `hook` off `interface`.
    ///
    /// # Errors
    /// When the pin cannot be removed.
    pub fn detach(&self, interface: &str, hook: Hook) -> Result<(), PinError> {
        self.pins.remove_link(interface, hook)
    }

    /// The hooks of `interfaces` that run these very programs, as (interface, hook). A hook that runs
    /// an earlier agent's program is not among them.
    ///
    /// # Errors
    /// When the pins cannot be listed.
    pub fn attached(&mut self) -> Result<BTreeSet<(String, Hook)>, PinError> {
        let mut found = BTreeSet::new();
        for (interface, hook) in self.pins.pinned_links()? {
            if let Ok(program) = classifier(&mut self.ebpf, hook)
                && runs(program, &interface, side(hook))
            {
                found.insert((interface, hook));
            }
        }
        Ok(found)
    }
}

/// The link pinned at `path`, if there is one.
fn pinned(path: &std::path::Path) -> Result<Option<SchedClassifierLink>, LinkError> {
    match PinnedLink::from_pin(path) {
        Ok(link) => FdLink::from(link).try_into().map(Some),
        Err(LinkError::SyscallError(SyscallError { io_error, .. }))
            if io_error.kind() == io::ErrorKind::NotFound =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn replace(program: &mut SchedClassifier, link: SchedClassifierLink) -> Result<(), ProgramError> {
    let id = program.attach_to_link(link)?;
    // The pin holds the link; our descriptor of it is not needed.
    program.take_link(id).map(drop)
}

/// Whether `program` is attached to `side` of `interface`.
fn runs(program: &SchedClassifier, interface: &str, side: TcAttachType) -> bool {
    let Ok(ours) = program.info() else { return false };
    SchedClassifier::query_tcx(interface, side)
        .is_ok_and(|(_, programs)| programs.iter().any(|found| found.id() == ours.id()))
}

fn describe(error: &ProgramError) -> String {
    match error {
        ProgramError::SyscallError(SyscallError { call, io_error }) => match io_error.raw_os_error() {
            Some(code) if code == nix::errno::Errno::EINVAL as i32 => format!(
                "{call}: {io_error}: this kernel has no tcx links (Linux 6.6 and later do); \
                 run with --fast-path=off"
            ),
            _ => format!("{call}: {io_error}"),
        },
        other => chain(other),
    }
}

/// Reads the programs' log, ten times a second: it is for rare events and for debugging.
pub(super) async fn drain(mut logger: EbpfLogger<&'static dyn log::Log>) {
    let mut tick = tokio::time::interval(LOG_PERIOD);
    loop {
        tick.tick().await;
        logger.flush();
    }
}
