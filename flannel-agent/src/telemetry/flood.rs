//! A bound on the log: what somebody else can cause over and over (a lease that comes and goes, another program
//! that undoes our work) is told in some lines, and then in few.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    warn,
};
use tracing_subscriber::layer::{Context, Layer};

/// So many lines of one kind may come at once.
const BURST: u32 = 100;
/// Then one in this time.
const EACH: Duration = Duration::from_secs(10);

/// Leaves out lines of a kind of which there are too many, and tells how many those were. A kind is what one
/// place in the code writes.
#[derive(Debug, Default)]
pub(super) struct FloodGate {
    /// By the name of an event, which is its place in the code.
    kinds: Mutex<BTreeMap<&'static str, Kind>>,
}

#[derive(Debug)]
struct Kind {
    /// Lines that may still be written at `since`.
    left: u32,
    since: Instant,
    left_out: u64,
}

impl Kind {
    fn new(now: Instant) -> Self {
        Self { left: BURST, since: now, left_out: 0 }
    }

    /// Whether another line may be written now; if so, how many were left out before it.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let earned = now.saturating_duration_since(self.since).as_secs() / EACH.as_secs();
        if earned > 0 {
            self.left = u32::try_from(earned).unwrap_or(BURST).saturating_add(self.left).min(BURST);
            self.since = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.left_out))
            }
            None => {
                self.left_out += 1;
                None
            }
        }
    }
}

impl<S: Subscriber> Layer<S> for FloodGate {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        // Who asks for more wants all of it.
        if *event.metadata().level() > Level::INFO {
            return true;
        }
        let now = Instant::now();
        let admitted = {
            let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
            let kind = kinds.entry(event.metadata().name()).or_insert_with(|| Kind::new(now));
            kind.admit(now)
        };
        if let Some(lines @ 1..) = admitted {
            let mut like = Message::default();
            event.record(&mut like);
            warn!(lines, like = like.0, "suppressed: too many lines of one kind");
        }
        admitted.is_some()
    }
}

/// The text of an event without its fields.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_flood_is_cut_and_other_lines_are_not() {
        let written = Written::default();
        let writer = written.clone();
        let log = tracing_subscriber::fmt()
            .with_max_level(Level::DEBUG)
            .with_writer(move || writer.clone())
            .finish()
            .with(FloodGate::default());
        tracing::subscriber::with_default(log, || {
            for number in 0..10_000 {
                tracing::info!(number, "flood");
                tracing::debug!("asked for");
            }
            tracing::error!("something else");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let count = |part: &str| text.matches(part).count();
        let cut = u32::try_from(count(" flood")).unwrap();
        assert!((BURST..BURST + 10).contains(&cut), "{cut} lines");
        assert_eq!(count("asked for"), 10_000);
        assert_eq!(count("something else"), 1);
    }

    #[test]
    fn a_kind_recovers_and_tells_what_was_left_out() {
        let start = Instant::now();
        let mut kind = Kind::new(start);
        let written = (0..BURST + 7).filter_map(|_| kind.admit(start)).count();
        assert_eq!(written, BURST as usize);
        assert_eq!(kind.admit(start + EACH / 2), None);
        assert_eq!(kind.admit(start + EACH), Some(8));
        assert_eq!(kind.admit(start + EACH), None);
        assert_eq!(kind.admit(start + EACH * 2), Some(1));
        let later = start + EACH * BURST * 3;
        assert_eq!((0..BURST * 2).filter_map(|_| kind.admit(later)).count(), BURST as usize);
    }
}
