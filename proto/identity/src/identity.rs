//! [`Identity`]: what a program shows of itself and whom it believes, replaceable while it runs.

use std::fmt;
use std::sync::{Arc, RwLock};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::verify::{Pinned, ca_hash};
use crate::{IdentityError, PeerCertificate};

const ALPN: &[u8] = b"h2";

/// A new key and the request to certify it. What the certificate will say is the signer's to choose.
#[derive(Clone)]
pub struct KeyRequest {
    pub key_pem: String,
    pub request_pem: String,
}

impl KeyRequest {
    pub fn new() -> Result<Self, IdentityError> {
        let failed = |error: rcgen::Error| IdentityError::Key(error.to_string());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key).and_then(|request| request.pem());
        Ok(Self { key_pem: key.serialize_pem(), request_pem: request.map_err(failed)? })
    }
}

/// A certificate, with what a peer may need beside it to get to a CA it knows, and its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub chain_pem: String,
    pub key_pem: String,
}

/// Without the key.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("chain_pem", &self.chain_pem).finish_non_exhaustive()
    }
}

/// Whose certificates are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Those signed by one of these CAs, as PEM.
    Bundle(String),
    /// Those signed by the CA whose public key has this hash: all that a join token tells.
    Pinned([u8; 32]),
}

/// What a program shows of itself and whom it believes. Clones are the same identity.
///
/// [`Identity::replace`] changes it online: handshakes from then on use what is new, connections
/// made before live on.
#[derive(Clone)]
pub struct Identity {
    current: Arc<RwLock<Arc<Material>>>,
}

struct Material {
    credentials: Option<Credentials>,
    trust: Trust,
    own: Option<PeerCertificate>,
    client: Arc<ClientConfig>,
    server: Option<Arc<ServerConfig>>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("own", &self.material().own).finish_non_exhaustive()
    }
}

impl Identity {
    /// Without credentials it can dial, but not serve, and shows nothing of itself.
    pub fn new(credentials: Option<Credentials>, trust: Trust) -> Result<Self, IdentityError> {
        let material = Material::new(credentials, trust)?;
        Ok(Self { current: Arc::new(RwLock::new(Arc::new(material))) })
    }

    /// Shows and believes this from now on. On an error all stays as it was.
    pub fn replace(
        &self,
        credentials: Option<Credentials>,
        trust: Trust,
    ) -> Result<(), IdentityError> {
        let material = Arc::new(Material::new(credentials, trust)?);
        *self.current.write().expect("no holder panics") = material;
        Ok(())
    }

    fn material(&self) -> Arc<Material> {
        Arc::clone(&self.current.read().expect("no holder panics"))
    }

    /// For one handshake; ask again for the next.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.material().client)
    }

    /// For one handshake; ask again for the next. Clients may show a certificate or none. `None`
    /// where this identity has no certificate or no bundle to verify theirs with.
    pub fn server_config(&self) -> Option<Arc<ServerConfig>> {
        self.material().server.clone()
    }

    /// What its own certificate says.
    pub fn own(&self) -> Option<PeerCertificate> {
        self.material().own.clone()
    }

    /// When its own certificate expires, in seconds since 1970.
    pub fn not_after(&self) -> Option<i64> {
        self.material().own.as_ref().map(|own| own.not_after)
    }

    pub fn credentials(&self) -> Option<Credentials> {
        self.material().credentials.clone()
    }

    /// The CAs it believes, as PEM; `None` while it knows a hash only.
    pub fn bundle_pem(&self) -> Option<String> {
        match &self.material().trust {
            Trust::Bundle(pem) => Some(pem.clone()),
            Trust::Pinned(_) => None,
        }
    }

    /// What a join token has to carry: the hash of the newest CA it believes.
    pub fn ca_hash(&self) -> Result<[u8; 32], IdentityError> {
        match &self.material().trust {
            Trust::Pinned(hash) => Ok(*hash),
            Trust::Bundle(pem) => ca_hash(&certificates("the cluster's CA", pem)?[0]),
        }
    }
}

impl Material {
    fn new(credentials: Option<Credentials>, trust: Trust) -> Result<Self, IdentityError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = match &credentials {
            Some(credentials) => Some(certificates("the certificate", &credentials.chain_pem)?),
            None => None,
        };
        let own = chain.as_ref().map(|chain| PeerCertificate::from_der(&chain[0])).transpose()?;
        let pair = match (chain, &credentials) {
            (Some(chain), Some(credentials)) => Some((chain, key(&credentials.key_pem)?)),
            _ => None,
        };
        let server = match (&pair, &trust) {
            (Some((chain, key)), Trust::Bundle(bundle)) => {
                let pair = (chain.clone(), key.clone_key());
                Some(Arc::new(server_config(&provider, roots(bundle)?, pair)?))
            }
            _ => None,
        };
        let client = Arc::new(client_config(&provider, &trust, pair)?);
        Ok(Self { credentials, trust, own, client, server })
    }
}

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn configure(error: impl fmt::Display) -> IdentityError {
    IdentityError::Configure(error.to_string())
}

fn client_config(
    provider: &Arc<CryptoProvider>,
    trust: &Trust,
    pair: Option<Pair>,
) -> Result<ClientConfig, IdentityError> {
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(configure)?;
    let builder = match trust {
        Trust::Bundle(bundle) => builder.with_root_certificates(roots(bundle)?),
        Trust::Pinned(ca_hash) => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Pinned {
                ca_hash: *ca_hash,
                provider: Arc::clone(provider),
            }))
        }
    };
    let mut config = match pair {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(configure)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    roots: RootCertStore,
    (chain, key): Pair,
) -> Result<ServerConfig, IdentityError> {
    // Who shows none may still join, or have a bearer token. Who shows a wrong one is refused here.
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .allow_unauthenticated()
            .build()
            .map_err(configure)?;
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(configure)?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .map_err(configure)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Connections live long. A resumed one would skip the look at the certificate's expiry.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// At least one, or an error.
pub(crate) fn certificates(
    what: &str,
    pem: &str,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let unreadable = |why: String| IdentityError::Read { what: what.to_owned(), why };
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.map_err(|error| unreadable(error.to_string()))?;
    if all.is_empty() { Err(unreadable("no certificate is in it".into())) } else { Ok(all) }
}

fn key(pem: &str) -> Result<PrivateKeyDer<'static>, IdentityError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| IdentityError::Read {
        what: "the certificate's key".into(),
        why: error.to_string(),
    })
}

fn roots(bundle: &str) -> Result<RootCertStore, IdentityError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("the cluster's CA", bundle)? {
        roots.add(certificate).map_err(configure)?;
    }
    Ok(roots)
}
