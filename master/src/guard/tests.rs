//! The table against the services, and the buckets against hostile callers.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::rate::{KNOWN, UNKNOWN};
use super::*;

#[test]
fn every_method_of_every_service_is_in_the_table() {
    let compiled: BTreeSet<String> =
        timonier_proto::METHODS.iter().map(|path| (*path).to_owned()).collect();
    let known: BTreeSet<String> = METHODS.iter().map(|(path, _)| (*path).to_owned()).collect();
    let missing: Vec<_> = compiled.difference(&known).collect();
    assert!(missing.is_empty(), "say in guard/table.rs who may call {missing:?}");
    let stale: Vec<_> = known.difference(&compiled).collect();
    assert!(stale.is_empty(), "no service has {stale:?} any more");
    assert_eq!(known.len(), METHODS.len(), "a method stands twice");
}

#[test]
fn a_bucket_gives_its_burst_and_then_its_rate() {
    let buckets = Buckets::default();
    let start = Instant::now();
    let take = |at| buckets.take_from("a".to_owned(), UNKNOWN, at);
    let at_once = (0..1000).filter(|_| take(start).is_none()).count();
    assert_eq!(at_once as f64, UNKNOWN.burst);
    let wait = take(start).unwrap();
    assert!(wait <= Duration::from_secs_f64(1.0 / UNKNOWN.per_second), "{wait:?}");
    let later = start + Duration::from_secs(1);
    let then = (0..1000).filter(|_| take(later).is_none()).count();
    assert_eq!(then as f64, UNKNOWN.per_second);
}

#[test]
fn many_callers_cost_a_bounded_amount() {
    let buckets = Buckets::default();
    let start = Instant::now();
    for index in 0..100_000_u64 {
        let now = start + Duration::from_micros(index);
        assert!(buckets.take_from(format!("user {index}"), KNOWN, now).is_none());
    }
    assert!(buckets.len() <= 16_384, "{}", buckets.len());
}

#[test]
fn superusers_are_never_kept_out() {
    let buckets = Buckets::default();
    let now = Instant::now();
    let acting = |name: &str, groups: &[&str]| Acting {
        user: UserInfo::authenticated(name, groups.iter().map(|g| (*g).to_owned()).collect()),
        by: None,
    };
    let admin = acting("admin", &[access::SUPERUSERS]);
    assert!((0..5_000).all(|_| buckets.take(&admin, None, now).is_ok()));
    let vera = acting("vera", &[]);
    assert!((0..5_000).any(|_| buckets.take(&vera, None, now).is_err()));
    // Acting as another costs one's own tokens.
    let as_other = Acting { by: Some("vera".to_owned()), ..acting("other", &[]) };
    assert_eq!(buckets.take(&as_other, None, now).unwrap_err().reason, Reason::TooManyRequests);
}
