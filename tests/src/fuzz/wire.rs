//! Messages off the wire: each type decodes or refuses any bytes, and an agent's view of its
//! assignments holds whatever a master sends.

use std::fmt::Debug;

use prost::Message;
use timonier_agent::session::assigned::Assigned;
use timonier_proto::v1;

include!(concat!(env!("OUT_DIR"), "/messages.rs"));

/// The same bytes as every message there is.
pub fn wire(data: &[u8]) {
    every_message(data);
}

fn message<M: Message + Default + PartialEq + Debug>(data: &[u8]) {
    let Ok(message) = M::decode(data) else { return };
    let encoded = message.encode_to_vec();
    assert_eq!(encoded.len(), message.encoded_len());
    let again = M::decode(encoded.as_slice()).expect("what was encoded can be decoded");
    // A NaN does not equal itself.
    let text = format!("{message:?}");
    assert!(again == message || text.contains("NaN"), "{again:?} is not {text}");
}

/// Length-prefixed messages, one after the other, as they come in one session.
pub fn assignments(mut data: &[u8]) {
    let mut assigned = Assigned::default();
    assigned.begin();
    while let Ok(message) = v1::Assignments::decode_length_delimited(&mut data) {
        let (complete, results_in) = (message.complete, message.results_in);
        if assigned.take(message).is_ok() {
            // A gap is noticed: the next one must go on from here.
            let gap =
                v1::Assignments { applies_to: results_in.wrapping_add(1), ..Default::default() };
            assert!(assigned.take(gap).is_err());
            if complete {
                assert!(assigned.network(Vec::new()).is_some());
            }
        }
    }
}
