//! What is asked again when an answer was lost, under which id, and what is not.

use std::collections::BTreeSet;

use expect_test::expect;
use timonier_proto::v1::MasterStatus;
use timonier_proto::{ApiError, Reason};
use tonic::Status;

use super::{check, file, run};
use crate::played::Played;

/// What a caller gets whose write was done and whose answer was lost on its way.
fn lost_answers() -> [Status; 3] {
    [
        Status::unavailable("the connection broke"),
        ApiError::new(Reason::Unavailable, "no leader right now").into(),
        ApiError::new(Reason::Timeout, "it is not known whether it was done").into(),
    ]
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_sent_again_under_its_id() {
    let file = file("kind: ConfigMap\napiVersion: v1\nmetadata: {name: a}\n");
    let path = file.path().display().to_string();
    let mut ids = BTreeSet::new();
    for lost in lost_answers() {
        let master = Played::start().await;
        let why = lost.to_string();
        master.answer_next(lost);
        let ran = run(&master, &["apply", "-f", &path]).await;
        assert_eq!(ran.code, 0, "{why}: {}", ran.err);
        let asked = master.asked();
        assert_eq!(asked.len(), 2, "{why}: {asked:?}");
        assert_eq!(asked[0], asked[1], "{why}");
        assert!(!asked[0].id.is_empty(), "{why}");
        ids.insert(asked[0].id.clone());
    }
    assert_eq!(ids.len(), lost_answers().len(), "each write has an id of its own");
}

/// Two masters, the second of which does not vote yet.
async fn two_masters() -> Played {
    let master = Played::start().await;
    for (id, voter) in [(1, true), (2, false)] {
        let name = format!("m{id}");
        master.add_master(MasterStatus { id, name, voter, ..Default::default() });
    }
    master
}

#[tokio::test]
async fn a_change_of_the_masters_is_sent_again_only_where_it_was_not_begun() {
    for args in [["master", "promote", "m2"], ["master", "remove", "m2"]] {
        let [lost, not_now, unknown] = lost_answers();
        for (answer, times, code) in [(lost, 1, 1), (not_now, 2, 0), (unknown, 1, 1)] {
            let master = two_masters().await;
            let why = answer.to_string();
            master.answer_next(answer);
            let ran = run(&master, &args).await;
            assert_eq!(ran.code, code, "{args:?} after {why}: {}", ran.err);
            assert_eq!(master.asked().len(), times, "{args:?} after {why}");
        }
    }
}

#[tokio::test]
async fn a_promotion_says_what_came_of_it() {
    let master = two_masters().await;
    check(
        &master,
        &["master", "promote", "m1"],
        0,
        expect![[r#"
        master/m1 votes already
    "#]],
    )
    .await;
    assert_eq!(master.asked(), []);
    check(
        &master,
        &["master", "promote", "m2"],
        0,
        expect![[r#"
        master/m2 votes
    "#]],
    )
    .await;
    master.answer_next(ApiError::new(
        Reason::Conflict,
        "promote master m2 (id 2): it is 700 log entries behind",
    ));
    check(
        &master,
        &["master", "promote", "m2"],
        1,
        expect![[r#"
        Error from server (Conflict): promote master m2 (id 2): it is 700 log entries behind
    "#]],
    )
    .await;
}
