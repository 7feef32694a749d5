//! [`UserInfo`]: who asks, as authentication established it. Kubernetes' names and groups.

/// Its members may do everything: no role takes that from them.
pub const SUPERUSERS: &str = "system:masters";
/// The masters of the cluster among themselves.
pub const MASTERS: &str = "timonier:masters";
/// The agents.
pub const NODES: &str = "system:nodes";
/// A node's user name begins with this; its own name follows.
pub const NODE_PREFIX: &str = "system:node:";
/// Everybody whose credentials were good.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Everybody else…
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// …whose name is this.
pub const ANONYMOUS: &str = "system:anonymous";
/// All service accounts.
pub const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// A user: a person, a node, a service account, a master.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserInfo {
    pub name: String,
    /// Empty where there is none, as for people.
    pub uid: String,
    pub groups: Vec<String>,
}

impl UserInfo {
    /// Somebody whose credentials were good. `system:authenticated` is added to the groups.
    pub fn authenticated(name: impl Into<String>, mut groups: Vec<String>) -> Self {
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Self { name: name.into(), uid: String::new(), groups }
    }

    /// Somebody who brought no credentials.
    pub fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.to_owned(),
            uid: String::new(),
            groups: vec![UNAUTHENTICATED.to_owned()],
        }
    }

    /// A service account, with the groups that it has by itself.
    pub fn of_service_account(namespace: &str, name: &str, uid: &str) -> Self {
        let groups = vec![
            SERVICE_ACCOUNTS.to_owned(),
            format!("{SERVICE_ACCOUNTS}:{namespace}"),
            AUTHENTICATED.to_owned(),
        ];
        Self {
            name: format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}"),
            uid: uid.to_owned(),
            groups,
        }
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    pub fn is_superuser(&self) -> bool {
        self.in_group(SUPERUSERS)
    }

    /// The node that it is, if it is one.
    pub fn node(&self) -> Option<&str> {
        self.name.strip_prefix(NODE_PREFIX).filter(|name| !name.is_empty() && self.in_group(NODES))
    }

    /// Namespace and name of the service account that it is, if it is one.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        self.name.strip_prefix(SERVICE_ACCOUNT_PREFIX)?.split_once(':')
    }
}
