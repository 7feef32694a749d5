//! Changes to an input that tend to matter: bits, bytes, numbers at their limits, pieces repeated,
//! swapped, cut, and taken from another input. All of it from one seed.

use fastrand::Rng;

/// Longest input that is made, in bytes.
const LENGTH_MAX: usize = 64 << 10;
/// Changes to one input, at most.
const CHANGES_MAX: usize = 4;
/// What parsers look for.
const TOKENS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "null",
    "true",
    "-1",
    "0",
    "1e999",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551616",
    "0.0000001",
    "Ki",
    "Ei",
    "m",
    "e24",
    "(",
    ")",
    "!",
    "=",
    "!=",
    " in ",
    " notin ",
    "..",
    "[?(@.",
    "*",
    "\\",
    "\u{0}",
    "\u{e9}",
    "\n",
    "---\n",
    "- ",
    "&a ",
    "*a",
    "<<: ",
    "metadata",
    "name",
    "$patch",
    "delete",
    "replace",
    "$setElementOrder/ports",
];

/// `input` changed a little; `other` is where pieces are taken from.
pub fn mutate(input: &[u8], other: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..rng.usize(1..=CHANGES_MAX) {
        change(&mut bytes, other, rng);
    }
    bytes.truncate(LENGTH_MAX);
    bytes
}

fn change(bytes: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let at = rng.usize(0..=bytes.len());
    let piece = |of: &[u8], rng: &mut Rng| -> Vec<u8> {
        let begin = rng.usize(0..=of.len());
        let end = rng.usize(begin..=of.len().min(begin + 64));
        of[begin..end].to_vec()
    };
    match rng.u8(0..10) {
        0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(0..8),
        1 if at < bytes.len() => bytes[at] = rng.u8(..),
        2 if at < bytes.len() => bytes[at] = *rng.choice(&[0, 1, 0x7f, 0x80, 0xff]).unwrap_or(&0),
        3 => {
            let end = rng.usize(at..=bytes.len().min(at + 16));
            bytes.drain(at..end);
        }
        4 => bytes.truncate(at),
        5 => {
            let inserted = piece(other, rng);
            bytes.splice(at..at, inserted);
        }
        6 => {
            let repeated = piece(bytes, rng);
            let times = 1 << rng.u8(0..8);
            bytes.splice(at..at, repeated.repeat(times));
        }
        7 => {
            let token = rng.choice(TOKENS).copied().unwrap_or_default();
            bytes.splice(at..at, token.bytes());
        }
        8 if at + 8 <= bytes.len() => {
            let limits = [0, 1, u64::from(u32::MAX), u64::MAX, i64::MAX as u64, rng.u64(..)];
            let value = rng.choice(limits).unwrap_or(0);
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        _ => {
            let token = rng.choice(TOKENS).copied().unwrap_or_default();
            let end = rng.usize(at..=bytes.len().min(at + 8));
            bytes.splice(at..end, token.bytes());
        }
    }
}
