//! Quotas and limit ranges: their form.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{LimitRangeSpec, ResourceQuotaSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use timonier_proto::quantity::parse_millis;

use super::field::{Field, Problems};

const SCOPES: &[&str] = &["BestEffort", "NotBestEffort", "Terminating", "NotTerminating"];

pub fn resource_quota(root: &Field<'_>, spec: Option<&ResourceQuotaSpec>, problems: &mut Problems) {
    let Some(spec) = spec else { return };
    quantities(&root.name("hard"), spec.hard.as_ref(), problems);
    for (index, scope) in spec.scopes.iter().flatten().enumerate() {
        problems.one_of(&root.name("scopes").index(index), scope, SCOPES);
    }
    if spec.scope_selector.is_some() {
        problems.not_supported(&root.name("scopeSelector"), "name the scopes in scopes");
    }
}

pub fn limit_range(root: &Field<'_>, spec: Option<&LimitRangeSpec>, problems: &mut Problems) {
    let root = root.name("limits");
    for (index, item) in spec.iter().flat_map(|spec| &spec.limits).enumerate() {
        let field = root.index(index);
        problems.one_of(&field.name("type"), &item.type_, &["Container", "Pod"]);
        if item.type_ == "Pod" && (item.default.is_some() || item.default_request.is_some()) {
            problems.forbidden(&field.name("default"), "may not be specified when `type` is 'Pod'");
        }
        for (name, list) in [
            ("default", &item.default),
            ("defaultRequest", &item.default_request),
            ("max", &item.max),
            ("min", &item.min),
            ("maxLimitRequestRatio", &item.max_limit_request_ratio),
        ] {
            quantities(&field.name(name), list.as_ref(), problems);
        }
        let amount = |list: &Option<BTreeMap<String, Quantity>>, name: &str| {
            list.as_ref().and_then(|list| parse_millis(&list.get(name)?.0).ok())
        };
        for name in item.min.iter().flatten().map(|(name, _)| name) {
            let (min, max) = (amount(&item.min, name), amount(&item.max, name));
            if min.zip(max).is_some_and(|(min, max)| min > max) {
                let why = "min value is greater than max value";
                problems.invalid(&field.name("min").key(name), name, why);
            }
        }
    }
}

fn quantities(
    field: &Field<'_>,
    list: Option<&BTreeMap<String, Quantity>>,
    problems: &mut Problems,
) {
    for (name, value) in list.into_iter().flatten() {
        match parse_millis(&value.0) {
            Ok(amount) if amount < 0 => {
                problems.invalid(&field.key(name), &value.0, "must be greater than or equal to 0");
            }
            Ok(_) => {}
            Err(error) => problems.invalid(&field.key(name), &value.0, error),
        }
    }
}
