//! How long flows may stay unseen, given how long connection tracking remembers them.
//!
//! It counts from the last packet it has seen, and the last one that skipped the stack may have come later, by as much
//! as acceptance holds. So that holds for a tenth of the shortest time that it may forget the flow after: a flow that
//! rests for nine tenths of that is known when it goes on.

use std::{convert::Infallible, time::Duration};

use tokio::{sync::watch, time::sleep};
use tracing::info;

use super::PAUSE;
use crate::{
    host::sysctl::{self, Settings},
    values::FlowRefresh,
};

/// What acceptance may take of the time that connection tracking remembers a flow: one part in so many.
const PART: u32 = 10;

/// A setting, seconds, and what the kernel has where nobody has set it
/// (Documentation/networking/nf_conntrack-sysctl.rst of Linux).
type Timeout = (&'static str, Duration);

/// Of UDP: for flows of up to two seconds, and for longer ones.
const UDP: [Timeout; 2] = [
    ("netfilter/nf_conntrack_udp_timeout", Duration::from_secs(30)),
    ("netfilter/nf_conntrack_udp_timeout_stream", Duration::from_secs(120)),
];
/// Of TCP: at rest; with data that it believes not to be acknowledged, as it does not see each packet; with segments
/// that it believes to be sent again.
const TCP: [Timeout; 3] = [
    ("netfilter/nf_conntrack_tcp_timeout_established", Duration::from_secs(432_000)),
    ("netfilter/nf_conntrack_tcp_timeout_unacknowledged", Duration::from_secs(300)),
    ("netfilter/nf_conntrack_tcp_timeout_max_retrans", Duration::from_secs(300)),
];

/// How long a TCP connection is kept after a reset, and after one side has ended it.
const AFTER_RESET: Timeout = ("netfilter/nf_conntrack_tcp_timeout_close", Duration::from_secs(10));
const CLOSE_WAIT: Timeout = ("netfilter/nf_conntrack_tcp_timeout_close_wait", Duration::from_secs(60));

/// For how long connection tracking keeps TCP connections if nothing more comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpTimeouts {
    /// One that is established.
    pub established: Duration,
    /// One whose data it believes not to be acknowledged, or to be sent again and again.
    pub unacknowledged: Duration,
    /// One that one side has ended.
    pub close_wait: Duration,
    /// One that was reset, at most: the time may just have been changed.
    pub after_reset: Duration,
}

impl TcpTimeouts {
    /// As they are set now.
    pub fn now() -> Self {
        let read = |timeout| read(&sysctl::NET, timeout);
        Self {
            established: read(&TCP[0]),
            unacknowledged: read(&TCP[1]).max(read(&TCP[2])),
            close_wait: read(&CLOSE_WAIT),
            after_reset: read(&AFTER_RESET).max(AFTER_RESET.1),
        }
    }
}

/// How long acceptance holds now, where an operator has `asked` for so much at most. The settings come with the module:
/// until then those of the kernel count.
pub fn refresh(asked: Duration) -> FlowRefresh {
    refresh_by(&sysctl::NET, asked)
}

fn refresh_by(settings: &Settings<'_>, asked: Duration) -> FlowRefresh {
    let within = |timeouts: &[Timeout]| {
        timeouts.iter().map(|it| read(settings, it)).fold(asked, |least, timeout| least.min(timeout / PART))
    };
    FlowRefresh { tcp: within(&TCP), udp: within(&UDP) }
}

fn read(settings: &Settings<'_>, (name, usual): &Timeout) -> Duration {
    match settings.read(name).ok().and_then(|text| text.parse().ok()) {
        Some(seconds) => Duration::from_secs(seconds),
        None => *usual,
    }
}

/// Tells `refreshes` how long acceptance holds whenever the settings say something else. Never returns.
pub async fn follow_timeouts(asked: Duration, refreshes: &watch::Sender<FlowRefresh>) -> Infallible {
    loop {
        let now = refresh(asked);
        let changed = refreshes.send_if_modified(|told| std::mem::replace(told, now) != now);
        if changed {
            info!(tcp = ?now.tcp, udp = ?now.udp, "timeouts of connection tracking have changed: flows are accepted for these times");
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn acceptance_ends_well_before_connection_tracking_forgets() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let settings = Settings { own: directory.to_str().unwrap(), mounted: "/not-there" };
        let set = |name: &str, value: &str| fs::write(directory.join(name), value).unwrap();
        let of = |asked| {
            let FlowRefresh { tcp, udp } = refresh_by(&settings, Duration::from_secs(asked));
            (tcp.as_millis(), udp.as_millis())
        };
        assert_eq!(of(30), (30_000, 3_000));
        assert_eq!(of(1), (1_000, 1_000));
        fs::create_dir(directory.join("netfilter")).unwrap();
        set(UDP[0].0, "5\n");
        assert_eq!(of(30), (30_000, 500));
        set(UDP[0].0, "3600\n");
        assert_eq!(of(30), (30_000, 12_000));
        set(UDP[1].0, "2\n");
        set(TCP[1].0, "60\n");
        assert_eq!(of(30), (6_000, 200));
        set(TCP[0].0, "0\n");
        assert_eq!(of(30), (0, 200));
        set(TCP[0].0, "what?\n");
        assert_eq!(of(30), (6_000, 200));
    }
}
