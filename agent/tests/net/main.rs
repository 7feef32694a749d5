//! The pod network on the real kernel, each test on a machine of its own (a network namespace).
//! Needs root, `unshare`, `ip`, `nft` and `iptables`; without them the tests fail, saying so.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod init;
mod lifecycle;
mod machine;
mod rules;
mod traffic;
