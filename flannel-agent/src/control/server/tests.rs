use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::control::{AskError, Client, socket_beside};

#[tokio::test]
async fn an_agent_is_asked_at_a_socket_for_its_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let subnet_file = dir.path().join("subnet.env");
    let client = Client::beside(&subnet_file);
    assert!(matches!(client.snapshot().await, Err(AskError::NoAgent(_))), "there is none yet");
    let path = socket_beside(&subnet_file);
    // What a process that was killed leaves.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(matches!(client.snapshot().await, Err(AskError::NoAgent(_))), "there is none any more");

    let standing = Standing::default();
    standing.tell(|told| told.agent.doing = "waiting".to_owned());
    let server = ControlServer::start(&path, standing.clone()).unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let snapshot = client.snapshot().await.unwrap();
    assert_eq!((snapshot.version, snapshot.agent.doing.as_str()), (1, "waiting"));
    assert!(snapshot.dataplane.is_none() && snapshot.without_dataplane.is_some());
    standing.tell_rules("iptables", |rules| rules.restored += 1);
    standing.tell_rules("iptables", |rules| rules.restored += 1);
    assert_eq!(client.snapshot().await.unwrap().rules[0].restored, 2);
    assert!(client.peers().await.unwrap().peers.is_empty());
    let refused = client.ask::<()>("nothing").await.unwrap_err().to_string();
    assert!(refused.contains("/v1/peers"), "{refused}");

    drop(server);
    assert!(!path.exists(), "the socket stays behind");
}

#[tokio::test]
async fn clients_that_speak_no_http_or_say_nothing_hold_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let subnet_file = dir.path().join("subnet.env");
    let path = socket_beside(&subnet_file);
    let server = ControlServer::start(&path, Standing::default()).unwrap();
    let mut silent = Vec::new();
    for _ in 1..CONNECTIONS {
        silent.push(UnixStream::connect(&path).await.unwrap());
    }
    for garbage in
        [&b"\0\xff\r\n\r\n"[..], b"GET\r\n\r\n", &[b'a'; 100_000], b"POST /v1/peers HTTP/1.1\r\n\r\n"]
    {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        let _ = stream.write_all(garbage).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    Client::beside(&subnet_file).snapshot().await.unwrap();
    drop((silent, server));
}

#[tokio::test]
async fn a_name_that_no_socket_can_have_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("x".repeat(200));
    assert!(ControlServer::start(&long, Standing::default()).is_err());
}
