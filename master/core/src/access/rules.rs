//! Rules of roles: what one allows, and whether some cover others.

use k8s_openapi::api::rbac::v1::PolicyRule;

use super::Attributes;

const ALL: &str = "*";

type List = Option<Vec<String>>;

fn list(of: &List) -> &[String] {
    of.as_deref().unwrap_or_default()
}

/// Whether the rule allows what is asked.
pub(super) fn allows(rule: &PolicyRule, asked: &Attributes) -> bool {
    if !names(&rule.verbs, &asked.verb) {
        return false;
    }
    if !asked.path.is_empty() {
        return list(&rule.non_resource_urls).iter().any(|url| url_covers(url, &asked.path));
    }
    let resource = |own: &String| {
        own == ALL
            || match asked.subresource.is_empty() {
                true => *own == asked.resource,
                false => own.split_once('/').is_some_and(|(resource, sub)| {
                    sub == asked.subresource && (resource == ALL || resource == asked.resource)
                }),
            }
    };
    let only = list(&rule.resource_names);
    names(list(&rule.api_groups), &asked.group)
        && list(&rule.resources).iter().any(resource)
        && (only.is_empty() || only.contains(&asked.name))
}

fn names(own: &[String], word: &str) -> bool {
    own.iter().any(|own| own == ALL || own == word)
}

fn url_covers(own: &str, path: &str) -> bool {
    own == path || own.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

/// One thing that a rule allows.
struct Piece<'a> {
    verb: &'a str,
    group: &'a str,
    resource: &'a str,
    /// Empty: every name.
    name: &'a str,
    url: &'a str,
}

/// The parts of `wanted` that no rule of `held` covers, each as a rule of its own. At most `limit`.
pub fn uncovered(held: &[PolicyRule], wanted: &[PolicyRule], limit: usize) -> Vec<PolicyRule> {
    let mut missing = Vec::new();
    for rule in wanted {
        for_each_piece(rule, &mut |piece| {
            if missing.len() < limit && !held.iter().any(|own| covers_piece(own, &piece)) {
                missing.push(piece.to_rule());
            }
        });
    }
    missing
}

/// Whether `held` allows everything that `wanted` does.
pub fn covers(held: &[PolicyRule], wanted: &[PolicyRule]) -> bool {
    uncovered(held, wanted, 1).is_empty()
}

fn for_each_piece<'a>(rule: &'a PolicyRule, next: &mut impl FnMut(Piece<'a>)) {
    for verb in &rule.verbs {
        for url in list(&rule.non_resource_urls) {
            next(Piece { verb, group: "", resource: "", name: "", url });
        }
        for group in list(&rule.api_groups) {
            for resource in list(&rule.resources) {
                match list(&rule.resource_names) {
                    [] => next(Piece { verb, group, resource, name: "", url: "" }),
                    only => only
                        .iter()
                        .for_each(|name| next(Piece { verb, group, resource, name, url: "" })),
                }
            }
        }
    }
}

fn covers_piece(own: &PolicyRule, piece: &Piece<'_>) -> bool {
    if !names(&own.verbs, piece.verb) {
        return false;
    }
    if !piece.url.is_empty() {
        return list(&own.non_resource_urls).iter().any(|url| url_covers(url, piece.url));
    }
    let resource = |own: &String| {
        own == ALL
            || own == piece.resource
            || own.strip_prefix("*/").is_some_and(|sub| {
                piece.resource.split_once('/').is_some_and(|(_, wanted)| wanted == sub)
            })
    };
    let only = list(&own.resource_names);
    names(list(&own.api_groups), piece.group)
        && list(&own.resources).iter().any(resource)
        && (only.is_empty() || !piece.name.is_empty() && only.iter().any(|n| n == piece.name))
}

impl Piece<'_> {
    fn to_rule(&self) -> PolicyRule {
        let one = |word: &str| Some(vec![word.to_owned()]);
        let verbs = vec![self.verb.to_owned()];
        if !self.url.is_empty() {
            return PolicyRule { verbs, non_resource_urls: one(self.url), ..Default::default() };
        }
        PolicyRule {
            verbs,
            api_groups: one(self.group),
            resources: one(self.resource),
            resource_names: if self.name.is_empty() { None } else { one(self.name) },
            non_resource_urls: None,
        }
    }
}

/// `{APIGroups:["apps"], Resources:["deployments"], Verbs:["get"]}`, as Kubernetes prints it.
pub fn describe(rule: &PolicyRule) -> String {
    let mut parts = Vec::new();
    for (name, own) in [
        ("APIGroups", list(&rule.api_groups)),
        ("Resources", list(&rule.resources)),
        ("ResourceNames", list(&rule.resource_names)),
        ("NonResourceURLs", list(&rule.non_resource_urls)),
        ("Verbs", &rule.verbs),
    ] {
        if !own.is_empty() {
            parts.push(format!("{name}:{own:?}"));
        }
    }
    format!("{{{}}}", parts.join(", "))
}
