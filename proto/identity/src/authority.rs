//! [`Authority`]: the cluster's CA. It signs, and it is renewed beside the one before it.
//!
//! A new CA does not make the old one's certificates worthless: the old one stays trusted until
//! the last of them has expired, and signs the new one across, so that whoever knows only the old
//! one still believes certificates signed by the new one.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use time::OffsetDateTime;

use crate::identity::certificates;
use crate::verify::ca_hash;
use crate::{
    GROUP_ADMINS, GROUP_MASTERS, GROUP_NODES, IdentityError, MASTER_NAME, MASTER_PREFIX,
    NODE_PREFIX, PeerCertificate,
};

/// Clocks may differ by so much; a certificate is valid from so long before it was made.
pub(crate) const CLOCK_SKEW_S: i64 = 300;
/// A short life begins so small a part of it before it was made.
pub(crate) const CLOCK_SKEW_PART: i64 = 12;
const DAY: Duration = Duration::from_secs(24 * 3600);
const SERIAL_BYTES: usize = 16;
/// Certificates are signed by the newest CA only, so a few are enough.
const PREVIOUS_MAX: usize = 8;
const GROUPS_MAX: usize = 2;

const PART_CERTIFICATE: &str = "ca.crt";
const PART_KEY: &str = "ca.key";
/// Before the names of the parts of CAs that were replaced.
pub const PARTS_PREFIX_PREVIOUS: &str = "previous-";

/// How long certificates are valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    pub authority: Duration,
    /// Agents' and masters', which renew themselves.
    pub machine: Duration,
    /// People's.
    pub person: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self { authority: DAY * 3650, machine: DAY * 90, person: DAY * 365 }
    }
}

impl Lifetimes {
    /// The longest that a certificate signed just before a CA is replaced lives on.
    pub fn longest_leaf(&self) -> Duration {
        self.machine.max(self.person)
    }

    /// How long a certificate of this subject is valid.
    pub fn of(&self, subject: &Subject) -> Duration {
        let machine = subject.groups.iter().any(|g| g == GROUP_NODES || g == GROUP_MASTERS);
        if machine { self.machine } else { self.person }
    }
}

/// Whom a certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub name: String,
    /// At most two.
    pub groups: Vec<String>,
    /// Addresses and host names of a master, for browsers and tools that look at them.
    pub addresses: Vec<String>,
}

impl Subject {
    pub fn node(name: &str) -> Self {
        Self::person(&format!("{NODE_PREFIX}{name}"), &[GROUP_NODES])
    }

    pub fn master(id: &str, addresses: &[String]) -> Self {
        let subject = Self::person(&format!("{MASTER_PREFIX}{id}"), &[GROUP_MASTERS]);
        Self { addresses: addresses.to_vec(), ..subject }
    }

    pub fn admin() -> Self {
        Self::person(crate::ADMIN_NAME, &[GROUP_ADMINS])
    }

    pub fn person(name: &str, groups: &[&str]) -> Self {
        let groups = groups.iter().map(|&group| group.to_owned()).collect();
        Self { name: name.to_owned(), groups, addresses: Vec::new() }
    }

    fn is_master(&self) -> bool {
        self.groups.iter().any(|group| group == GROUP_MASTERS)
    }
}

/// The cluster's CA, and those before it that are still trusted.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority {
    certificate_pem: String,
    key_pem: String,
    /// Newest first.
    previous: Vec<Previous>,
}

#[derive(Clone, PartialEq, Eq)]
struct Previous {
    certificate_pem: String,
    /// The key of the CA that came after it, certified by this one.
    successor_pem: String,
    /// Trusted until then, in seconds since 1970.
    until: i64,
}

/// Without the key.
impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let previous = self.previous.len();
        f.debug_struct("Authority").field("previous", &previous).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new CA, with none before it.
    pub fn create(now: i64, lifetimes: &Lifetimes) -> Result<Self, IdentityError> {
        let (certificate_pem, key_pem, ..) = new_ca(now, lifetimes)?;
        Ok(Self { certificate_pem, key_pem, previous: Vec::new() })
    }

    /// A new CA beside this one, which is trusted until the last certificate that it signed has
    /// expired. Certificates are signed by the new one from then on.
    pub fn renewed(&self, now: i64, lifetimes: &Lifetimes) -> Result<Self, IdentityError> {
        let (certificate_pem, key_pem, params, key) = new_ca(now, lifetimes)?;
        let old = self.issuer()?;
        let expiry = self.certificate()?.not_after;
        let leaf_s = i64::try_from(lifetimes.longest_leaf().as_secs()).unwrap_or(i64::MAX);
        let until = expiry.min(now.saturating_add(leaf_s).saturating_add(CLOCK_SKEW_S));
        let mut across = params;
        // It would outlive its signer otherwise, and some verifiers mind.
        across.not_after = date(expiry)?;
        let successor = across.signed_by(&key, &old).map_err(|error| IdentityError::Sign {
            name: "the new CA".into(),
            why: error.to_string(),
        })?;
        let mut previous = vec![Previous {
            certificate_pem: self.certificate_pem.clone(),
            successor_pem: successor.pem(),
            until,
        }];
        previous.extend(self.previous.iter().cloned());
        previous.truncate(PREVIOUS_MAX);
        Ok(Self { certificate_pem, key_pem, previous })
    }

    /// Without the replaced CAs whose time is over; `None` when there are none.
    pub fn pruned(&self, now: i64) -> Option<Self> {
        let mut pruned = self.clone();
        pruned.previous.retain(|one| one.until > now);
        (pruned.previous.len() < self.previous.len()).then_some(pruned)
    }

    /// Certifies the key of a request. Of the request only the key is taken, and that its sender
    /// has the other half of it; whom it names is the caller's to say.
    pub fn sign(
        &self,
        request_pem: &str,
        subject: &Subject,
        now: i64,
        validity: Duration,
    ) -> Result<String, IdentityError> {
        let request = CertificateSigningRequestParams::from_pem(request_pem)
            .map_err(|error| IdentityError::Request(error.to_string()))?;
        let failed = |why: String| IdentityError::Sign { name: subject.name.clone(), why };
        let params = leaf(subject, now, validity).map_err(&failed)?;
        let certificate = params
            .signed_by(&request.public_key, &self.issuer()?)
            .map_err(|error| failed(error.to_string()))?;
        Ok(self.chain(certificate.pem()))
    }

    /// A key of its own, certified.
    pub fn issue(
        &self,
        subject: &Subject,
        now: i64,
        validity: Duration,
    ) -> Result<crate::Credentials, IdentityError> {
        let request = crate::KeyRequest::new()?;
        let chain_pem = self.sign(&request.request_pem, subject, now, validity)?;
        Ok(crate::Credentials { chain_pem, key_pem: request.key_pem })
    }

    /// The certificate, then what leads from it to every CA that somebody may still know.
    fn chain(&self, leaf_pem: String) -> String {
        let mut chain = leaf_pem;
        for one in &self.previous {
            chain.push_str(&one.successor_pem);
        }
        chain.push_str(&self.bundle_pem());
        chain
    }

    /// All trusted CAs, the newest first.
    pub fn bundle_pem(&self) -> String {
        let previous = self.previous.iter().map(|one| one.certificate_pem.as_str());
        std::iter::once(self.certificate_pem.as_str()).chain(previous).collect()
    }

    /// What join tokens carry of it.
    pub fn ca_hash(&self) -> Result<[u8; 32], IdentityError> {
        ca_hash(&certificates("the CA's certificate", &self.certificate_pem)?[0])
    }

    /// What the newest CA's own certificate says.
    pub fn certificate(&self) -> Result<PeerCertificate, IdentityError> {
        PeerCertificate::from_der(&certificates("the CA's certificate", &self.certificate_pem)?[0])
    }

    /// The replaced CAs that are still trusted, each with when that ends, in seconds since 1970.
    pub fn previous(&self) -> Result<Vec<(PeerCertificate, i64)>, IdentityError> {
        let read = |one: &Previous| {
            let all = certificates("a replaced CA's certificate", &one.certificate_pem)?;
            Ok((PeerCertificate::from_der(&all[0])?, one.until))
        };
        self.previous.iter().map(read).collect()
    }

    /// All of it, by name, as it is kept in files and in the store. The key is in it.
    pub fn to_parts(&self) -> BTreeMap<String, String> {
        let mut parts = BTreeMap::from([
            (PART_CERTIFICATE.to_owned(), self.certificate_pem.clone()),
            (PART_KEY.to_owned(), self.key_pem.clone()),
        ]);
        for (index, one) in self.previous.iter().enumerate() {
            let name = |what: &str| format!("{PARTS_PREFIX_PREVIOUS}{index}.{what}");
            parts.insert(name("crt"), one.certificate_pem.clone());
            parts.insert(name("successor.crt"), one.successor_pem.clone());
            parts.insert(name("until"), one.until.to_string());
        }
        parts
    }

    /// What [`Authority::to_parts`] gave.
    pub fn from_parts(parts: &BTreeMap<String, String>) -> Result<Self, IdentityError> {
        let part = |name: &str| {
            parts.get(name).cloned().ok_or_else(|| IdentityError::Read {
                what: "the cluster's CA".into(),
                why: format!("{name} is missing"),
            })
        };
        let mut previous = Vec::new();
        for index in 0..PREVIOUS_MAX {
            let name = |what: &str| format!("{PARTS_PREFIX_PREVIOUS}{index}.{what}");
            if !parts.contains_key(&name("crt")) {
                break;
            }
            let until = part(&name("until"))?;
            previous.push(Previous {
                certificate_pem: part(&name("crt"))?,
                successor_pem: part(&name("successor.crt"))?,
                until: until.trim().parse().map_err(|_| IdentityError::Read {
                    what: name("until"),
                    why: format!("{until:?} is not a time"),
                })?,
            });
        }
        let authority =
            Self { certificate_pem: part(PART_CERTIFICATE)?, key_pem: part(PART_KEY)?, previous };
        authority.issuer()?;
        Ok(authority)
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, IdentityError> {
        let unreadable = |what: &str, error: rcgen::Error| IdentityError::Read {
            what: what.to_owned(),
            why: error.to_string(),
        };
        let key = KeyPair::from_pem(&self.key_pem).map_err(|e| unreadable("the CA's key", e))?;
        Issuer::from_ca_cert_pem(&self.certificate_pem, key)
            .map_err(|e| unreadable("the CA's certificate", e))
    }
}

fn new_ca(
    now: i64,
    lifetimes: &Lifetimes,
) -> Result<(String, String, CertificateParams, KeyPair), IdentityError> {
    let failed = |error: rcgen::Error| IdentityError::Key(format!("for the cluster's CA: {error}"));
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let serial = serial().map_err(IdentityError::Key)?;
    // CAs differ in name, so that a verifier knows which key to try.
    let id: String = serial[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("timonier-ca-{id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    (params.not_before, params.not_after) = validity(now, lifetimes.authority)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok((certificate.pem(), key.serialize_pem(), params, key))
}

fn leaf(subject: &Subject, now: i64, valid: Duration) -> Result<CertificateParams, String> {
    if subject.groups.len() > GROUPS_MAX {
        return Err(format!("a certificate carries at most {GROUPS_MAX} groups"));
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject.name.as_str());
    // The same attribute twice, under two of the library's names for it.
    let organizations = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])];
    for (kind, group) in organizations.into_iter().zip(&subject.groups) {
        params.distinguished_name.push(kind, group.as_str());
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if subject.is_master() {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        params.subject_alt_names = vec![dns_name(MASTER_NAME)?];
        for address in &subject.addresses {
            params.subject_alt_names.push(match address.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => dns_name(address)?,
            });
        }
    }
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(SerialNumber::from_slice(&serial()?));
    (params.not_before, params.not_after) = validity(now, valid).map_err(|e| e.to_string())?;
    Ok(params)
}

fn dns_name(name: &str) -> Result<SanType, String> {
    name.try_into().map(SanType::DnsName).map_err(|_| format!("{name:?} is not a host's name"))
}

/// Random and positive.
fn serial() -> Result<[u8; SERIAL_BYTES], String> {
    let mut bytes = [0; SERIAL_BYTES];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| "the machine gives no random numbers".to_owned())?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(bytes)
}

fn validity(now: i64, valid: Duration) -> Result<(OffsetDateTime, OffsetDateTime), IdentityError> {
    let seconds = i64::try_from(valid.as_secs()).unwrap_or(i64::MAX / 2);
    // A short life begins now, so that two thirds of it are still to come.
    let skew = CLOCK_SKEW_S.min(seconds / CLOCK_SKEW_PART);
    Ok((date(now - skew)?, date(now.saturating_add(seconds))?))
}

fn date(unix: i64) -> Result<OffsetDateTime, IdentityError> {
    OffsetDateTime::from_unix_timestamp(unix)
        .map_err(|error| IdentityError::Key(format!("for a time of {unix} s: {error}")))
}
