//! Many requests to the API server, and faster than one `curl` each.

use anyhow::{Context as _, Result};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::{ADMIN, ApiServer};

impl ApiServer {
    /// Runs `work` with a client that may do everything.
    pub fn as_admin<T: Send>(&self, work: impl AsyncFnOnce(Client) -> Result<T> + Send) -> Result<T> {
        let file = self.kubeconfig("admin", ADMIN)?;
        self.netns.inside(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let read = Kubeconfig::read_from(&file).context("kubeconfig of the admin")?;
                let mut config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
                config.default_retry = false;
                work(Client::try_from(config)?).await
            })
        })
    }
}
