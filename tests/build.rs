//! Compiles the part of etcd's public protocol that the `store-writes` benchmark speaks, and lists
//! every message of our own protocol, so that no new one escapes the fuzz target `wire`.

use std::fmt::Write;
use std::path::Path;

const OURS: &str = "../proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/etcd.proto");
    println!("cargo:rerun-if-changed={OURS}/timonier/v1");
    // Crates that look these functions up by name find the simulation's, as well.
    for function in ["clock_gettime", "getrandom"] {
        println!("cargo:rustc-link-arg-test=-Wl,--export-dynamic-symbol={function}");
    }
    let descriptors = protox::compile(["proto/etcd.proto"], ["."])?;
    tonic_prost_build::configure().build_server(false).bytes(".").compile_fds(descriptors)?;
    std::fs::write(
        Path::new(&std::env::var("OUT_DIR")?).join("messages.rs"),
        messages(&protocol_files()?)?,
    )?;
    Ok(())
}

fn protocol_files() -> std::io::Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(Path::new(OURS).join("timonier/v1"))? {
        let name = entry?.file_name();
        let Some(name) = name.to_str().filter(|name| name.ends_with(".proto")) else { continue };
        files.push(format!("timonier/v1/{name}"));
    }
    files.sort();
    Ok(files)
}

/// A function that hands each message's type to the macro `each_message!`.
fn messages(files: &[String]) -> Result<String, Box<dyn std::error::Error>> {
    let descriptors = protox::compile(files, [OURS])?;
    let mut names: Vec<&str> = descriptors
        .file
        .iter()
        .filter(|file| file.package() == "timonier.v1")
        .flat_map(|file| file.message_type.iter().map(|message| message.name()))
        .collect();
    names.sort_unstable();
    let mut text = String::from("fn every_message(data: &[u8]) {\n");
    for name in names {
        writeln!(text, "    message::<v1::{name}>(data);")?;
    }
    text.push_str("}\n");
    Ok(text)
}
