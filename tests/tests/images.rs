//! Images: streamed to the nodes without a registry, and pulled from one.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use timonier_tests::cluster::{Cluster, Options};
use timonier_tests::engine::{Engine, run};
use timonier_tests::wait;

fn images(engine: &Engine) -> Result<String> {
    engine.docker(&["images", "--format", "{{.Repository}}:{{.Tag}}"])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_streamed_to_a_node_without_a_registry_and_not_sent_twice() -> Result<()> {
    let engine = Engine::start().await?;
    let agent_args = vec!["--docker-socket".into(), engine.socket()];
    let cluster = Cluster::start(Options { agents: 1, agent_args, ..Options::default() }).await?;
    assert!(!images(&engine)?.contains("timonier/web"), "the node begins without the image");
    cluster.ctl(&["image", "load", "timonier/web:v1"]).await?.ok()?;
    assert!(images(&engine)?.contains("timonier/web:v1"), "{}", images(&engine)?);
    let again = cluster.ctl(&["image", "load", "timonier/web:v1"]).await?.ok()?;
    assert!(again.contains("already"), "{again}");

    let archive = cluster.dir().join("v2.tar");
    let archive = archive.to_str().context("a path in UTF-8")?;
    run("docker", &["save", "-o", archive, "timonier/web:v2"])?;
    cluster.ctl(&["image", "load", archive]).await?.ok()?;
    assert!(images(&engine)?.contains("timonier/web:v2"), "{}", images(&engine)?);
    cluster
        .apply("apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: 'timonier/web:v2', imagePullPolicy: Never}]}")
        .await?;
    cluster.ctl(&["wait", "pod/web", "--for=condition=Ready", "--timeout=30s"]).await?.ok()?;

    let missing = cluster.ctl(&["image", "load", "nobody/has:this"]).await?.failed()?;
    assert!(missing.contains("nobody/has:this"), "{missing}");
    drop(cluster);
    Ok(())
}

/// Debian's docker-registry on a loopback port.
struct Registry {
    _dir: tempfile::TempDir,
    child: Child,
    address: String,
}

impl Registry {
    async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let config = dir.path().join("config.yml");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
                dir.path().join("data").display()
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
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_from_a_registry_and_a_missing_tag_is_explained() -> Result<()> {
    let registry = Registry::start().await?;
    let image = format!("{}/course/web:v1", registry.address);
    run("docker", &["tag", "timonier/web:v1", &image])?;
    run("docker", &["push", &image])?;
    run("docker", &["rmi", &image])?;
    let engine = Engine::start().await?;
    let agent_args = vec!["--docker-socket".into(), engine.socket()];
    let cluster = Cluster::start(Options { agents: 1, agent_args, ..Options::default() }).await?;
    let pod = |name: &str, image: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: '{image}'}}]}}\n"
        )
    };
    cluster.apply(&pod("pulled", &image)).await?;
    cluster.ctl(&["wait", "pod/pulled", "--for=condition=Ready", "--timeout=60s"]).await?.ok()?;
    let described = cluster.ctl(&["describe", "pod", "pulled"]).await?.ok()?;
    assert!(described.contains("Pulling") && described.contains("Pulled"), "{described}");

    cluster.apply(&pod("absent", &image.replace(":v1", ":v9"))).await?;
    wait::until("the missing tag to be explained", Duration::from_secs(30), || async {
        let described = cluster.ctl(&["describe", "pod", "absent"]).await?.ok()?;
        ensure!(
            described.contains("not found") || described.contains("manifest unknown"),
            "{described}"
        );
        ensure!(
            described.contains("ErrImagePull") || described.contains("ImagePullBackOff"),
            "{described}"
        );
        Ok(())
    })
    .await?;
    drop(cluster);
    Ok(())
}
