//! Bad input gets a clear error and changes nothing. One master is enough to say no.

use anyhow::Result;
use timonier_proto::Kind;
use timonier_tests::cluster::{Cluster, Options};

const GOOD: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: 'a:b'}]}
";

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_names_the_object_the_field_and_the_reason() -> Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let cases: &[(&str, String, &[&str])] = &[
        ("malformed YAML", "kind: [Pod\n".into(), &["standard input:1:7", "bracket"]),
        ("no kind", "apiVersion: v1\nmetadata: {name: x}\n".into(), &["kind"]),
        ("unknown kind", GOOD.replace("Deployment", "Deploiment"), &["Deploiment", "apps/v1"]),
        ("unknown version", GOOD.replace("apps/v1", "apps/v9"), &["apps/v9"]),
        (
            "unknown field",
            GOOD.replace("containers:", "contaners:"),
            &["spec.template.spec.contaners"],
        ),
        (
            "wrong type",
            GOOD.replace("spec:\n  selector", "spec:\n  replicas: three\n  selector"),
            &["spec.replicas", "three"],
        ),
        ("not a DNS label", GOOD.replace("name: web}", "name: Web_1}"), &["Web_1"]),
        (
            "selector misses the template",
            GOOD.replace("labels: {app: web}", "labels: {app: other}"),
            &["selector"],
        ),
        (
            "negative replicas",
            GOOD.replace("spec:\n  selector", "spec:\n  replicas: -1\n  selector"),
            &["spec.replicas"],
        ),
        (
            "bad quantity",
            GOOD.replace("image: 'a:b'", "image: 'a:b', resources: {requests: {cpu: lots}}"),
            &["cpu", "lots"],
        ),
        (
            "no such namespace",
            GOOD.replace("name: web}", "name: web, namespace: nowhere}"),
            &["nowhere", "not found"],
        ),
    ];
    for (what, manifest, wanted) in cases {
        let error = cluster.ctl_with(&["apply", "-f", "-"], Some(manifest)).await?.failed()?;
        for text in *wanted {
            assert!(error.contains(text), "{what}: {error:?} does not say {text:?}");
        }
    }
    assert!(cluster.list(Kind::Deployment, "").await?.is_empty(), "nothing was changed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_and_conflicts_are_refused() -> Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let args = ["create", "configmap", "one", "--from-literal=a=b"];
    cluster.ctl(&args).await?.ok()?;
    let error = cluster.ctl(&args).await?.failed()?;
    assert!(error.contains("already exists") && error.contains("one"), "{error}");

    cluster.apply(GOOD).await?;
    let moved = GOOD.replace("app: web", "app: moved");
    let error = cluster.ctl_with(&["apply", "-f", "-"], Some(&moved)).await?.failed()?;
    assert!(error.contains("selector") && error.contains("immutable"), "{error}");

    let mut client = cluster.client().await?;
    let stale = timonier_proto::v1::UpdateRequest {
        json: br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"one","namespace":"default","resourceVersion":"1"}}"#[..].into(),
        ..Default::default()
    };
    let refused = client.update(stale).await.map(|_| ()).err();
    assert_eq!(refused.map(|status| status.code()), Some(tonic::Code::Aborted));
    let kept = cluster.ctl(&["get", "configmap", "one", "-o", "jsonpath={.data.a}"]).await?.ok()?;
    assert_eq!(kept.trim(), "b");

    let error = cluster.ctl(&["get", "pod", "ghost"]).await?.failed()?;
    assert!(error.contains("NotFound") && error.contains("ghost"), "{error}");
    let error = cluster.ctl(&["get", "gizmos"]).await?.failed()?;
    assert!(error.contains("gizmos"), "{error}");
    Ok(())
}
