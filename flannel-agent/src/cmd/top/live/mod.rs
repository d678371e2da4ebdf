//! `top` on a terminal: the same tables, live, with keys to turn them over, sort and hold them.

mod keys;
mod page;

use std::{io, time::Duration};

use anyhow::Context as _;
use crossterm::event::EventStream;
use futures::StreamExt as _;
use ratatui::DefaultTerminal;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval},
};

use super::{TopOptions, Watched, rates::Rates};
use crate::cmd::trace_session::node_name;
use keys::Answer;
use page::Page;

/// The terminal in its raw mode, until this is dropped.
struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    /// Takes the terminal. A panic gives it back, too.
    ///
    /// # Errors
    /// When the terminal cannot do it.
    fn take() -> anyhow::Result<Self> {
        let terminal = ratatui::try_init()
            .context("cannot draw on this terminal; `--count 1` or `-o json` print without it")?;
        Ok(Self { terminal })
    }

    fn draw(&mut self, page: &mut Page) -> anyhow::Result<()> {
        self.terminal.draw(|frame| page.draw(frame)).context("cannot draw on this terminal")?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Signals that end it; each would leave the terminal as it is.
struct Ends([Signal; 4]);

impl Ends {
    fn listen() -> io::Result<Self> {
        Ok(Self([
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::quit())?,
        ]))
    }

    /// Waits for one of them. Cancel safe.
    async fn next(&mut self) {
        let Self([terminate, hang_up, interrupt, quit]) = self;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
            _ = interrupt.recv() => {}
            _ = quit.recv() => {}
        }
    }
}

/// Shows what passes until a key, a signal or `--count` ends it.
///
/// # Errors
/// When the agent does not answer any more, or the terminal is gone.
pub(super) async fn follow(options: &TopOptions, watched: &mut Watched) -> anyhow::Result<()> {
    let mut ends = Ends::listen().context("cannot listen to signals")?;
    let mut page = Page::new(node_name(), options.every);
    let mut screen = Screen::take()?;
    let mut events = EventStream::new();
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let every = Duration::from_secs(options.every);
    let mut next = Instant::now() + every;
    let mut left = options.count.unwrap_or(u64::MAX);
    screen.draw(&mut page)?;
    loop {
        tokio::select! {
            _ = second.tick() => {
                watched.session.go_on().await?;
                if Instant::now() >= next {
                    next += every;
                    let rates: Rates = watched.next().await?;
                    page.show(rates);
                    left -= 1;
                    if left == 0 {
                        break;
                    }
                }
            }
            event = events.next() => match event {
                Some(Ok(event)) => {
                    if page.answer(&event) == Answer::End {
                        break;
                    }
                }
                Some(Err(error)) => return Err(error).context("cannot read keys from this terminal"),
                None => break,
            },
            () = ends.next() => break,
        }
        screen.draw(&mut page)?;
    }
    Ok(())
}
