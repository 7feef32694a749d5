//! `create role|clusterrole|rolebinding|clusterrolebinding|serviceaccount|token`, with kubectl's
//! flags.

use clap::Subcommand;
use serde_json::{Value, json};
use timonier_proto::v1::CreateTokenRequest;

use super::auth::named;
use super::create::How;
use crate::cli::duration::Span;
use crate::context::Ctx;
use crate::error::{Outcome, bail, fail};

const RBAC: &str = "rbac.authorization.k8s.io";

#[derive(Debug, Subcommand)]
pub enum What {
    /// A role: what may be done in its namespace
    Role {
        name: String,
        #[command(flatten)]
        rules: Rules,
        #[command(flatten)]
        how: How,
    },
    /// A cluster role: what may be done anywhere, or where a binding says
    Clusterrole {
        name: String,
        #[command(flatten)]
        rules: Rules,
        /// Paths such as /version or /logs/*
        #[arg(long = "non-resource-url", value_name = "PATH", value_delimiter = ',')]
        urls: Vec<String>,
        /// Put together from the cluster roles with these labels
        #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', conflicts_with_all = ["verb", "resource", "urls"])]
        aggregation_rule: Vec<String>,
        #[command(flatten)]
        how: How,
    },
    /// Gives a role, or a cluster role, to somebody in a namespace
    Rolebinding {
        name: String,
        /// Role of the namespace
        #[arg(
            long,
            value_name = "NAME",
            conflicts_with = "clusterrole",
            required_unless_present = "clusterrole"
        )]
        role: Option<String>,
        /// Cluster role
        #[arg(long, value_name = "NAME")]
        clusterrole: Option<String>,
        #[command(flatten)]
        subjects: Subjects,
        #[command(flatten)]
        how: How,
    },
    /// Gives a cluster role to somebody everywhere
    Clusterrolebinding {
        name: String,
        /// Cluster role
        #[arg(long, value_name = "NAME")]
        clusterrole: String,
        #[command(flatten)]
        subjects: Subjects,
        #[command(flatten)]
        how: How,
    },
    /// A service account: who a program is
    #[command(visible_alias = "sa")]
    Serviceaccount {
        name: String,
        #[command(flatten)]
        how: How,
    },
    /// A token of a service account, printed and stored nowhere
    Token {
        /// Service account
        name: String,
        /// How long it is good; an hour, from 10m to 30d
        #[arg(long, value_name = "TIME")]
        duration: Option<Span>,
        /// Whom it is for, instead of the masters
        #[arg(long, value_name = "NAME")]
        audience: Vec<String>,
        /// Pod with which it ends
        #[arg(long, value_name = "POD", default_value = "", hide_default_value = true)]
        bound_pod: String,
    },
}

#[derive(Debug, clap::Args)]
pub struct Rules {
    /// get, list, watch, create, update, patch, delete, or *
    #[arg(long, value_name = "VERB", value_delimiter = ',')]
    pub verb: Vec<String>,
    /// pods, pods/log, deployments.apps, or *
    #[arg(long, value_name = "RESOURCE", value_delimiter = ',')]
    pub resource: Vec<String>,
    /// Only the objects of these names
    #[arg(long, value_name = "NAME")]
    pub resource_name: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub struct Subjects {
    /// User; may stand several times
    #[arg(long, value_name = "NAME")]
    pub user: Vec<String>,
    /// Group
    #[arg(long, value_name = "NAME")]
    pub group: Vec<String>,
    /// Service account
    #[arg(long, value_name = "NAMESPACE:NAME")]
    pub serviceaccount: Vec<String>,
}

/// The object to create; `None` for a token, which is no object.
pub fn object(what: &What) -> Outcome<Option<(Value, &How)>> {
    let head = |kind: &str, name: &str| json!({"apiVersion": format!("{RBAC}/v1"), "kind": kind, "metadata": {"name": name}});
    Ok(Some(match what {
        What::Role { name, rules, how } => {
            let mut object = head("Role", name);
            object["rules"] = policy(rules)?.into();
            (object, how)
        }
        What::Clusterrole { name, rules, urls, aggregation_rule, how } => {
            let mut object = head("ClusterRole", name);
            if aggregation_rule.is_empty() {
                object["rules"] = cluster_policy(rules, urls)?.into();
            } else {
                let mut labels = serde_json::Map::new();
                for label in aggregation_rule {
                    let (key, value) = label.split_once('=').ok_or_else(|| {
                        fail(format!("--aggregation-rule {label:?} is not KEY=VALUE"))
                    })?;
                    labels.insert(key.to_owned(), value.into());
                }
                let selectors = json!([{"matchLabels": labels}]);
                object["aggregationRule"] = json!({"clusterRoleSelectors": selectors});
            }
            (object, how)
        }
        What::Rolebinding { name, role, clusterrole, subjects, how } => {
            let (kind, role) = match (role, clusterrole) {
                (Some(role), _) => ("Role", role),
                (None, Some(role)) => ("ClusterRole", role),
                (None, None) => return bail("exactly one of --role and --clusterrole is needed"),
            };
            (binding(head("RoleBinding", name), kind, role, subjects)?, how)
        }
        What::Clusterrolebinding { name, clusterrole, subjects, how } => {
            let head = head("ClusterRoleBinding", name);
            (binding(head, "ClusterRole", clusterrole, subjects)?, how)
        }
        What::Serviceaccount { name, how } => {
            let meta = json!({"name": name});
            (json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}), how)
        }
        What::Token { .. } => return Ok(None),
    }))
}

/// Asks for a token and prints it.
pub async fn token(what: &What, ctx: &Ctx) -> Outcome {
    let What::Token { name, duration, audience, bound_pod } = what else { return Ok(()) };
    let request = CreateTokenRequest {
        namespace: ctx.namespace().to_owned(),
        name: name.clone(),
        expiration_seconds: duration.map(|span| span.0.as_secs()).unwrap_or_default(),
        audiences: audience.clone(),
        pod: bound_pod.clone(),
        pod_uid: String::new(),
    };
    let reply = ctx.client.create_token(&request).await?;
    ctx.out.line(reply.token)
}

fn cluster_policy(rules: &Rules, urls: &[String]) -> Outcome<Vec<Value>> {
    let mut all =
        if rules.resource.is_empty() && !urls.is_empty() { Vec::new() } else { policy(rules)? };
    if !urls.is_empty() {
        if rules.verb.is_empty() {
            return bail("at least one --verb is needed");
        }
        all.push(json!({"verbs": rules.verb, "nonResourceURLs": urls}));
    }
    Ok(all)
}

/// A rule a group of resources, as kubectl makes them.
fn policy(rules: &Rules) -> Outcome<Vec<Value>> {
    if rules.verb.is_empty() {
        return bail("at least one --verb is needed");
    }
    if rules.resource.is_empty() {
        return bail("at least one --resource is needed");
    }
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    for typed in &rules.resource {
        let (typed, sub) = typed.split_once('/').unwrap_or((typed, ""));
        let (group, mut resource, _) = named(typed);
        if !sub.is_empty() {
            resource = format!("{resource}/{sub}");
        }
        match groups.iter_mut().find(|(known, _)| *known == group) {
            Some((_, resources)) => resources.push(resource),
            None => groups.push((group, vec![resource])),
        }
    }
    let rule = |(group, resources): &(String, Vec<String>)| {
        let mut rule = json!({"verbs": rules.verb, "apiGroups": [group], "resources": resources});
        if !rules.resource_name.is_empty() {
            rule["resourceNames"] = json!(rules.resource_name);
        }
        rule
    };
    Ok(groups.iter().map(rule).collect())
}

fn binding(mut object: Value, kind: &str, role: &str, subjects: &Subjects) -> Outcome<Value> {
    object["roleRef"] = json!({"apiGroup": RBAC, "kind": kind, "name": role});
    let mut list = Vec::new();
    for (kind, names) in [("User", &subjects.user), ("Group", &subjects.group)] {
        for name in names {
            list.push(json!({"apiGroup": RBAC, "kind": kind, "name": name}));
        }
    }
    for account in &subjects.serviceaccount {
        let (namespace, name) = account
            .split_once(':')
            .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
            .ok_or_else(|| fail(format!("--serviceaccount {account:?} is not NAMESPACE:NAME")))?;
        list.push(json!({"kind": "ServiceAccount", "namespace": namespace, "name": name}));
    }
    if !list.is_empty() {
        object["subjects"] = list.into();
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_and_bindings_are_made_of_flags() {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect();
        let rules = Rules {
            verb: words(&["get", "list"]),
            resource: words(&["po", "pods/log", "deploy", "gizmos.example.com/scale"]),
            resource_name: Vec::new(),
        };
        assert_eq!(
            Value::from(policy(&rules).unwrap()),
            json!([
                {"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"]},
                {"verbs": ["get", "list"], "apiGroups": ["apps"], "resources": ["deployments"]},
                {"verbs": ["get", "list"], "apiGroups": ["example.com"], "resources": ["gizmos/scale"]},
            ])
        );
        let subjects = Subjects {
            user: words(&["vera"]),
            group: Vec::new(),
            serviceaccount: words(&["team:robot"]),
        };
        let made = binding(json!({}), "ClusterRole", "view", &subjects).unwrap();
        assert_eq!(made["roleRef"]["name"], "view");
        assert_eq!(
            made["subjects"][1],
            json!({"kind": "ServiceAccount", "namespace": "team", "name": "robot"})
        );
        let wrong = Subjects { serviceaccount: words(&["robot"]), ..subjects };
        assert!(binding(json!({}), "Role", "x", &wrong).is_err());
    }
}
