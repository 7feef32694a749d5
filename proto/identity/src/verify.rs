//! Who is believed to be a master by somebody who has no more than the hash of its CA's key.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::IdentityError;

/// SHA-256 of a certificate's public key, as join tokens carry it.
pub fn ca_hash(der: &[u8]) -> Result<[u8; 32], IdentityError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| IdentityError::Read {
        what: "a CA's certificate".into(),
        why: error.to_string(),
    })?;
    Ok(Sha256::digest(certificate.public_key().raw).into())
}

/// Believes a master whose certificate was signed by the CA of a known hash. Masters send that
/// CA's certificate along.
#[derive(Debug)]
pub struct Pinned {
    pub ca_hash: [u8; 32],
    pub provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = chain.iter().find(|one| ca_hash(one).is_ok_and(|hash| hash == self.ca_hash));
        let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let Some(pinned) = pinned else { return Err(unknown) };
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_server_cert(leaf, chain, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
