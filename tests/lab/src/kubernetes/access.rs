//! Who may do what: ServiceAccounts, their roles, and the files by which they find the API server.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

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

    /// A token of a ServiceAccount, for `seconds` (at least 600).
    pub fn token(&self, namespace: &str, account: &str, seconds: u32) -> Result<String> {
        self.bound_token(namespace, account, seconds, None)
    }

    /// The same, which ends with the Pod `pod` if not before.
    fn bound_token(
        &self,
        namespace: &str,
        account: &str,
        seconds: u32,
        pod: Option<&Value>,
    ) -> Result<String> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let bound = pod.map(|pod| {
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"],
            })
        });
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": { "expirationSeconds": seconds, "boundObjectRef": bound },
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

    /// What kubelet mounts into a pod, for `seconds`: `token`, `ca.crt` and `namespace`.
    pub fn pod_credentials(&self, pod: &Value, seconds: u32) -> Result<BTreeMap<String, String>> {
        let namespace = pod["metadata"]["namespace"].as_str().context("a pod without a namespace")?;
        let account = pod["spec"]["serviceAccountName"].as_str().context("a pod without an account")?;
        let certificate = fs::read_to_string(self.authority()).context("read the authority's certificate")?;
        let files = [
            ("token", self.bound_token(namespace, account, seconds, Some(pod))?),
            ("ca.crt", certificate),
            ("namespace", namespace.to_owned()),
        ];
        Ok(files.map(|(name, text)| (name.to_owned(), text)).into())
    }
}
