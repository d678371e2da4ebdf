//! The members of the etcd cluster, and which of them is asked.
//!
//! Each has a client of its own. One client for all would balance requests over the members and send
//! every second one to a member that is down; here all go to one that answers, until it does not.

use std::{
    error::Error as _,
    sync::atomic::{AtomicUsize, Ordering},
};

use etcd_client::{Channel, Client, ConnectOptions, Error};
use tokio::{
    sync::{Mutex, watch},
    time::timeout,
};

use super::{ANSWER, EtcdError, advice::advice, channel, endpoint::Endpoint, tls};

/// The members, and the one that answered last.
pub(super) struct Members {
    all: Vec<Member>,
    current: AtomicUsize,
    /// Why the last request failed, if it did.
    trouble: watch::Sender<Option<String>>,
    /// Changes when streams are to be opened anew.
    moves: watch::Sender<u64>,
}

pub(super) struct Member {
    pub(super) endpoint: Endpoint,
    pub(super) options: ConnectOptions,
    /// What it takes to encrypt; `None` for a connection in the clear.
    pub(super) tls: Option<tls::Files>,
    /// Name and password.
    pub(super) user: Option<(String, String)>,
    /// It has a client certificate to show.
    pub(super) have_certificate: bool,
    /// Made when first needed; dropped when it fails, so that the next is authenticated and connected afresh.
    pub(super) client: Mutex<Option<Client>>,
}

/// Which member answered: what is said of it by [`Members::failed`].
#[derive(Clone, Copy, Debug)]
pub(super) struct MemberId(usize);

/// What an error says about the member that gave it.
enum Blame {
    /// Another member may do better.
    Member,
    /// A new session may do better, with any member.
    Session,
    /// All members would say the same.
    Nobody,
}

impl Members {
    /// Nodes begin with different members, so that they spread over them.
    pub(super) fn new(all: Vec<Member>, trouble: watch::Sender<Option<String>>) -> Self {
        let current = AtomicUsize::new(rand::random_range(0..all.len().max(1)));
        Self { all, current, trouble, moves: watch::Sender::new(0) }
    }

    /// Asks the members one after the other, beginning with the one that answered last, until one answers
    /// or refuses. `what` says what is asked, in an error.
    pub(super) async fn call<T, F, Answer>(
        &self,
        what: &'static str,
        ask: F,
    ) -> Result<(T, MemberId), EtcdError>
    where
        F: Fn(Client) -> Answer,
        Answer: Future<Output = Result<T, Error>>,
    {
        let result = self.ask_all(what, ask).await;
        let trouble = result.as_ref().err().map(EtcdError::to_string);
        self.trouble.send_if_modified(|now| {
            let changed = *now != trouble;
            *now = trouble;
            changed
        });
        result
    }

    async fn ask_all<T, F, Answer>(&self, what: &'static str, ask: F) -> Result<(T, MemberId), EtcdError>
    where
        F: Fn(Client) -> Answer,
        Answer: Future<Output = Result<T, Error>>,
    {
        let mut failed = Vec::new();
        for round in 0..2 {
            let mut session = false;
            failed.clear();
            let first = self.current.load(Ordering::Relaxed);
            for offset in 0..self.all.len() {
                let id = MemberId((first + offset) % self.all.len());
                let Some(member) = self.all.get(id.0) else { continue };
                let error = match timeout(ANSWER, member.ask(&ask)).await {
                    Ok(Ok(answer)) => {
                        self.current.store(id.0, Ordering::Relaxed);
                        return Ok((answer, id));
                    }
                    Ok(Err(error)) => error,
                    Err(_) => Error::Internal(format!("no answer within {} s", ANSWER.as_secs())),
                };
                let reason = reason(&error);
                let advice = advice(&member.endpoint, member.have_certificate, &reason);
                match blame(&error) {
                    Blame::Nobody => {
                        let endpoint = member.endpoint.to_string();
                        return Err(EtcdError::Refused { what, endpoint, reason, advice });
                    }
                    Blame::Session => session = true,
                    Blame::Member => {}
                }
                *member.client.lock().await = None;
                failed.push(format!("{}: {reason}; {advice}", member.endpoint));
            }
            if !session || round > 0 {
                break;
            }
        }
        // In the order of the flag, so that the same state is the same message wherever the round began.
        failed.sort();
        Err(EtcdError::Unreachable { what, tried: failed.join(" | ") })
    }

    /// A stream from this member ended: its connection is given up, and another member is asked next.
    pub(super) async fn failed(&self, MemberId(id): MemberId) {
        if let Some(member) = self.all.get(id) {
            *member.client.lock().await = None;
        }
        let next = (id + 1) % self.all.len().max(1);
        let _ = self.current.compare_exchange(id, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Our address is another: what is connected from the old one is given up instead of waited for.
    pub(super) async fn moved(&self) {
        for member in &self.all {
            *member.client.lock().await = None;
        }
        self.moves.send_modify(|moves| *moves += 1);
    }

    /// Changes whenever our address has, and with it every stream is dead.
    pub(super) fn moves(&self) -> watch::Receiver<u64> {
        self.moves.subscribe()
    }

    /// The endpoint of a member, for logs.
    pub(super) fn endpoint(&self, MemberId(id): MemberId) -> String {
        self.all.get(id).map(|member| member.endpoint.to_string()).unwrap_or_default()
    }
}

impl Member {
    async fn ask<T, F, Answer>(&self, ask: &F) -> Result<T, Error>
    where
        F: Fn(Client) -> Answer,
        Answer: Future<Output = Result<T, Error>>,
    {
        let client = {
            let mut kept = self.client.lock().await;
            match kept.as_ref() {
                Some(client) => client.clone(),
                None => kept.insert(self.connect().await?).clone(),
            }
        };
        ask(client).await
    }

    async fn connect(&self) -> Result<Client, Error> {
        let options = self.options.clone();
        let Some((user, password)) = &self.user else { return self.connect_as(options).await };
        match self.connect_as(options.clone().with_user(user, password)).await {
            // As upstream's client: credentials given before the cluster asks for any are no error.
            Err(Error::GRpcStatus(status)) if status.message().contains("authentication is not enabled") => {
                self.connect_as(options).await
            }
            other => other,
        }
    }

    async fn connect_as(&self, options: ConnectOptions) -> Result<Client, Error> {
        let url = self.endpoint.to_string();
        let Some(files) = &self.tls else { return Client::connect(&[url], Some(options)).await };
        let config = tls::client_config(files).map_err(|error| Error::Internal(error.to_string()))?;
        Client::from_channel(Channel::Tonic(channel::encrypted(url, config)?), Some(options)).await
    }
}

fn blame(error: &Error) -> Blame {
    let Error::GRpcStatus(status) = error else { return Blame::Member };
    let of_session = ["auth store is old", "invalid auth token", "user name is empty"];
    if of_session.iter().any(|text| status.message().contains(text)) {
        return Blame::Session;
    }
    // The numbers of gRPC's status codes.
    match i32::from(status.code()) {
        // Invalid argument, not found, already exists, permission denied, failed precondition, out of range.
        3 | 5 | 6 | 7 | 9 | 11 => Blame::Nobody,
        _ => Blame::Member,
    }
}

/// What went wrong, without the wrapping of the layers above: the message and the first cause.
pub(super) fn reason(error: &Error) -> String {
    let (message, mut cause) = match error {
        Error::GRpcStatus(status) => (status.message().to_owned(), status.source()),
        Error::TransportError(error) => (error.to_string(), error.source()),
        Error::Internal(text) => (text.clone(), None),
        other => (other.to_string(), None),
    };
    let mut deepest = None;
    while let Some(error) = cause {
        deepest = Some(error.to_string());
        cause = error.source();
    }
    match deepest {
        Some(deepest) if !message.contains(&deepest) => format!("{message}: {deepest}"),
        _ => message,
    }
}
