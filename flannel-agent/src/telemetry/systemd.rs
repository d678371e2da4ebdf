//! What the service manager is told (sd_notify(3)): that we are ready, how things stand, that we are alive,
//! that we stop. Without one, nothing is told.

use std::{
    env,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::{select, sync::watch, time::sleep};
use tracing::{debug, warn};

use super::{Pulse, Summary, visible};

/// Messages that wait for a service manager that does not read. More are dropped.
const QUEUE: usize = 16;
/// For the last message to be read.
const FLUSH: Duration = Duration::from_millis(500);
/// Between two messages about how things stand.
const STATUS_PAUSE: Duration = Duration::from_secs(1);
/// Characters of a status; `systemctl status` shows it in one line.
const STATUS_LENGTH: usize = 300;

/// The service manager that started us, if one did.
#[derive(Debug)]
pub struct ServiceManager {
    /// To a thread of its own: a manager that stops reading blocks whoever sends.
    messages: Option<SyncSender<Message>>,
    /// How often it wants to hear of us at least.
    watchdog: Option<Duration>,
    stopping: AtomicBool,
}

#[derive(Debug)]
enum Message {
    Ready,
    Status(String),
    Watchdog,
    Stopping,
    /// Answered when all before it is sent.
    Flush(SyncSender<()>),
}

impl ServiceManager {
    /// By `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    pub fn from_environment() -> Self {
        let present = env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty());
        let messages = present.then(|| {
            let (sender, receiver) = sync_channel(QUEUE);
            thread::spawn(move || send(&receiver));
            sender
        });
        let watchdog = sd_notify::watchdog_enabled().filter(|period| present && !period.is_zero());
        Self { messages, watchdog, stopping: AtomicBool::new(false) }
    }

    /// Whether it will be told, if there is anybody to tell.
    fn say(&self, message: Message) -> bool {
        let said = self.messages.as_ref().is_none_or(|messages| messages.try_send(message).is_ok());
        if !said {
            debug!("the service manager does not read notifications");
        }
        said
    }

    /// Pods can be started.
    pub fn ready(&self) {
        self.say(Message::Ready);
    }

    /// How things stand, in one line. Whether the service manager will be told; if not, it does not read.
    pub fn status(&self, text: &str) -> bool {
        let line: String = visible(&text).chars().take(STATUS_LENGTH).collect();
        self.say(Message::Status(line))
    }

    /// We are about to end; said once.
    pub fn stopping(&self) {
        if !self.stopping.swap(true, Ordering::Relaxed) {
            self.say(Message::Stopping);
        }
    }

    /// Waits, half a second at most, until what was said is sent.
    pub fn flush(&self) {
        let (done, is_done) = sync_channel(1);
        self.say(Message::Flush(done));
        let _ = is_done.recv_timeout(FLUSH);
    }

    /// While something is waited for at start: tells what, and what is wrong with the store of leases, and that we
    /// are alive, for as long as the task this runs in does. Never returns.
    pub async fn accompany(&self, doing: &str, mut trouble: watch::Receiver<Option<String>>) {
        let follow = async {
            loop {
                let problem = trouble.borrow_and_update().clone();
                self.status(
                    &problem.map_or_else(|| doing.to_owned(), |problem| format!("{doing}: {problem}")),
                );
                if trouble.changed().await.is_err() {
                    std::future::pending().await
                }
                sleep(STATUS_PAUSE).await;
            }
        };
        select! {
            () = follow => {}
            () = self.watchdog(async || {}) => {}
        }
    }

    /// While the reconciler runs: tells how it fares, what is wrong with the `server` of the leases, and that we
    /// are alive. Never returns.
    pub async fn follow(
        &self,
        pulse: Pulse,
        mut summary: watch::Receiver<Summary>,
        server: &str,
        mut trouble: watch::Receiver<Option<String>>,
    ) {
        let follow = async {
            let mut last = String::new();
            loop {
                let text =
                    summary.borrow_and_update().describe(server, trouble.borrow_and_update().as_deref());
                let news = text != last && !self.stopping.load(Ordering::Relaxed);
                let untold = news && !self.status(&text);
                if news && !untold {
                    last = text;
                }
                select! {
                    // Who reads again is told how things stand then, whether they change once more or not.
                    () = sleep(STATUS_PAUSE), if untold => continue,
                    changed = summary.changed() => if changed.is_err() { std::future::pending().await },
                    changed = trouble.changed() => if changed.is_err() { std::future::pending().await },
                }
                sleep(STATUS_PAUSE).await;
            }
        };
        select! {
            () = follow => {}
            () = self.watchdog(async || pulse.beat().await) => {}
        }
    }

    /// Sends a sign of life, each time half the watchdog's period has passed and `alive` has returned.
    async fn watchdog(&self, alive: impl AsyncFn()) {
        let Some(period) = self.watchdog else { return std::future::pending().await };
        loop {
            alive().await;
            self.say(Message::Watchdog);
            sleep(period / 2).await;
        }
    }
}

fn send(messages: &Receiver<Message>) {
    let mut failed = false;
    for message in messages {
        let result = match message {
            Message::Ready => sd_notify::notify(&[NotifyState::Ready]),
            Message::Status(text) => sd_notify::notify(&[NotifyState::Status(&text)]),
            Message::Watchdog => sd_notify::notify(&[NotifyState::Watchdog]),
            Message::Stopping => sd_notify::notify(&[
                NotifyState::Stopping,
                NotifyState::Status("stopping; forwarding goes on"),
            ]),
            Message::Flush(done) => {
                let _ = done.send(());
                continue;
            }
        };
        if let Err(error) = &result
            && !failed
        {
            warn!(%error, "cannot notify the service manager: is NOTIFY_SOCKET a socket somebody listens at?");
        }
        failed = result.is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_hears_of_us_only_while_the_loop_goes_round() {
        let (messages, received) = sync_channel(QUEUE);
        let manager = ServiceManager {
            messages: Some(messages),
            watchdog: Some(Duration::from_secs(10)),
            stopping: AtomicBool::new(false),
        };
        let (alive, is_alive) = watch::channel(true);
        let beat = async || {
            let _ = is_alive.clone().wait_for(|alive| *alive).await;
        };
        let signs = || received.try_iter().filter(|message| matches!(message, Message::Watchdog)).count();
        let script = async {
            sleep(Duration::from_secs(23)).await;
            assert_eq!(signs(), 5, "at 0, 5, 10, 15 and 20 s");
            alive.send_replace(false);
            sleep(Duration::from_secs(60)).await;
            assert_eq!(signs(), 0);
            alive.send_replace(true);
            sleep(Duration::from_secs(1)).await;
            assert_eq!(signs(), 1);
        };
        select! {
            () = manager.watchdog(beat) => unreachable!(),
            () = script => {}
        }
    }

    #[test]
    fn a_manager_that_does_not_read_holds_nobody_up() {
        let (messages, _received) = sync_channel(1);
        let manager =
            ServiceManager { messages: Some(messages), watchdog: None, stopping: AtomicBool::new(false) };
        for _ in 0..100 {
            manager.status("x");
        }
        manager.stopping();
        manager.flush();
    }
}
