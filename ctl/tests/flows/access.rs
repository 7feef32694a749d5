//! `auth`: what is asked, and how the answer is told.

use expect_test::expect;
use timonier_proto::v1::CanIRequest;

use super::check;
use crate::played::Played;

#[tokio::test]
async fn can_i_answers_by_word_and_by_exit_code() {
    let master = Played::start().await;
    master.allow(CanIRequest {
        verb: "create".into(),
        group: "apps".into(),
        resource: "deployments".into(),
        subresource: "scale".into(),
        namespace: "team".into(),
        name: "web".into(),
        ..Default::default()
    });
    let asked = ["auth", "can-i", "create", "deploy/web", "--subresource", "scale"];
    check(
        &master,
        &[&asked[..], &["-n", "team"]].concat(),
        0,
        expect![[r#"
        yes
    "#]],
    )
    .await;
    check(
        &master,
        &[&asked[..], &["-A"]].concat(),
        1,
        expect![[r#"
        no
    "#]],
    )
    .await;
    for (namespace, code) in [("team", 0), ("other", 1)] {
        let quietly = [&asked[..], &["-q", "-n", namespace]].concat();
        check(&master, &quietly, code, expect![""]).await;
    }
    check(
        &master,
        &["auth", "can-i", "get", "node"],
        1,
        expect![[r#"
        no
        Warning: resource 'nodes' is not namespace scoped
    "#]],
    )
    .await;
}

#[tokio::test]
async fn can_i_lists_a_row_a_resource() {
    let master = Played::start().await;
    check(
        &master,
        &["auth", "can-i", "--list", "-n", "team"],
        0,
        expect![[r#"
        Resources         Non-Resource URLs   Resource Names   Verbs
        things/log        []                  [team]           [get list]
        things.apps/log   []                  [team]           [get list]
                          [/healthz]          []               [get]
    "#]],
    )
    .await;
}

#[tokio::test]
async fn whoami_tells_who_one_is_and_by_what() {
    let master = Played::start().await;
    check(
        &master,
        &["auth", "whoami"],
        0,
        expect![[r#"
        ATTRIBUTE       VALUE
        Username        vera
        Groups          [dev ops]
        Recognised by   certificate
    "#]],
    )
    .await;
    check(
        &master,
        &["auth", "whoami", "-o", "yaml"],
        0,
        expect![[r#"
        apiVersion: authentication.k8s.io/v1
        kind: SelfSubjectReview
        status:
          userInfo:
            groups:
            - dev
            - ops
            username: vera
    "#]],
    )
    .await;
}
