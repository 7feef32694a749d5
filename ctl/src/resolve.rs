//! Typed words to objects: `po,svc`, `deploy/web`, `pod a b`, `all`, and a workload to its pods.

use serde_json::Value;
use timonier_proto::selector::Selector;
use timonier_proto::{Kind, ObjectKey};

use crate::client::calls::Filter;
use crate::context::Ctx;
use crate::error::{Outcome, bail, fail};
use crate::fields::Fields;

/// What `all` stands for.
const ALL: &[Kind] =
    &[Kind::Pod, Kind::Service, Kind::Deployment, Kind::ReplicaSet, Kind::LatencyAutoscaler];

/// One typed target.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    Named(Kind, String),
    All(Kind),
}

impl Target {
    pub fn kind(&self) -> Kind {
        match self {
            Target::Named(kind, _) | Target::All(kind) => *kind,
        }
    }
}

/// An object as the master holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub kind: Kind,
    pub value: Value,
}

impl Item {
    /// `deployment.apps/web`.
    pub fn title(&self) -> String {
        format!("{}/{}", self.kind.info().qualified_singular(), self.value.name())
    }

    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(self.kind, self.value.namespace(), self.value.name())
    }
}

/// A kind as typed.
pub fn kind(word: &str) -> Outcome<Kind> {
    Kind::by_typed(word).ok_or_else(|| {
        fail(format!("the server doesn't have a resource type {word:?}"))
            .hint("timonctl api-resources lists the kinds")
    })
}

/// The kind of an object by its own `kind` field; pods' owners and manifests name theirs.
pub fn kind_of(value: &Value) -> Option<Kind> {
    Kind::by_name(value.text("kind"))
}

/// Parses `kind`, `kind name…`, `kind/name…`, `kind,kind`, `all`.
pub fn targets(words: &[String]) -> Outcome<Vec<Target>> {
    let Some(first) = words.first() else {
        return Err(fail("no kind of object was named").hint(
            "for example pods, deployment/web, or svc,deploy; timonctl api-resources lists them",
        ));
    };
    if first.contains('/') {
        return words.iter().map(|word| named(word)).collect();
    }
    let mut kinds = Vec::new();
    for word in first.split(',').filter(|w| !w.is_empty()) {
        if word == "all" {
            kinds.extend_from_slice(ALL);
        } else {
            kinds.push(kind(word)?);
        }
    }
    let names = &words[1..];
    if let Some(word) = names.iter().find(|name| name.contains('/')) {
        return bail(format!(
            "there is no need to specify a resource type as a separate argument when passing arguments in resource/name form ({word})"
        ));
    }
    if names.is_empty() {
        return Ok(kinds.into_iter().map(Target::All).collect());
    }
    Ok(kinds
        .into_iter()
        .flat_map(|kind| names.iter().map(move |name| Target::Named(kind, name.clone())))
        .collect())
}

fn named(word: &str) -> Outcome<Target> {
    match word.split_once('/') {
        Some((typed, name)) if !typed.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(Target::Named(kind(typed)?, name.to_owned()))
        }
        _ => bail(format!(
            "arguments in resource/name form must have a single resource and name, not {word:?}"
        )),
    }
}

/// `web` → (default, `web`); `rs/web` → (ReplicaSet, `web`).
pub fn kind_and_name(word: &str, default: Kind) -> Outcome<(Kind, String)> {
    if !word.contains('/') {
        return Ok((default, word.to_owned()));
    }
    match named(word)? {
        Target::Named(kind, name) => Ok((kind, name)),
        Target::All(_) => bail(format!("{word:?} names no object")),
    }
}

/// The objects of the targets, in order. Names that are not found are failures, kept apart so that
/// the rest can still be shown.
pub async fn fetch(
    ctx: &Ctx,
    targets: &[Target],
    filter: &Filter,
) -> Outcome<(Vec<Item>, Vec<crate::error::Failure>)> {
    let (mut items, mut failures) = (Vec::new(), Vec::new());
    for target in targets {
        match target {
            Target::All(kind) => {
                let list = ctx.client.list(*kind, filter).await?;
                items.extend(list.into_iter().map(|value| Item { kind: *kind, value }));
            }
            Target::Named(kind, name) => {
                let key = ctx.key_in(*kind, &filter.namespace, name);
                match ctx.client.get(&key).await {
                    Ok(value) => items.push(Item { kind: *kind, value }),
                    Err(failure) if failure.is_not_found() => failures.push(failure),
                    Err(failure) => return Err(failure),
                }
            }
        }
    }
    Ok((items, failures))
}

/// Refuses a name beside `-A` or a selector, as kubectl does.
pub fn check_names(targets: &[Target], all_namespaces: bool, selector: &str) -> Outcome {
    let named = targets.iter().any(|t| matches!(t, Target::Named(..)));
    if named && all_namespaces {
        return bail("a resource cannot be retrieved by name across all namespaces");
    }
    if named && !selector.is_empty() {
        return bail("name cannot be provided when a selector is specified");
    }
    Ok(())
}

/// Label selector of a workload or service, as text; empty when it selects nothing.
pub fn selector_of(kind: Kind, object: &Value) -> Outcome<String> {
    if kind == Kind::Service {
        let pairs = object.pairs("spec.selector");
        return Ok(pairs.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(","));
    }
    Ok(selector_text(object.at("spec.selector")))
}

/// A LabelSelector in the form people type.
pub fn selector_text(selector: &Value) -> String {
    let mut parts: Vec<String> =
        selector.pairs("matchLabels").iter().map(|(k, v)| format!("{k}={v}")).collect();
    for requirement in selector.list("matchExpressions") {
        let key = requirement.text("key");
        let values: Vec<&str> =
            requirement.list("values").iter().filter_map(Value::as_str).collect();
        parts.push(match requirement.text("operator") {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    parts.join(",")
}

/// The pods behind `name`, `pod/name`, `deploy/name`, `rs/name` or `svc/name`, ready ones first.
pub async fn pods_of(ctx: &Ctx, word: &str) -> Outcome<Vec<Value>> {
    let (kind, name) = kind_and_name(word, Kind::Pod)?;
    let object = ctx.client.get(&ctx.key(kind, &name)).await?;
    if kind == Kind::Pod {
        return Ok(vec![object]);
    }
    if !matches!(kind, Kind::Deployment | Kind::ReplicaSet | Kind::Service) {
        return bail(format!("cannot find pods behind a {}", kind.info().singular));
    }
    let selector = selector_of(kind, &object)?;
    if selector.is_empty() {
        return bail(format!("{} {name:?} selects no pods", kind.info().singular));
    }
    let mut pods = ctx.client.list(Kind::Pod, &ctx.filter(false).labels(selector.clone())).await?;
    pods.sort_by_key(|pod| (pod.has("metadata.deletionTimestamp"), !is_ready(pod)));
    if pods.is_empty() {
        return Err(fail(format!("no pods of {}/{name} exist", kind.info().singular))
            .hint(format!("timonctl get pods -l {selector}")));
    }
    Ok(pods)
}

pub fn is_ready(pod: &Value) -> bool {
    pod.condition("Ready").text("status") == "True"
}

/// Says where a selector is malformed before the master is asked.
pub fn check_selector(text: &str) -> Outcome {
    if text.is_empty() {
        return Ok(());
    }
    Selector::parse(text)
        .map(|_| ())
        .map_err(|error| fail(format!("unable to parse selector {text:?}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn kubectls_forms_are_understood() {
        let named = |kind, name: &str| Target::Named(kind, name.into());
        for (text, expected) in [
            ("po", vec![Target::All(Kind::Pod)]),
            ("po,svc", vec![Target::All(Kind::Pod), Target::All(Kind::Service)]),
            (
                "deploy/web svc/web",
                vec![named(Kind::Deployment, "web"), named(Kind::Service, "web")],
            ),
            ("pod a b", vec![named(Kind::Pod, "a"), named(Kind::Pod, "b")]),
        ] {
            assert_eq!(targets(&words(text)).unwrap(), expected, "{text}");
        }
        assert_eq!(targets(&words("all")).unwrap().len(), ALL.len());
        for text in ["", "foo", "pod deploy/web", "deploy/web/x", "pod/"] {
            assert!(targets(&words(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn selectors_become_text() {
        let selector = serde_json::json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["a", "b"]},
                {"key": "gone", "operator": "DoesNotExist"},
            ],
        });
        assert_eq!(selector_text(&selector), "app=web,tier in (a,b),!gone");
    }
}
