//! Deployments and replica sets: a template, a selector that finds it, and how to roll out.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use timonier_proto::selector::Selector;

use super::field::{Field, Problems};
use super::{meta, pod, unique};

pub fn deployment(field: &Field<'_>, deployment: &Deployment, problems: &mut Problems) {
    let Some(spec) = &deployment.spec else {
        problems.required(field, "");
        return;
    };
    workload(field, spec.replicas, &spec.selector, Some(&spec.template), problems);
    for (name, value) in [
        ("minReadySeconds", spec.min_ready_seconds),
        ("revisionHistoryLimit", spec.revision_history_limit),
        ("progressDeadlineSeconds", spec.progress_deadline_seconds),
    ] {
        problems.at_least(&field.name(name), value.map(i64::from), 0);
    }
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    if let Some(deadline) = spec.progress_deadline_seconds.filter(|d| *d >= 0 && *d <= min_ready) {
        problems.invalid(
            &field.name("progressDeadlineSeconds"),
            deadline,
            "must be greater than minReadySeconds",
        );
    }
    strategy(&field.name("strategy"), spec, problems);
    unique::deployment(field, spec, problems);
}

pub fn replica_set(field: &Field<'_>, set: &ReplicaSet, problems: &mut Problems) {
    let Some(spec) = &set.spec else {
        problems.required(field, "");
        return;
    };
    workload(field, spec.replicas, &spec.selector, spec.template.as_ref(), problems);
    let min_ready = spec.min_ready_seconds.map(i64::from);
    problems.at_least(&field.name("minReadySeconds"), min_ready, 0);
    unique::replica_set(field, spec, problems);
}

fn workload(
    field: &Field<'_>,
    replicas: Option<i32>,
    selector: &LabelSelector,
    template: Option<&PodTemplateSpec>,
    problems: &mut Problems,
) {
    problems.at_least(&field.name("replicas"), replicas.map(i64::from), 0);
    let template_field = field.name("template");
    let Some(template) = template else {
        problems.required(&template_field, "");
        return;
    };
    let labels = template.metadata.as_ref().and_then(|meta| meta.labels.as_ref());
    self::selector(&field.name("selector"), selector, &template_field, labels, problems);
    pod::template(&template_field, template, problems);
    let spec = template_field.name("spec");
    let policy =
        template.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always");
    problems.one_of(&spec.name("restartPolicy"), policy, &["Always"]);
}

fn selector(
    field: &Field<'_>,
    selector: &LabelSelector,
    template: &Field<'_>,
    labels: Option<&BTreeMap<String, String>>,
    problems: &mut Problems,
) {
    label_selector(field, selector, problems);
    match Selector::from_label_selector(selector) {
        Err(_) => {} // said above
        Ok(parsed) if parsed.is_empty() => {
            problems.required(field, "empty selector is invalid for a workload");
        }
        Ok(parsed) if !parsed.matches(labels) => {
            let metadata = template.name("metadata");
            let shown = labels.cloned().unwrap_or_default();
            problems.invalid(
                &metadata.name("labels"),
                shown,
                "`selector` does not match template `labels`",
            );
        }
        Ok(_) => {}
    }
}

/// What any label selector must look like.
pub(super) fn label_selector(field: &Field<'_>, selector: &LabelSelector, problems: &mut Problems) {
    meta::labels(&field.name("matchLabels"), selector.match_labels.as_ref(), problems);
    let expressions = field.name("matchExpressions");
    for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
        let field = expressions.index(index);
        let operators = ["In", "NotIn", "Exists", "DoesNotExist"];
        problems.one_of(&field.name("operator"), &expression.operator, &operators);
        let no_values = expression.values.as_ref().is_none_or(Vec::is_empty);
        match expression.operator.as_str() {
            "In" | "NotIn" if no_values => {
                problems.required(
                    &field.name("values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
            "Exists" | "DoesNotExist" if !no_values => {
                problems.forbidden(
                    &field.name("values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
            _ => {}
        }
    }
}

fn strategy(field: &Field<'_>, spec: &DeploymentSpec, problems: &mut Problems) {
    let Some(strategy) = &spec.strategy else { return };
    let type_ = strategy.type_.as_deref().unwrap_or_default();
    problems.one_of(&field.name("type"), type_, &["Recreate", "RollingUpdate"]);
    let rolling_field = field.name("rollingUpdate");
    let Some(rolling) = &strategy.rolling_update else { return };
    if type_ == "Recreate" {
        let why = "may not be specified when strategy `type` is 'Recreate'";
        problems.forbidden(&rolling_field, why);
        return;
    }
    let surge = share(&rolling_field.name("maxSurge"), rolling.max_surge.as_ref(), problems);
    let field = rolling_field.name("maxUnavailable");
    let unavailable = share(&field, rolling.max_unavailable.as_ref(), problems);
    if surge == Some(0) && unavailable == Some(0) {
        problems.invalid(&field, 0, "may not be 0 when `maxSurge` is 0");
    }
    if matches!(&rolling.max_unavailable, Some(IntOrString::String(_)))
        && unavailable.is_some_and(|percent| percent > 100)
    {
        problems.invalid(&field, unavailable.unwrap_or(0), "must not be greater than 100%");
    }
}

/// A count or a percentage, as a number; `None` when it is neither.
pub(super) fn share(
    field: &Field<'_>,
    share: Option<&IntOrString>,
    problems: &mut Problems,
) -> Option<i32> {
    match share? {
        IntOrString::Int(count) => {
            problems.at_least(field, Some(i64::from(*count)), 0);
            Some(*count)
        }
        IntOrString::String(text) => {
            let percent = text
                .strip_suffix('%')
                .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|digits| digits.parse().ok());
            if percent.is_none() {
                problems.invalid(field, text, "must be an integer or percentage (e.g '5' or '5%')");
            }
            percent
        }
    }
}
