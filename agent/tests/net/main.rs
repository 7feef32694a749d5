//! The pod network on the real kernel, each test on a machine of its own (a network namespace),
//! but for those with Docker. Needs root, `unshare`, `ip`, `nft`, `iptables` and Docker; without
//! them the tests fail, saying so.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod docker;
mod init;
mod lifecycle;
mod machine;
mod rules;
mod traffic;
