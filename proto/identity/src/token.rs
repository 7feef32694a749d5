//! Join tokens: what a host has to show to become a node or a master.
//!
//! `timonier-<role>.<id>.<secret>.<hash>`: the id names the token at the masters, which keep only a
//! hash of the secret; the last part is the hash of the cluster CA's public key, by which whoever
//! joins knows the master before telling it the secret.

use std::fmt;
use std::str::FromStr;

use ring::rand::{SecureRandom, SystemRandom};
use sha2::{Digest, Sha256};

/// Letters without those that are taken for one another.
const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
const ID_CHARACTERS: usize = 8;
/// Five bits each: 130 bits, too many to try.
const SECRET_CHARACTERS: usize = 26;

/// What a token lets one become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinRole {
    Node,
    Master,
}

impl JoinRole {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Master => "master",
        }
    }
}

impl fmt::Display for JoinRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for JoinRole {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        match text {
            "node" => Ok(Self::Node),
            "master" => Ok(Self::Master),
            _ => Err(TokenError::Role(text.to_owned())),
        }
    }
}

/// Why a text is not a join token. The text itself is a secret and is not repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error(
        "the join token is not of the form timonier-ROLE.ID.SECRET.HASH; hint: copy it whole, as `timonctl token create` printed it"
    )]
    Form,
    #[error("{0:?} is not a role of a join token; hint: it is node or master")]
    Role(String),
    #[error("make a join token: the machine gives no random numbers")]
    Random,
}

/// A join token, in the clear.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub role: JoinRole,
    pub id: String,
    secret: String,
    /// SHA-256 of the CA's public key (its `SubjectPublicKeyInfo`).
    pub ca_hash: [u8; 32],
}

impl JoinToken {
    /// A new one, with a random id and secret.
    pub fn new(role: JoinRole, ca_hash: [u8; 32]) -> Result<Self, TokenError> {
        Ok(Self { role, id: random(ID_CHARACTERS)?, secret: random(SECRET_CHARACTERS)?, ca_hash })
    }

    /// Reads what is given on a command line: a token's text, or `@` and a file that has it.
    pub fn read(given: &str) -> Result<Self, String> {
        let text = match given.strip_prefix('@') {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| format!("read the join token in {path}: {error}"))?,
            None => given.to_owned(),
        };
        text.parse().map_err(|error: TokenError| error.to_string())
    }

    /// What the masters keep of the secret: its SHA-256, hexadecimal.
    pub fn secret_hash(&self) -> String {
        hex(&Sha256::digest(self.secret.as_bytes()))
    }

    /// Whether the secret is the one of this hash. Takes the same time for right and wrong ones.
    pub fn matches(&self, secret_hash: &str) -> bool {
        let ours = self.secret_hash();
        let differences =
            ours.bytes().zip(secret_hash.bytes()).fold(0u8, |all, (a, b)| all | (a ^ b));
        ours.len() == secret_hash.len() && differences == 0
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { role, id, secret, ca_hash } = self;
        write!(f, "timonier-{role}.{id}.{secret}.{}", hex(ca_hash))
    }
}

/// Without the secret.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "timonier-{}.{}", self.role, self.id)
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let rest = text.trim().strip_prefix("timonier-").ok_or(TokenError::Form)?;
        let parts: Vec<&str> = rest.split('.').collect();
        let [role, id, secret, hash] = parts[..] else { return Err(TokenError::Form) };
        let plain = |text: &str| {
            !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| ALPHABET.contains(&b))
        };
        if !plain(id) || !plain(secret) {
            return Err(TokenError::Form);
        }
        Ok(Self {
            role: role.parse()?,
            id: id.to_owned(),
            secret: secret.to_owned(),
            ca_hash: from_hex(hash).ok_or(TokenError::Form)?,
        })
    }
}

fn random(characters: usize) -> Result<String, TokenError> {
    let mut bytes = vec![0; characters];
    SystemRandom::new().fill(&mut bytes).map_err(|_| TokenError::Random)?;
    Ok(bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_and_keeps_its_secret() {
        let token = JoinToken::new(JoinRole::Node, [7; 32]).unwrap();
        let read: JoinToken = format!(" {token}\n").parse().unwrap();
        assert_eq!(read, token);
        assert!(read.matches(&token.secret_hash()));
        assert!(!read.matches(""));
        let other = JoinToken::new(JoinRole::Node, [7; 32]).unwrap();
        assert!(!other.matches(&token.secret_hash()));
        assert!(!format!("{token:?}").contains(&token.secret));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let token = JoinToken::new(JoinRole::Master, [255; 32]).unwrap().to_string();
        let cut = &token[..token.len() - 1];
        for text in ["", "timonier-node", "timonier-node.a.b.cc", "node.a.b", cut] {
            assert_eq!(text.parse::<JoinToken>(), Err(TokenError::Form), "{text}");
        }
        let role = token.replace("master", "admin").parse::<JoinToken>();
        assert_eq!(role, Err(TokenError::Role("admin".into())));
    }
}
