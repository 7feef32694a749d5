//! What a certificate says of its owner.

use x509_parser::prelude::{FromDer, X509Certificate};

use crate::authority::{CLOCK_SKEW_PART, CLOCK_SKEW_S};
use crate::identity::certificates;
use crate::{GROUP_MASTERS, GROUP_NODES, IdentityError, MASTER_PREFIX, NODE_PREFIX};

/// The owner of a certificate, as it names them. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The common name.
    pub name: String,
    /// The organizations.
    pub groups: Vec<String>,
    /// Hexadecimal.
    pub serial: String,
    /// Common name of the CA that signed it.
    pub issuer: String,
    pub not_before: i64,
    pub not_after: i64,
}

impl PeerCertificate {
    /// Reads a certificate in DER. That it is genuine is for the handshake to find out.
    pub fn from_der(der: &[u8]) -> Result<Self, IdentityError> {
        let unreadable = |why: String| IdentityError::Read { what: "a certificate".into(), why };
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| unreadable(error.to_string()))?;
        let text = |name: &x509_parser::x509::X509Name<'_>| {
            let common = name.iter_common_name().next();
            common.and_then(|name| name.as_str().ok()).unwrap_or_default().to_owned()
        };
        let groups = certificate.subject().iter_organization();
        let validity = certificate.validity();
        Ok(Self {
            name: text(certificate.subject()),
            groups: groups.filter_map(|group| group.as_str().ok()).map(str::to_owned).collect(),
            serial: certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
            issuer: text(certificate.issuer()),
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
        })
    }

    /// Reads the first certificate of a chain in PEM.
    pub fn from_pem(chain: &str) -> Result<Self, IdentityError> {
        Self::from_der(&certificates("a certificate", chain)?[0])
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|one| one == group)
    }

    /// The node that this is the certificate of.
    pub fn node(&self) -> Option<&str> {
        self.name.strip_prefix(NODE_PREFIX).filter(|_| self.in_group(GROUP_NODES))
    }

    /// The master that this is the certificate of.
    pub fn master(&self) -> Option<&str> {
        self.name.strip_prefix(MASTER_PREFIX).filter(|_| self.in_group(GROUP_MASTERS))
    }

    /// Whether it is neither a node's nor a master's.
    pub fn is_person(&self) -> bool {
        self.node().is_none() && self.master().is_none()
    }

    /// When it was signed: it is valid from a little earlier, as clocks differ.
    pub fn issued_at(&self) -> i64 {
        let life = self.not_after - self.not_before;
        self.not_before + CLOCK_SKEW_S.min(life / (CLOCK_SKEW_PART + 1))
    }

    /// For how long it was signed, in seconds.
    pub fn validity_s(&self) -> u64 {
        u64::try_from(self.not_after - self.issued_at()).unwrap_or_default()
    }

    /// When two thirds of its life are over: time to renew it.
    pub fn renew_at(&self) -> i64 {
        self.not_before + (self.not_after - self.not_before) * 2 / 3
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Authority, Lifetimes, Subject};

    #[test]
    fn a_certificate_tells_when_and_for_how_long_it_was_signed() {
        let now = 1_800_000_000;
        let authority = Authority::create(now, &Lifetimes::default()).unwrap();
        for seconds in [1, 6, 12, 23, 60, 3_599, 3_600, 3_601, 90 * 86_400] {
            let signed = authority.issue(&Subject::node("n1"), now, Duration::from_secs(seconds));
            let read = PeerCertificate::from_pem(&signed.unwrap().chain_pem).unwrap();
            assert_eq!((read.issued_at(), read.validity_s()), (now, seconds));
        }
    }
}
