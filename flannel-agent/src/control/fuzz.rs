//! Any bytes as what a client says at the control socket: what a fuzzer of it runs.

#![expect(
    clippy::expect_used,
    reason = "what is expected is a promise: a fuzzer is to find where it is broken"
)]

use std::cell::RefCell;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    runtime::{Builder, Runtime},
};

use super::{Standing, server};

thread_local! {
    static RUNTIME: RefCell<Runtime> =
        RefCell::new(Builder::new_current_thread().enable_all().build().expect("a runtime"));
}

/// Says `bytes`, closes, and reads the answers to their end.
///
/// # Panics
/// What is answered is no HTTP.
pub(crate) fn client(bytes: &[u8]) {
    RUNTIME.with_borrow(|runtime| {
        runtime.block_on(async {
            let (mut ours, theirs) = UnixStream::pair().expect("two ends");
            let conversation = tokio::spawn(server::converse(theirs, Standing::default()));
            // More than the kernel keeps for it waits for the server, which may have ended.
            let _ = ours.write_all(bytes.get(..bytes.len().min(64 << 10)).unwrap_or_default()).await;
            let _ = ours.shutdown().await;
            let mut answer = Vec::new();
            let _ = ours.read_to_end(&mut answer).await;
            conversation.await.expect("an end without panic");
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{answer:?}");
        });
    });
}
