//! Who may do what: ServiceAccounts, their roles, and the files by which they find the API server.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::ApiServer;
use crate::etcd::write_private;

const RBAC: &str = "rbac.authorization.k8s.io";

impl ApiServer {
    /// Creates the ServiceAccount `name`, which may do next to nothing.
    pub fn add_service_account(&self, namespace: &str, name: &str) -> Result<()> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        self.create(&path, &json!({ "metadata": { "name": name } })).map(drop)
    }

    /// Lets a ServiceAccount do what the ClusterRole `role` allows, everywhere.
    pub fn bind_cluster_role(&self, role: &str, namespace: &str, account: &str) -> Result<()> {
        let binding = json!({
            "metadata": { "name": format!("{namespace}:{account}:{role}") },
            "roleRef": { "apiGroup": RBAC, "kind": "ClusterRole", "name": role },
            "subjects": [{ "kind": "ServiceAccount", "namespace": namespace, "name": account }],
        });
        self.create(&format!("/apis/{RBAC}/v1/clusterrolebindings"), &binding).map(drop)
    }

    /// A token of a ServiceAccount, for `seconds` (at least 600), as kubelet puts it into pods.
    pub fn token(&self, namespace: &str, account: &str, seconds: u32) -> Result<String> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": { "expirationSeconds": seconds },
        });
        let answer = self.create(&path, &request)?;
        let token = answer["status"]["token"].as_str().with_context(|| format!("no token in {answer}"))?;
        Ok(token.to_owned())
    }

    /// Writes a kubeconfig file for whoever `token` belongs to.
    pub fn kubeconfig(&self, name: &str, token: &str) -> Result<PathBuf> {
        self.kubeconfig_for(name, token, &self.url())
    }

    /// The same by way of `url`, for those who are to meet something on their way to the API server.
    pub fn kubeconfig_for(&self, name: &str, token: &str, url: &str) -> Result<PathBuf> {
        // JSON is YAML, too.
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "lab",
                "cluster": { "server": url, "certificate-authority": self.authority() },
            }],
            "users": [{ "name": name, "user": { "token": token } }],
            "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": name } }],
            "current-context": "lab",
        });
        let path = self.dir().join(format!("{name}.kubeconfig"));
        write_private(&path, &config.to_string())?;
        Ok(path)
    }

    /// Writes what kubelet mounts into a pod: `token`, `ca.crt` and `namespace`, in a directory of their own.
    pub fn pod_credentials(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        let directory = self.dir().join(format!("{namespace}-{account}"));
        super::make_dir(&directory)?;
        write_private(&directory.join("token"), &self.token(namespace, account, 86_400)?)?;
        let certificate = fs::read_to_string(self.authority()).context("read the authority's certificate")?;
        write_private(&directory.join("ca.crt"), &certificate)?;
        write_private(&directory.join("namespace"), namespace)?;
        Ok(directory)
    }
}
