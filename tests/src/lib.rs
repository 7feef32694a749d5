//! What the suites that cross programs share: a cluster of real processes on this machine, the
//! commands a user would type, and the measurements that the benchmarks print.
//!
//! Nothing here is part of the product.

pub mod chaos;
pub mod cluster;
pub mod docker;
pub mod engine;
pub mod fuzz;
pub mod masters;
pub mod measure;
pub mod number;
pub mod wait;
