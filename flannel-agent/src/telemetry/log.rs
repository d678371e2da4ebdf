//! The log: one line on stderr per change of state.

use std::io::{self, IsTerminal as _};

use clap::ValueEnum;
use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, fmt::MakeWriter, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use super::{
    flood::FloodGate,
    visible::{VisibleFields, VisibleJson},
};

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// Starts logging to stderr. `verbosity` is that of `-v`: 0 and less for changes of state, 2 and more for
/// what led to them, 5 and more for everything, libraries included. `RUST_LOG` wins where it is set.
/// Of changes of state that repeat without end, most are left out.
pub fn init(verbosity: i32, format: LogFormat) {
    let default = match verbosity {
        // What fails at the API server is told by whoever asked.
        ..=1 => "info,kube_client=off",
        2..=4 => "info,flannel_agent=debug,kube_client=off",
        _ => "debug,flannel_agent=trace,h2=info,hyper=info,tower=info",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    // A second start in one process (tests) keeps the first one's.
    let _ = match format {
        LogFormat::Text => text(filter, io::stderr, io::stderr().is_terminal()).try_init(),
        LogFormat::Json => json(filter, io::stderr).try_init(),
    };
}

/// Where the log is written.
trait Writer: for<'a> MakeWriter<'a> + Send + Sync + 'static {}
impl<W: for<'a> MakeWriter<'a> + Send + Sync + 'static> Writer for W {}

fn text(filter: EnvFilter, writer: impl Writer, colours: bool) -> impl Subscriber + Send + Sync {
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_target(false);
    // A log that cannot be written is none: the subscriber would say so on standard error, and panic where it cannot.
    let log = log.log_internal_errors(false);
    log.with_ansi(colours).fmt_fields(VisibleFields).finish().with(FloodGate::default())
}

fn json(filter: EnvFilter, writer: impl Writer) -> impl Subscriber + Send + Sync {
    let writer = VisibleJson(writer);
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_target(false);
    let log = log
        .log_internal_errors(false)
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false);
    log.finish().with(FloodGate::default())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::{info, subscriber::with_default, warn};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Written {
        fn lines(&self) -> Vec<String> {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            assert!(text.ends_with('\n'), "{text:?}");
            text.trim_end_matches('\n').split('\n').map(str::to_owned).collect()
        }
    }

    /// Ends the line, forges one, clears the screen in two ways, and turns the reading direction.
    const HOSTILE: &str = "vxlan\n2026-01-01T00:00:00Z ERROR forged\r\u{1b}[2J\u{9b}31m\u{202e}\u{2028}é";

    /// A text of somebody else in every place of an event.
    fn tell() {
        warn!(reason = %HOSTILE, "displayed");
        warn!(reason = HOSTILE, "a string");
        warn!(reason = ?HOSTILE, "for debugging");
        let error = io::Error::other(HOSTILE);
        warn!(%error, "an error");
        warn!(error = &error as &dyn std::error::Error, "an error as a value");
        warn!("in the message: {HOSTILE}");
        info!(HOSTILE);
    }

    fn is_strange(character: char) -> bool {
        character.is_control() || matches!(character, '\u{202e}' | '\u{2028}')
    }

    #[test]
    fn a_line_of_text_stays_one_line_whatever_others_write() {
        let written = Written::default();
        let writer = written.clone();
        with_default(text(EnvFilter::new("info"), move || writer.clone(), false), tell);
        let lines = written.lines();
        assert_eq!(lines.len(), 7, "{lines:#?}");
        for line in &lines {
            assert!(!line.contains(is_strange) && line.contains("forged") && line.contains('é'), "{line:?}");
            assert!(line.contains(r"vxlan\n2026") && line.contains(r"\r\u{1b}[2J"), "{line:?}");
        }
        assert!(
            lines[0].ends_with('é') && lines[0].contains(r"WARN displayed reason=vxlan\n"),
            "{}",
            lines[0]
        );
    }

    #[test]
    fn with_colours_only_ours_are_written() {
        let written = Written::default();
        let writer = written.clone();
        with_default(text(EnvFilter::new("info"), move || writer.clone(), true), tell);
        let lines = written.lines();
        assert_eq!(lines.len(), 7, "{lines:#?}");
        assert!(
            lines.iter().all(|line| line.contains("\u{1b}[") && !line.contains("\u{1b}[2J")),
            "{lines:#?}"
        );
    }

    #[test]
    fn a_line_of_json_is_one_object_with_the_very_text() {
        let written = Written::default();
        let writer = written.clone();
        with_default(json(EnvFilter::new("info"), move || writer.clone()), tell);
        let lines = written.lines();
        assert_eq!(lines.len(), 7, "{lines:#?}");
        for line in &lines {
            assert!(!line.contains(is_strange), "{line:?}");
            let object: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(object["level"].as_str().unwrap().len(), 4);
        }
        let first: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(first["reason"], HOSTILE);
    }
}
