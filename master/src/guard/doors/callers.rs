//! Those who knock: each with what it shows.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ServiceAccount;
use timonier_identity::{
    Authority, Credentials, DialOptions, Identity, Lifetimes, Subject, Trust, dial_lazy, unix_now,
};
use timonier_master_core::op::{Op, Txn};
use timonier_proto::{Kind, ObjectKey};
use tonic::Request;
use tonic::transport::Channel;

use super::DEADLINE;
use crate::guard::{IMPERSONATE_GROUP, IMPERSONATE_USER};
use crate::{RunningMaster, tokens};

const HOUR: Duration = Duration::from_secs(3600);

/// Somebody at the door.
pub struct Knocking {
    /// How the table's rows name it.
    pub letter: char,
    pub channel: Channel,
    bearer: Option<String>,
    acts_as: Option<(&'static str, &'static str)>,
}

impl Knocking {
    fn new(letter: char, channel: Channel) -> Self {
        Self { letter, channel, bearer: None, acts_as: None }
    }

    /// Puts what it shows beside its certificate into the request.
    pub fn sign<T>(&self, request: &mut Request<T>) {
        let metadata = request.metadata_mut();
        if let Some(token) = &self.bearer {
            metadata.insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        if let Some((user, group)) = self.acts_as {
            metadata.insert(IMPERSONATE_USER, user.parse().unwrap());
            metadata.insert(IMPERSONATE_GROUP, group.parse().unwrap());
        }
    }
}

/// **a**nonymous, the **t**oken of a service account without rights, **v**iewer and **e**ditor of
/// the namespace team, **n**ode n1, an**o**ther node, **m**aster (who has the CA's key, so everything
/// is his anyway), **s**uperuser; and those who are let in nowhere: a **r**evoked token, a certificate of a **w**rong CA, one that has e**x**pired,
/// the viewer who says that she is a superuser (**i**).
pub async fn all(master: &RunningMaster) -> Vec<Knocking> {
    let own = master.pki().authority();
    let now = unix_now();
    let stranger = Authority::create(now, &Lifetimes::default()).unwrap();
    let knock = |credentials: Option<Credentials>| -> Channel {
        let identity = Identity::new(credentials, Trust::Bundle(own.bundle_pem())).unwrap();
        dial_lazy(&master.addr().to_string(), &identity, &DialOptions::default()).unwrap()
    };
    let as_subject = |subject: Subject| knock(Some(own.issue(&subject, now, HOUR).unwrap()));
    let vera = || as_subject(Subject::person("vera", &[]));
    let root = Subject::person("root", &["system:masters"]);
    let mut all = vec![
        Knocking::new('a', knock(None)),
        Knocking { bearer: Some(token(master, "robot").await), ..Knocking::new('t', knock(None)) },
        Knocking::new('v', vera()),
        Knocking::new('e', as_subject(Subject::person("ed", &[]))),
        Knocking::new('n', as_subject(Subject::node("n1"))),
        Knocking::new('o', as_subject(Subject::node("n2"))),
        Knocking::new('m', as_subject(Subject::master("7", &[]))),
        Knocking::new('s', as_subject(root.clone())),
    ];
    let revoked = token(master, "gone").await;
    let key = ObjectKey::new(Kind::ServiceAccount, "team", "gone");
    master.store().commit(Txn::of(vec![Op::Remove { key, uid: None }])).await.unwrap();
    all.push(Knocking { bearer: Some(revoked), ..Knocking::new('r', knock(None)) });
    all.push(Knocking::new('w', knock(Some(stranger.issue(&root, now, HOUR).unwrap()))));
    all.push(Knocking::new('x', knock(Some(own.issue(&root, now - 5 * 3600, HOUR).unwrap()))));
    let acts_as = Some(("root", "system:masters"));
    all.push(Knocking { acts_as, ..Knocking::new('i', vera()) });
    all
}

/// A superuser who acts as somebody else.
pub fn acting(channel: Channel, user: &'static str, group: &'static str) -> Knocking {
    Knocking { acts_as: Some((user, group)), ..Knocking::new('s', channel) }
}

/// A token of the account in the namespace team, once there is a key to sign it with.
async fn token(master: &RunningMaster, account: &str) -> String {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let state = master.store().snapshot();
        let account = state.get::<ServiceAccount>("team", account).unwrap();
        match tokens::sign(&state, account, &[], None, 0, Timestamp::now()) {
            Ok((token, _)) => return token,
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
