//! A way to etcd that can be cut.

use std::time::Instant;

use super::*;

/// Passes TCP connections on, until cut.
pub(crate) struct Proxy {
    pub(crate) address: std::net::SocketAddr,
    target: std::net::SocketAddr,
    tasks: Arc<Mutex<Vec<tokio::task::JoinHandle<()>>>>,
}

impl Proxy {
    pub(crate) async fn to(etcd: &Etcd) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::serve(listener, etcd.address())
    }

    fn serve(listener: tokio::net::TcpListener, target: std::net::SocketAddr) -> Self {
        let address = listener.local_addr().unwrap();
        let tasks = Arc::new(Mutex::new(Vec::new()));
        let all = tasks.clone();
        let accept = tokio::spawn(async move {
            while let Ok((mut here, _)) = listener.accept().await {
                let pass = tokio::spawn(async move {
                    let Ok(mut there) = tokio::net::TcpStream::connect(target).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
                });
                all.lock().unwrap().push(pass);
            }
        });
        tasks.lock().unwrap().push(accept);
        Self { address, target, tasks }
    }

    pub(crate) fn connections(&self) -> usize {
        self.tasks.lock().unwrap().len() - 1
    }

    pub(crate) fn cut(self) -> Self {
        for task in self.tasks.lock().unwrap().drain(..) {
            task.abort();
        }
        self
    }

    pub(crate) async fn mend(self) -> Self {
        let begun = Instant::now();
        loop {
            match tokio::net::TcpListener::bind(self.address).await {
                Ok(listener) => return Self::serve(listener, self.target),
                Err(error) => assert!(begun.elapsed() < SOON, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
