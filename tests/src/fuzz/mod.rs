//! The fuzz targets: each takes bytes that anybody may have written and panics where the product
//! does, or where it breaks its word about such bytes.
//!
//! `tests/fuzz` hands them to libFuzzer (`make fuzz TARGET=… SECONDS=…`); the test `fuzz` replays
//! the corpus and a bounded number of mutations of it in every run of the tests.

mod log;
mod manifest;
pub mod mutate;
mod patch;
mod text;
mod wire;

/// A target's name, which is that of its corpus' folder, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("manifest", manifest::manifest),
    ("yaml", manifest::yaml),
    ("patch", patch::patch),
    ("selector", text::selector),
    ("quantity", text::quantity),
    ("jsonpath", text::jsonpath),
    ("log_segment", log::segment),
    ("log_damage", log::damage),
    ("transactions", log::transactions),
    ("snapshot", log::snapshot),
    ("wire", wire::wire),
    ("assignments", wire::assignments),
];

/// Runs one target by its name.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, target) = target.unwrap_or_else(|| panic!("there is no fuzz target {name}"));
    target(data);
}
