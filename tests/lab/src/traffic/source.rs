//! Who a connection seems to come from.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};

use super::{Endpoint, tcp::accept};
use crate::wait::eventually;

/// How long each step of the exchange may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connects from `from` to `destination`, where `server` listens on `port`: the address that `server` sees,
/// as it tells the client over the connection. `destination` is `server`'s own address, or one that is
/// forwarded to it.
pub fn source_seen(
    from: &Endpoint,
    server: &Endpoint,
    port: u16,
    destination: impl Into<SocketAddr>,
) -> Result<IpAddr> {
    let destination = destination.into();
    let any = if destination.is_ipv4() { "0.0.0.0" } else { "::" };
    let exchange = || -> Result<IpAddr> {
        // A program that another thread is about to start holds a copy of the last exchange's listener until
        // it runs.
        let listener = eventually(PATIENCE, "the port is free", || {
            server.netns().inside(|| TcpListener::bind((any, port)).context("listen"))
        })?;
        let answering = thread::spawn(move || answer(&listener));
        let told = from.netns().inside(|| ask(destination));
        let answered = answering.join().map_err(|_| anyhow!("server panicked"))?;
        let told = told?;
        answered?;
        told.parse().with_context(|| format!("the server answered {told:?}"))
    };
    exchange().with_context(|| format!("{} to {} at {destination}", from.name(), server.name()))
}

fn ask(destination: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&destination, PATIENCE).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut told = String::new();
    stream.read_to_string(&mut told).context("read the answer")?;
    Ok(told)
}

fn answer(listener: &TcpListener) -> Result<()> {
    let (mut stream, source) = accept(listener, PATIENCE)?;
    stream.write_all(source.ip().to_string().as_bytes()).context("answer")
}
