//! JSON that is decoded as it comes in.
//!
//! A server that answers from its cache heeds no limit: the list of five thousand nodes is fifty megabytes in one piece,
//! of which [`super::record`] keeps two.

use std::io::{self, BufReader, Cursor, Read};

use futures::{AsyncBufRead, AsyncBufReadExt as _};
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, task::spawn_blocking};

/// Pieces of the body that may wait for the decoder. When they are this many, the server waits.
const AHEAD: usize = 4;

/// What `body` says.
///
/// # Errors
/// Why it cannot be read to its end, or where it is not the JSON of a `T`.
pub(super) async fn decode<T: DeserializeOwned + Send + 'static>(
    mut body: impl AsyncBufRead + Unpin,
) -> io::Result<T> {
    let (pieces, received) = mpsc::channel(AHEAD);
    // Ends with the sender, also when nobody waits for it any more.
    let decoder = spawn_blocking(move || serde_json::from_reader(BufReader::new(Pieces::of(received))));
    loop {
        let piece = body.fill_buf().await?;
        let length = piece.len();
        // A decoder that takes no more says itself why.
        if length == 0 || pieces.send(piece.to_vec()).await.is_err() {
            break;
        }
        body.consume_unpin(length);
    }
    drop(pieces);
    Ok(decoder.await??)
}

/// The pieces, one after the other.
struct Pieces {
    received: mpsc::Receiver<Vec<u8>>,
    current: Cursor<Vec<u8>>,
}

impl Pieces {
    fn of(received: mpsc::Receiver<Vec<u8>>) -> Self {
        Self { received, current: Cursor::default() }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.current.read(buffer)? {
                0 => match self.received.blocking_recv() {
                    Some(piece) => self.current = Cursor::new(piece),
                    None => return Ok(0),
                },
                read => return Ok(read),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use futures::{StreamExt as _, TryStreamExt as _, stream};
    use serde_json::Value;

    use super::*;

    async fn decoded(pieces: Vec<io::Result<Vec<u8>>>) -> io::Result<Value> {
        decode(stream::iter(pieces).into_async_read()).await
    }

    #[tokio::test]
    async fn a_body_in_pieces_is_one_value() {
        let text = r#"{"items":[{"name":"nœud","n":1},{"name":"\u00e9"}]}"#;
        let value: Value = serde_json::from_str(text).unwrap();
        for length in 1..text.len() {
            let pieces = text.as_bytes().chunks(length).map(|piece| Ok(piece.to_vec())).collect();
            assert_eq!(decoded(pieces).await.unwrap(), value, "pieces of {length} bytes");
        }
    }

    #[tokio::test]
    async fn a_body_that_is_cut_or_no_json_is_an_error() {
        let piece = |text: &str| Ok(text.as_bytes().to_vec());
        let error = decoded(vec![piece("[1, 2")]).await.unwrap_err().to_string();
        assert!(error.contains("EOF while parsing"), "{error}");
        let error = decoded(vec![piece("[1, "), Err(io::Error::other("reset"))]).await.unwrap_err();
        assert_eq!(error.to_string(), "reset");
        let error = decoded(vec![piece("<html>"), piece("a page")]).await.unwrap_err().to_string();
        assert!(error.contains("expected value"), "{error}");
        assert!(decoded(vec![piece("[]"), piece("]")]).await.is_err(), "something after its end");
    }

    /// Of a body that goes on for ever no more is read than the decoder has taken, once it takes no more.
    #[tokio::test]
    async fn no_more_is_read_than_is_decoded() {
        let read = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&read);
        let body = stream::repeat_with(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok::<_, io::Error>(vec![b'}'; 1 << 20])
        });
        let error = decode::<Value>(body.boxed().into_async_read()).await.unwrap_err();
        assert!(error.to_string().contains("expected value"), "{error}");
        assert!(read.load(Ordering::Relaxed) <= AHEAD + 3, "{read:?} pieces");
    }
}
