//! placeholder

pub mod driver;
pub mod stamp;
pub mod store;
