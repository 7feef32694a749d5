//! Compiles `init/init.rs` into the static program that the agent carries and puts into
//! containers. It uses neither the standard library nor libc, so no target needs to be installed.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

const SOURCE: &str = "init/init.rs";
const FLAGS: [&str; 20] = [
    "--crate-name=timonier_init",
    "--crate-type=bin",
    "--edition=2024",
    "-Copt-level=z",
    "-Cpanic=abort",
    "-Cstrip=symbols",
    "-Coverflow-checks=off",
    "-Cdebug-assertions=off",
    "-Crelocation-model=static",
    "-Ctarget-feature=+crt-static",
    "-Clink-arg=-nostartfiles",
    "-Clink-arg=-nostdlib",
    "-Clink-arg=-static",
    "-Clink-arg=-Wl,--build-id=none",
    "-Clink-arg=-Wl,-z,noexecstack",
    "-Clink-arg=-Wl,--gc-sections",
    "-Ccodegen-units=1",
    "-Clto=fat",
    "-Cforce-unwind-tables=no",
    "-Dwarnings",
];

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-changed=build.rs");
    let get = |name: &str| env::var(name).unwrap_or_else(|_| panic!("Cargo sets {name}"));
    let program = Path::new(&get("OUT_DIR")).join("timonier-init");
    let mut rustc = Command::new(get("RUSTC"));
    rustc.args(FLAGS).arg("--target").arg(get("TARGET")).arg("-o").arg(&program).arg(SOURCE);
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    let status = rustc.status().expect("rustc starts, as it does for this script");
    assert!(status.success(), "compiling {SOURCE} failed: {status}");
    let bytes = fs::metadata(&program).expect("rustc wrote the program").len();
    assert!(bytes < 256 * 1024, "the init has {bytes} bytes: something large got linked in");
}
