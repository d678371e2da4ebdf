//! The plugin's own configuration, as it comes on standard input.

use std::{collections::BTreeSet, path::PathBuf};

use serde_json::{Map, Value};

use super::{
    error::{CniError, Code},
    invocation::is_identifier,
    version,
};
use crate::values::gojson::{FieldError, Object};

const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const DATA_DIR: &str = "/var/lib/cni/flannel";

/// Names of the list of attachments that are in use: the specification's, and the one that runtimes' library sends
/// beside it.
const ATTACHMENTS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// The configuration of the plugin: names of fields in any case, as upstream's reads them.
#[derive(Clone, Debug, PartialEq)]
pub struct NetConf {
    /// `cniVersion`; 0.1.0 where there is none.
    pub cni_version: String,
    /// Whether the configuration says so itself. The delegate is told only then.
    pub(super) says_version: bool,
    /// `name` of the network.
    pub name: String,
    /// `subnetFile`, by default /run/flannel/subnet.env.
    pub subnet_file: PathBuf,
    /// `dataDir`, by default /var/lib/cni/flannel.
    pub data_dir: PathBuf,
    /// `ipam`.
    pub ipam: Map<String, Value>,
    /// `delegate`.
    pub delegate: Map<String, Value>,
    /// `runtimeConfig`, as of port mappings.
    pub runtime_config: Option<Map<String, Value>>,
    /// `prevResult`: of ADD, as CHECK is told it.
    pub(super) prev_result: Option<Value>,
    /// What GC is told, by the names it came under.
    pub(super) attachments: Map<String, Value>,
}

impl NetConf {
    /// Reads `text`.
    ///
    /// # Errors
    /// What in it cannot be; the field is named.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let object = Object::parse("", text).map_err(|error| {
            CniError::new(Code::Decoding, format!("failed to load netconf: not a JSON object: {error}"))
        })?;
        let string = |name| object.get::<String>(name, "a string").map_err(refused);
        let fields = |name| object.get::<Map<String, Value>>(name, "an object").map_err(refused);
        let version = string("cniVersion")?.filter(|version| !version.is_empty());
        let name = string("name")?.unwrap_or_default();
        if !is_identifier(&name) {
            let message = if name.is_empty() {
                "missing network name".to_owned()
            } else {
                format!("name: {name:?} is no identifier")
            };
            return Err(CniError::new(Code::NetworkConfig, message).detailed(
                "letters, digits, underscores, dots and hyphens, beginning with a letter or digit",
            ));
        }
        let mut attachments = Map::new();
        for field in ATTACHMENTS {
            if let Some(list) = object.get::<Value>(field, "a list").map_err(refused)? {
                attachments.insert(field.to_owned(), list);
            }
        }
        let conf = Self {
            says_version: version.is_some(),
            cni_version: version.unwrap_or_else(|| version::OLDEST.to_owned()),
            name,
            subnet_file: string("subnetFile")?.unwrap_or_else(|| SUBNET_FILE.to_owned()).into(),
            data_dir: string("dataDir")?.unwrap_or_else(|| DATA_DIR.to_owned()).into(),
            ipam: fields("ipam")?.unwrap_or_default(),
            delegate: fields("delegate")?.unwrap_or_default(),
            runtime_config: fields("runtimeConfig")?,
            prev_result: object.get("prevResult", "an object").map_err(refused)?,
            attachments,
        };
        for (name, path) in [("subnetFile", &conf.subnet_file), ("dataDir", &conf.data_dir)] {
            if path.as_os_str().is_empty() {
                return Err(CniError::new(
                    Code::NetworkConfig,
                    format!("{name}: empty; name a path, or leave it out"),
                ));
            }
        }
        conf.check_delegate()?;
        Ok(conf)
    }

    fn check_delegate(&self) -> Result<(), CniError> {
        let refuse = |text: &str| Err(CniError::new(Code::NetworkConfig, text));
        if self.delegate.get("type").is_some_and(|kind| !kind.is_string()) {
            return refuse("'delegate' dictionary, if present, must have (string) 'type' field");
        }
        for field in ["name", "ipam"] {
            if self.delegate.contains_key(field) {
                return Err(CniError::new(
                    Code::NetworkConfig,
                    format!("'delegate' dictionary must not have '{field}' field, it'll be set by flannel"),
                )
                .detailed(format!("write {field} beside delegate")));
            }
        }
        Ok(())
    }

    /// The containers that GC is to leave alone.
    pub(super) fn valid_containers(&self) -> Result<BTreeSet<String>, CniError> {
        let refuse = |name: &str, what: &str| CniError::new(Code::NetworkConfig, format!("{name}: {what}"));
        let lists: Vec<&str> =
            ATTACHMENTS.into_iter().filter(|name| self.attachments.contains_key(*name)).collect();
        if lists.is_empty() {
            // An empty list would have us forget every container.
            return Err(refuse(ATTACHMENTS[0], "missing; GC needs the list of what is in use"));
        }
        let mut valid = BTreeSet::new();
        for name in lists {
            let list = self.attachments.get(name).and_then(Value::as_array);
            for attachment in list.ok_or_else(|| refuse(name, "not a list"))? {
                let id = attachment.get("containerID").and_then(Value::as_str);
                valid.insert(id.ok_or_else(|| refuse(name, "an entry without containerID"))?.to_owned());
            }
        }
        Ok(valid)
    }
}

fn refused(error: FieldError) -> CniError {
    CniError::new(Code::Decoding, format!("failed to load netconf: {error}"))
}
