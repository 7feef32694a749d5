//! placeholder

pub mod driver;
pub mod stamp;
