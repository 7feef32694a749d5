//! Stable short hashes for names: the pod-template-hash, event names. Not for security.

use k8s_openapi::api::core::v1::PodTemplateSpec;

/// Kubernetes' alphabet for generated names: no vowels, nothing that reads like another letter.
pub const NAME_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// FNV-1a, 64 bits.
pub fn fnv64(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        // The length goes in first, so that ("ab", "c") and ("a", "bc") differ.
        for byte in (part.len() as u64).to_le_bytes().iter().chain(part.iter()) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    // FNV mixes its last bytes badly into the high bits, and names take those too.
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}

/// `length` characters that are safe in names.
pub fn name_suffix(mut value: u64, length: usize) -> String {
    let base = NAME_ALPHABET.len() as u64;
    (0..length)
        .map(|_| {
            let index = usize::try_from(value % base).expect("below the alphabet's length");
            value /= base;
            char::from(NAME_ALPHABET[index])
        })
        .collect()
}

/// The pod-template-hash: of the template as JSON, an absent field being the same as none, and of
/// the number of collisions seen so far.
pub fn template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    let json = serde_json::to_vec(template).expect("a pod template is plain data");
    name_suffix(fnv64(&[&json, &collisions.to_le_bytes()]), 10)
}

/// A small generator for decisions that may take any of several ways: seeded by the world, so the
/// same world gives the same decision.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// splitmix64.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_keeps_its_hash() {
        // A changed value would restart every deployment of a cluster that is upgraded.
        let mut template = PodTemplateSpec::default();
        assert_eq!(template_hash(&template, 0), template_hash(&template.clone(), 0));
        let plain = template_hash(&template, 0);
        assert_ne!(plain, template_hash(&template, 1));
        template.metadata.get_or_insert_default().labels =
            Some([("app".to_owned(), "web".to_owned())].into());
        assert_ne!(plain, template_hash(&template, 0));
    }
}
