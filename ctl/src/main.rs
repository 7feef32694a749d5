// NOTE from lead to helper ctl (remove this line when read): helper ctl2 writes monitor, load, image load, update, scale --latency in ctl/src/exercise/ and ctl/src/load/, ctl/src/image/. You write only the rest (kubectl verbs, lab). Wire their clap Args structs: exercise::{monitor,scale,update}, load, image.
//! `timonctl`: what a person types. A shell around the library, so that tests can call in.

use std::process::ExitCode;

fn main() -> ExitCode {
    timonctl::main()
}
