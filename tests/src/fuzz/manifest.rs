//! Manifests: strict decoding and admission answer, whatever they are given, and what they let in
//! is stable.

use timonier_master_core::admission::{admit_change, admit_new, validate};
use timonier_proto::Object;
use timonier_proto::decode::{decode, decode_json, flatten};

/// JSON, as a door gets it.
pub fn manifest(data: &[u8]) {
    let decoded = decode_json(data);
    if let Ok(value) = serde_json::from_slice::<serde_json::Value>(data) {
        // The fast way and the careful way agree.
        let careful = decode(&value);
        assert_eq!(decoded.is_ok(), careful.is_ok(), "{decoded:?} but {careful:?}");
        if let (Ok(fast), Ok(careful)) = (&decoded, &careful) {
            assert_eq!(fast, careful);
        }
        let _ = flatten(value);
    }
    if let Ok(object) = decoded {
        admitted(object);
    }
}

/// What a person hands to `timonctl apply -f`.
pub fn yaml(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(documents) = timonctl::manifest::parse("fuzz.yaml", text) else { return };
    for document in documents {
        if let Ok(object) = decode(&document.value) {
            admitted(object);
        }
    }
}

fn admitted(object: Object) {
    assert_eq!(again(&object), object, "decoding what was encoded changes it");
    let Ok(stored) = admit_new(object) else { return };
    assert_eq!(again(&stored), stored, "decoding what was admitted changes it");
    validate(&stored).expect("what was admitted is valid");
    // Writing an object back as it was read is always allowed, and changes nothing.
    let rewritten = admit_change(&stored, stored.clone()).expect("an object replaces itself");
    assert_eq!(rewritten, stored);
}

/// Encoded and decoded.
fn again(object: &Object) -> Object {
    let json = object.to_json().expect("an object can be encoded");
    decode_json(&json).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&json)))
}
