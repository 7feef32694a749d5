//! The peer: etcd processes on this machine, one or three members, each with a folder of its own.
//! Every connection is mutual TLS with certificates like ours, as every connection of ours is.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use timonier_identity::{
    Authority, DialOptions, Identity, Lifetimes, Subject, Trust, dial_lazy, unix_now,
};
use timonier_tests::wait::until;
use tonic::transport::Channel;

use self::proto::kv_client::KvClient;
use self::proto::maintenance_client::MaintenanceClient;

#[allow(clippy::all, missing_docs, unused_qualifications)]
pub mod proto {
    tonic::include_proto!("etcdserverpb");
}

const START_DEADLINE: Duration = Duration::from_secs(20);
/// etcd's limit of its own data; the default is reached by a benchmark.
const QUOTA_BYTES: &str = "8589934592";
const CA_FILE: &str = "ca.pem";
const CERTIFICATE_FILE: &str = "server.pem";
const KEY_FILE: &str = "server-key.pem";

/// Dropping it kills the processes.
pub struct Etcd {
    dir: tempfile::TempDir,
    members: Vec<Member>,
    /// Of who dials it.
    identity: Identity,
    /// Heartbeat and election timeout in milliseconds.
    timing: (u64, u64),
}

struct Member {
    name: String,
    client: String,
    peer: String,
    process: Option<Child>,
}

impl Etcd {
    /// Returns once every member answers a write.
    pub async fn start(count: usize, timing: (u64, u64)) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("timonier-etcd-").tempdir()?;
        let mut members = Vec::new();
        for index in 0..count {
            members.push(Member {
                name: format!("m{index}"),
                client: format!("127.0.0.1:{}", free_port()?),
                peer: format!("https://127.0.0.1:{}", free_port()?),
                process: None,
            });
        }
        let identity = certify(dir.path())?;
        let mut etcd = Self { dir, members, identity, timing };
        for index in 0..count {
            etcd.start_member(index)?;
        }
        for index in 0..count {
            etcd.wait_member(index).await?;
        }
        Ok(etcd)
    }

    pub fn start_member(&mut self, index: usize) -> Result<()> {
        let cluster: Vec<String> =
            self.members.iter().map(|m| format!("{}={}", m.name, m.peer)).collect();
        let member = &mut self.members[index];
        let folder = self.dir.path();
        member.process = Some(spawn(member, folder, &cluster.join(","), self.timing)?);
        Ok(())
    }

    /// Waits until this member takes a write.
    pub async fn wait_member(&self, index: usize) -> Result<()> {
        let channel = self.channel(index)?;
        until("etcd to answer", START_DEADLINE, || async {
            let put = proto::PutRequest { key: "ready".into(), value: "".into() };
            let mut client = KvClient::new(channel.clone());
            tokio::time::timeout(Duration::from_secs(2), client.put(put)).await??;
            Ok(())
        })
        .await
    }

    /// A new connection to a member, made when it is used.
    pub fn channel(&self, index: usize) -> Result<Channel> {
        Ok(dial_lazy(&self.members[index].client, &self.identity, &DialOptions::default())?)
    }

    /// The index of the member that leads.
    pub async fn leader(&self) -> Result<usize> {
        until("etcd to have a leader", START_DEADLINE, || async {
            for index in 0..self.members.len() {
                let mut client = MaintenanceClient::new(self.channel(index)?);
                let call = client.status(proto::StatusRequest {});
                let status =
                    tokio::time::timeout(Duration::from_secs(1), call).await??.into_inner();
                if status.header.is_some_and(|h| h.member_id == status.leader) {
                    return Ok(index);
                }
            }
            anyhow::bail!("no member leads")
        })
        .await
    }

    /// `kill -9`, and reaps it.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        if let Some(mut process) = self.members[index].process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }
}

/// Puts a certificate for all members into the folder; the identity of who dials them.
fn certify(folder: &Path) -> Result<Identity> {
    let lifetimes = Lifetimes::default();
    let authority = Authority::create(unix_now(), &lifetimes)?;
    let issue = |subject: &Subject| authority.issue(subject, unix_now(), lifetimes.machine);
    let server = issue(&Subject::master("1", &["127.0.0.1".to_owned()]))?;
    std::fs::write(folder.join(CA_FILE), authority.bundle_pem())?;
    std::fs::write(folder.join(CERTIFICATE_FILE), &server.chain_pem)?;
    std::fs::write(folder.join(KEY_FILE), &server.key_pem)?;
    let admin = issue(&Subject::admin())?;
    Ok(Identity::new(Some(admin), Trust::Bundle(authority.bundle_pem()))?)
}

fn spawn(
    member: &Member,
    folder: &Path,
    cluster: &str,
    (heartbeat_ms, election_ms): (u64, u64),
) -> Result<Child> {
    let client = &format!("https://{}", member.client);
    let files =
        [("cert-file", CERTIFICATE_FILE), ("key-file", KEY_FILE), ("trusted-ca-file", CA_FILE)];
    let mut tls = vec!["--client-cert-auth".to_owned(), "--peer-client-cert-auth".to_owned()];
    for (flag, file) in files {
        let file = folder.join(file);
        tls.extend(["--", "--peer-"].map(|prefix| format!("{prefix}{flag}={}", file.display())));
    }
    let child = Command::new("etcd")
        .args(["--name", &member.name, "--logger", "zap", "--log-level", "error"])
        .arg("--data-dir")
        .arg(folder.join(&member.name))
        .args(tls)
        .args(["--listen-client-urls", client, "--advertise-client-urls", client])
        .args(["--listen-peer-urls", &member.peer, "--initial-advertise-peer-urls", &member.peer])
        .args(["--initial-cluster", cluster])
        .args(["--heartbeat-interval", &heartbeat_ms.to_string()])
        .args(["--election-timeout", &election_ms.to_string()])
        .args(["--quota-backend-bytes", QUOTA_BYTES])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start etcd")?;
    ensure!(child.id() > 0, "etcd has no process");
    Ok(child)
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for index in 0..self.members.len() {
            if let Err(error) = self.kill(index) {
                eprintln!("stop etcd: {error:#}");
            }
        }
    }
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
