//! One object: written, refused, applied, and what it is given.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_object_lives_its_life() {
    let mut bench = Bench::start().await;
    let made = bench.create(config_map("a", "1")).await.unwrap();
    assert_eq!(made["metadata"]["namespace"], "default");
    assert!(
        made["metadata"]["uid"].is_string() && made["metadata"]["creationTimestamp"].is_string()
    );
    let read = bench.client.get(get("ConfigMap", "", "a")).await.unwrap().into_inner();
    assert_eq!(tree(&read.json), made);

    let mut changed = made.clone();
    changed["data"]["k"] = json!("2");
    let written = bench.update(&changed).await.unwrap();
    assert_eq!(written["data"]["k"], "2");
    assert_ne!(written["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    // The same again is no write.
    let again = bench.update(&config_map("a", "2")).await.unwrap();
    assert_eq!(again, written);
    // What was read before the change is stale.
    changed["data"]["k"] = json!("3");
    let conflict = bench.update(&changed).await;
    assert_eq!(conflict.as_ref().unwrap_err().code(), Code::Aborted);
    assert!(shown(conflict).starts_with("Conflict: configmap default/a was changed meanwhile"));

    assert!(bench.delete("ConfigMap", "a").await.unwrap());
    refused(
        bench.delete("ConfigMap", "a").await,
        expect![[r#"NotFound: configmaps "a" not found"#]],
    );
    bench.master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_why() {
    let mut bench = Bench::start().await;
    let malformed = CreateRequest { json: "{\"kind\":".into(), ..Default::default() };
    refused(
        bench.client.create(malformed).await,
        expect![
            "BadRequest: decode the object: malformed JSON: EOF while parsing a value at line 1 column 8"
        ],
    );
    let mut wrong = deployment("web", 1);
    wrong["spec"]["replicas"] = json!("three");
    refused(
        bench.create(wrong).await,
        expect![[
            r#"BadRequest: Deployment.apps "web": spec.replicas: invalid type: string "three", expected i32"#
        ]],
    );
    let mut unknown = deployment("web", 1);
    unknown["spec"]["template"]["spec"]["contaners"] = json!([]);
    refused(
        bench.apply(&unknown).await,
        expect![[r#"
            BadRequest: Deployment.apps "web": strict decoding error: unknown field "spec.template.spec.contaners"
            hint: did you mean containers instead of contaners?"#]],
    );
    let mut kind = config_map("a", "b");
    kind["kind"] = json!("ConfigMapp");
    refused(
        bench.create(kind).await,
        expect![[r#"
            BadRequest: no matches for kind "ConfigMapp" in version "v1"
            hint: did you mean ConfigMap (apiVersion v1)?"#]],
    );
    let bad_name = bench.create(config_map("Bad_Name", "b")).await;
    assert_eq!(bad_name.as_ref().unwrap_err().code(), Code::InvalidArgument);
    assert!(shown(bad_name).starts_with("Invalid: ConfigMap \"Bad_Name\" is invalid: metadata.name: Invalid value: \"Bad_Name\": a lowercase RFC 1123 subdomain"));
    bench.create(config_map("one", "b")).await.unwrap();
    refused(
        bench.create(config_map("one", "b")).await,
        expect![[r#"AlreadyExists: configmaps "one" already exists"#]],
    );
    let mut elsewhere = config_map("two", "b");
    elsewhere["metadata"]["namespace"] = json!("nowhere");
    refused(
        bench.apply(&elsewhere).await,
        expect![[r#"NotFound: namespaces "nowhere" not found"#]],
    );
    let mut versioned = config_map("two", "b");
    versioned["metadata"]["resourceVersion"] = json!("7");
    refused(
        bench.create(versioned).await,
        expect![
            "BadRequest: create configmap default/two: resourceVersion should not be set on objects to be created"
        ],
    );
    refused(
        bench.client.get(get("Gizmo", "", "x")).await,
        expect![[r#"BadRequest: the server doesn't have a resource type "Gizmo""#]],
    );
    refused(
        bench.client.get(get("Deployment", "", "ghost")).await,
        expect![[r#"NotFound: deployments.apps "ghost" not found"#]],
    );
    refused(
        bench.delete("Namespace", "default").await,
        expect![[
            r#"Forbidden: namespaces "default" is forbidden: this namespace may not be deleted"#
        ]],
    );
    let selector =
        ListRequest { kind: "Pod".into(), label_selector: "a in b".into(), ..Default::default() };
    refused(
        bench.client.list(selector).await,
        expect![[r#"BadRequest: parse selector "a in b": "a in b" is not a label key"#]],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_creates_configures_or_leaves_alone() {
    let mut bench = Bench::start().await;
    let (result, made) = bench.apply(&deployment("web", 1)).await.unwrap();
    assert_eq!(result, apply_reply::Result::Created);
    assert_eq!(made["spec"]["revisionHistoryLimit"], 10);
    let (result, _) = bench.apply(&deployment("web", 1)).await.unwrap();
    assert_eq!(result, apply_reply::Result::Unchanged);
    let (result, changed) = bench.apply(&deployment("web", 3)).await.unwrap();
    assert_eq!(
        (result, &changed["spec"]["replicas"]),
        (apply_reply::Result::Configured, &json!(3))
    );
    // Scaled by hand, then applied by one who says nothing of replicas.
    let patch = PatchRequest {
        r#ref: reference("Deployment", "", "web"),
        r#type: patch_request::Type::Merge.into(),
        patch: r#"{"spec":{"replicas":5}}"#.into(),
        dry_run: false,
    };
    let patched = bench.client.patch(patch.clone()).await.unwrap().into_inner();
    assert_eq!(tree(&patched.json)["spec"]["replicas"], 5);
    assert_eq!(tree(&patched.json)["metadata"]["generation"], 3);
    let mut moved = deployment("web", 5);
    moved["spec"]["selector"]["matchLabels"]["app"] = json!("moved");
    moved["spec"]["template"]["metadata"]["labels"]["app"] = json!("moved");
    refused(
        bench.apply(&moved).await,
        expect![[
            r#"Invalid: Deployment.apps "web" is invalid: spec.selector: Invalid value: {"matchLabels":{"app":"moved"}}: field is immutable"#
        ]],
    );
    let bad = PatchRequest { patch: r#"{"spec":{"replicas":-5}}"#.into(), ..patch };
    refused(
        bench.client.patch(bad).await,
        expect![[
            r#"Invalid: Deployment.apps "web" is invalid: spec.replicas: Invalid value: -5: must be greater than or equal to 0"#
        ]],
    );
    let stale = {
        let mut value = deployment("web", 7);
        value["metadata"]["resourceVersion"] = json!("1");
        bench.apply(&value).await
    };
    assert!(shown(stale).starts_with("Conflict: deployment default/web was changed meanwhile"));
    let dry =
        ApplyRequest { json: bytes(&deployment("other", 1)), dry_run: true, ..Default::default() };
    let reply = bench.client.apply(dry).await.unwrap().into_inner();
    assert_eq!(reply.result(), apply_reply::Result::Created);
    assert!(bench.client.get(get("Deployment", "", "other")).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn services_get_addresses_of_their_own() {
    let mut bench = Bench::start().await;
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..20 {
        let mut client = bench.client.clone();
        let json = bytes(&service(&format!("s{index}"), None));
        tasks.spawn(async move {
            let reply = client.create(CreateRequest { json, ..Default::default() }).await;
            tree(&reply.unwrap().into_inner().json)["spec"].clone()
        });
    }
    let specs = tasks.join_all().await;
    let distinct = |values: Vec<&Value>| {
        values.iter().map(|v| v.to_string()).collect::<std::collections::BTreeSet<_>>().len()
    };
    assert_eq!(distinct(specs.iter().map(|s| &s["clusterIP"]).collect()), 20);
    assert_eq!(distinct(specs.iter().map(|s| &s["ports"][0]["nodePort"]).collect()), 20);
    assert!(specs[0]["clusterIP"].as_str().unwrap().starts_with("10.96."));

    let (_, fixed) = bench.apply(&service("fixed", Some(30_777))).await.unwrap();
    assert_eq!(fixed["spec"]["ports"][0]["nodePort"], 30_777);
    refused(
        bench.create(service("other", Some(30_777))).await,
        expect![[
            r#"Invalid: Service "other" is invalid: spec.ports[0].nodePort: node port 30777: provided port is already allocated"#
        ]],
    );
    // Applied without the port, it keeps it, and its address.
    let (result, kept) = bench.apply(&service("fixed", Some(30_777))).await.unwrap();
    assert_eq!(result, apply_reply::Result::Unchanged);
    assert_eq!(kept["spec"]["clusterIP"], fixed["spec"]["clusterIP"]);
}
