//! What every verb gets: the connection, the namespace, the outputs.

use std::path::PathBuf;

use timonier_proto::{Kind, ObjectKey};

use crate::client::Client;
use crate::client::calls::Filter;
use crate::config::{Config, Target};
use crate::output::Out;

pub struct Ctx {
    pub client: Client,
    pub target: Target,
    pub out: Out,
    pub config: Config,
    pub config_path: PathBuf,
}

impl Ctx {
    pub fn namespace(&self) -> &str {
        &self.target.namespace
    }

    /// Key of an object in the command's namespace.
    pub fn key(&self, kind: Kind, name: &str) -> ObjectKey {
        self.key_in(kind, self.namespace(), name)
    }

    pub fn key_in(&self, kind: Kind, namespace: &str, name: &str) -> ObjectKey {
        let namespace = if kind.info().namespaced { namespace } else { "" };
        ObjectKey::new(kind, namespace, name)
    }

    /// All objects of the command's namespace, or of all namespaces.
    pub fn filter(&self, all_namespaces: bool) -> Filter {
        Filter::namespace(if all_namespaces { "" } else { self.namespace() })
    }
}
