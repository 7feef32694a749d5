//! `backup save -`: what reaches the standard output is judged as it passes.

use serde_json::json;
use timonier_proto::backup::{FORMAT, Sum, TRAILER_BYTES};

use super::run;
use crate::played::Played;

/// The bytes of a backup whose state spans several pieces.
fn backup() -> Vec<u8> {
    let header = json!({"format": FORMAT, "clusterId": "c", "revision": 7, "objects": 1,
        "time": "2026-01-01T00:00:00Z", "masterId": 1, "masterName": "m1", "version": "0.1.0",
        "needs": "none"});
    let mut bytes = format!("{header}\n").into_bytes();
    bytes.extend(b"some state\n".repeat(500));
    let mut sum = Sum::default();
    sum.update(&bytes);
    bytes.extend(sum.trailer());
    bytes
}

#[tokio::test]
async fn a_backup_to_the_standard_output_is_checked_as_it_passes() {
    let master = Played::start().await;
    let pieces = |bytes: &[u8]| bytes.chunks(1000).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let whole = backup();
    master.keep_backup(pieces(&whole));
    let ran = run(&master, &["backup", "save", "-"]).await;
    assert_eq!((ran.code, ran.out.as_bytes()), (0, &whole[..]), "{}", ran.err);

    let mut damaged = whole.clone();
    damaged[2_000] = b'S';
    // It ends with a newline, as a whole one does.
    let cut = &whole[..whole.len() - TRAILER_BYTES + 1];
    for (bytes, why) in [(&damaged[..], "checksum does not match"), (cut, "it ends too early")] {
        master.keep_backup(pieces(bytes));
        let ran = run(&master, &["backup", "save", "-"]).await;
        assert_eq!(ran.code, 1, "{why}");
        assert!(ran.err.contains(why) && ran.err.contains("hint: "), "{}", ran.err);
    }
}
