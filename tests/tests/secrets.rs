//! Secrets on real Docker: how they reach containers, that they are nowhere else, and registries
//! that ask for a password.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use timonier_tests::cluster::{Cluster, Options};
use timonier_tests::engine::{Engine, run};
use timonier_tests::wait;

const SECONDS_30: Duration = Duration::from_secs(30);
const PASSWORD: &str = "correct-horse-battery-staple";
const PASSWORD_BASE64: &str = "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5LXN0YXBsZQ==";
const CHANGED: &str = "another-horse-another-staple";

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: user, labels: {app: user}}
spec:
  containers:
  - name: web
    image: timonier/web:v1
    env:
    - {name: DB_PASSWORD, valueFrom: {secretKeyRef: {name: db, key: password}}}
    envFrom: [{secretRef: {name: db}, prefix: DB_ALL_}]
    readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
    volumeMounts:
    - {name: db, mountPath: /secrets/db}
    - {name: all, mountPath: /secrets/all}
  volumes:
  - {name: db, secret: {secretName: db, defaultMode: 0400}}
  - name: all
    projected:
      sources:
      - {secret: {name: db, items: [{key: password, path: nested/password}]}}
      - {downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: waiting}
spec:
  containers:
  - name: web
    image: timonier/web:v1
    env:
    - {name: TOKEN, valueFrom: {secretKeyRef: {name: later, key: token}}}
"#;

async fn cat(cluster: &Cluster, path: &str) -> Result<String> {
    let exec =
        ["exec", "user", "--", "/web", "--cat", path, "--exit-after-ms", "0", "--exit-code", "0"];
    cluster.ctl(&exec).await?.ok()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_dir { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// The files that hold the text.
fn holding(dir: &Path, text: &str) -> Vec<PathBuf> {
    let holds = |path: &PathBuf| {
        let content = std::fs::read(path).unwrap_or_default();
        content.windows(text.len()).any(|window| window == text.as_bytes())
    };
    files(dir).into_iter().filter(holds).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_reaches_its_pods_and_is_nowhere_else() -> Result<()> {
    let cluster = Cluster::start(Options { agents: 1, ..Options::default() }).await?;
    let literal = format!("password={PASSWORD}");
    let create = ["create", "secret", "generic", "db", "--from-literal", &literal];
    cluster.ctl(&create).await?.ok()?;
    cluster.apply(PODS).await?;
    cluster.ctl(&["wait", "pod/user", "--for=condition=Ready", "--timeout=40s"]).await?.ok()?;
    for path in ["/secrets/db/password", "/secrets/all/nested/password"] {
        assert!(cat(&cluster, path).await?.contains(PASSWORD), "{path}");
    }
    assert!(cat(&cluster, "/secrets/all/labels").await?.contains("app=\"user\""));
    let environment = cat(&cluster, "/proc/1/environ").await?;
    assert!(environment.contains(&format!("DB_PASSWORD={PASSWORD}")), "{environment}");
    assert!(environment.contains(&format!("DB_ALL_password={PASSWORD}")), "{environment}");

    // One that is missing is waited for, and said.
    let shown = wait::until("the missing secret to be told", SECONDS_30, || async {
        let shown = cluster.ctl(&["get", "pod", "waiting", "--no-headers"]).await?.ok()?;
        ensure!(shown.contains("CreateContainerConfigError"), "{shown}");
        cluster.ctl(&["describe", "pod", "waiting"]).await?.ok()
    })
    .await?;
    assert!(shown.contains("secret \"later\" not found"), "{shown}");
    cluster
        .ctl(&["create", "secret", "generic", "later", "--from-literal", "token=x"])
        .await?
        .ok()?;
    cluster.ctl(&["wait", "pod/waiting", "--for=condition=Ready", "--timeout=60s"]).await?.ok()?;

    // Shown by size only.
    let described = cluster.ctl(&["describe", "secret", "db"]).await?.ok()?;
    assert!(described.contains("password:  28 bytes"), "{described}");
    let changed = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: db}}\nstringData: {{password: {CHANGED}}}\n"
    );
    let diff = cluster.ctl_with(&["diff", "-f", "-"], Some(&changed)).await?;
    assert!(
        diff.code == 1 && diff.stdout.contains("*** (after)"),
        "{}{}",
        diff.stdout,
        diff.stderr
    );
    assert!(
        !diff.stdout.contains(CHANGED) && !diff.stdout.contains("YW5vdGhlci"),
        "{}",
        diff.stdout
    );

    // A change reaches the mounted files.
    cluster.apply(&changed).await?;
    wait::until("the changed secret", SECONDS_30, || async {
        let seen = cat(&cluster, "/secrets/db/password").await?;
        ensure!(seen.contains(CHANGED), "still the old one");
        Ok(())
    })
    .await?;

    // Neither on the master's disk nor in a log, nor on the agent's disk but in memory.
    let rotated = cluster.ctl(&["encryption", "rotate"]).await?.ok()?;
    assert!(rotated.contains("encrypts with key 2 now"), "{rotated}");
    let status = cluster.ctl(&["encryption", "status"]).await?.ok()?;
    assert!(!status.contains("\n1 ") && status.contains("\n2 "), "{status}");
    for text in [PASSWORD, PASSWORD_BASE64, CHANGED] {
        let found = holding(&cluster.dir().join("master"), text);
        assert!(found.is_empty(), "{text} is in {found:?}");
        let logs: Vec<_> = std::fs::read_dir(cluster.dir())?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "log"))
            .collect();
        ensure!(logs.len() >= 2, "no logs in {}", cluster.dir().display());
        for log in logs {
            let content = std::fs::read_to_string(&log)?;
            assert!(!content.contains(text), "{text} is in {}", log.display());
        }
    }
    let labels = run("docker", &["ps", "--no-trunc", "--format", "{{.Labels}} {{.Command}}"])?;
    assert!(!labels.contains(PASSWORD), "{labels}");
    let events = cluster.ctl(&["get", "events", "-A", "-o", "yaml"]).await?.ok()?;
    assert!(!events.contains(PASSWORD) && !events.contains(CHANGED), "{events}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_secrets_are_refused_without_quoting_them() -> Result<()> {
    let cluster = Cluster::start(Options { agents: 0, ..Options::default() }).await?;
    let bad =
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {k: hunter2-is-no-base64!}\n";
    let refused = cluster.ctl_with(&["apply", "-f", "-"], Some(bad)).await?.failed()?;
    assert!(refused.contains("data") && !refused.contains("hunter2"), "{refused}");
    let tls = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ntype: kubernetes.io/tls\nstringData: {tls.crt: hunter2}\n";
    let refused = cluster.ctl_with(&["apply", "-f", "-"], Some(tls)).await?.failed()?;
    assert!(refused.contains("data[tls.key]: Required value"), "{refused}");
    assert!(!refused.contains("hunter2"), "{refused}");
    Ok(())
}

/// Debian's docker-registry on a loopback port, for those with a password only.
struct Registry {
    _dir: tempfile::TempDir,
    child: Child,
    address: String,
}

const REGISTRY_USER: &str = "me";
const REGISTRY_PASSWORD: &str = "hunter2-registry";
/// As `htpasswd -B` writes it.
const HTPASSWD: &str = "me:$2b$05$abcdefghijklmnopqrstuulZu.ILEXqeNBq7QTUS3kx8ZZIO3trhO\n";

impl Registry {
    async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let (config, htpasswd) = (dir.path().join("config.yml"), dir.path().join("htpasswd"));
        std::fs::write(&htpasswd, HTPASSWD)?;
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\nauth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                dir.path().join("data").display(),
                htpasswd.display(),
            ),
        )?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start docker-registry; run `deploy/setup.sh --with registry` first")?;
        let registry = Self { _dir: dir, child, address };
        let address = registry.address.clone();
        wait::until("the registry to listen", Duration::from_secs(20), || async {
            tokio::net::TcpStream::connect(&address).await?;
            Ok(())
        })
        .await?;
        Ok(registry)
    }

    /// Puts the test's image into it, with credentials that are forgotten after.
    fn push(&self, image: &str) -> Result<()> {
        let config = self._dir.path().join("client").display().to_string();
        let login = ["--config", &config, "login", &self.address];
        let user = ["--username", REGISTRY_USER, "--password", REGISTRY_PASSWORD];
        run("docker", &["tag", "timonier/web:v1", image])?;
        run("docker", &[&login[..], &user[..]].concat())?;
        run("docker", &["--config", &config, "push", image])?;
        run("docker", &["rmi", image])?;
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_from_a_registry_with_a_password() -> Result<()> {
    let registry = Registry::start().await?;
    let image = format!("{}/course/private:v1", registry.address);
    registry.push(&image)?;
    let engine = Engine::start().await?;
    let agent_args = vec!["--docker-socket".into(), engine.socket()];
    let cluster = Cluster::start(Options { agents: 1, agent_args, ..Options::default() }).await?;
    let pod = |name: &str, secrets: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{imagePullSecrets: [{secrets}], containers: [{{name: c, image: '{image}'}}]}}\n"
        )
    };
    cluster.apply(&pod("without", "")).await?;
    wait::until("the refusal to be told", SECONDS_30, || async {
        let shown = cluster.ctl(&["get", "pod", "without", "--no-headers"]).await?.ok()?;
        ensure!(shown.contains("ErrImagePull") || shown.contains("ImagePullBackOff"), "{shown}");
        Ok(())
    })
    .await?;
    let create = ["create", "secret", "docker-registry", "hub", "--docker-server"];
    let user = ["--docker-username", REGISTRY_USER, "--docker-password", REGISTRY_PASSWORD];
    let server = [registry.address.as_str()];
    cluster.ctl(&[&create[..], &server[..], &user[..]].concat()).await?.ok()?;
    cluster.apply(&pod("with", "{name: hub}")).await?;
    cluster.ctl(&["wait", "pod/with", "--for=condition=Ready", "--timeout=60s"]).await?.ok()?;
    let described = cluster.ctl(&["describe", "pod", "without"]).await?.ok()?;
    assert!(!described.contains(REGISTRY_PASSWORD), "{described}");
    drop(cluster);
    Ok(())
}
