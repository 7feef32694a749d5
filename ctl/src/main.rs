//! `timonctl`: what a person types. A shell around the library, so that tests can call in.

use std::process::ExitCode;

fn main() -> ExitCode {
    timonctl::main()
}
