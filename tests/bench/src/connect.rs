//! Connections one after the other: what the first packets of a flow cost, and the learning of it.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::{
    socket::{setsockopt, sockopt::ReceiveTimeout},
    time::{TimeVal, TimeValLike as _},
};

use super::{Subject, surroundings::Cpus};

/// Port of the server.
pub(super) const PORT: u16 = 11_112;
const SIZE: usize = 64;
const PATIENCE: Duration = Duration::from_secs(3);

/// Thousands of connections per second; and microseconds of CPU that the agent of the client's node takes for each, where
/// there is one.
pub(super) fn rate(subject: &Subject, seconds: u32, cpus: Cpus) -> Result<Vec<f64>> {
    let listener =
        subject.server().netns().inside(|| TcpListener::bind(subject.server_at(PORT)).context("listen"))?;
    // So that the server ends where no client can come.
    setsockopt(&listener, ReceiveTimeout, &TimeVal::seconds(PATIENCE.as_secs().cast_signed()))?;
    let target = subject.target_at(PORT);
    let length = Duration::from_secs(seconds.into());
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            Cpus::pin(cpus.second)?;
            serve(&listener, &over)
        });
        let done = subject.client().netns().inside(|| {
            Cpus::pin(cpus.first)?;
            let before = subject.agent_cpu()?;
            let begin = Instant::now();
            let mut count = 0u64;
            let done = loop {
                if begin.elapsed() > length {
                    break Ok(());
                }
                if let Err(error) = ask(&target) {
                    break Err(error.context(format!("connection {count}")));
                }
                count += 1;
            };
            let rate = count as f64 / begin.elapsed().as_secs_f64() / 1e3;
            let after = subject.agent_cpu()?;
            over.store(true, Ordering::Relaxed);
            // One more, for the server to see that it is over.
            drop(TcpStream::connect_timeout(&target, PATIENCE));
            done?;
            ensure!(count > 0, "not one connection in {length:?}");
            let taken = before.zip(after).map(|(before, after)| after.saturating_sub(before));
            let each = taken.map(|taken| taken.as_secs_f64() * 1e6 / count as f64);
            Ok([rate].into_iter().chain(each).collect())
        });
        over.store(true, Ordering::Relaxed);
        server.join().map_err(|_| anyhow!("the server panicked"))??;
        done
    })
}

/// The server closes first, so that its end keeps what TCP keeps of a closed connection, and the client's ports are
/// free again at once.
fn serve(listener: &TcpListener, over: &AtomicBool) -> Result<()> {
    let mut message = [0; SIZE];
    loop {
        let accepted = listener.accept();
        if over.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (mut stream, _) = accepted.context("accept")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read_exact(&mut message).context("read the request")?;
        stream.write_all(&message).context("answer")?;
    }
}

fn ask(target: &std::net::SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(target, PATIENCE).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[1; SIZE]).context("ask")?;
    let mut answer = Vec::with_capacity(SIZE);
    stream.read_to_end(&mut answer).context("read the answer")?;
    ensure!(answer == [1; SIZE], "{} bytes of answer", answer.len());
    Ok(())
}
