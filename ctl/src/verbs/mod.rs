//! One file a verb: its flags, and what it does. Messages are kubectl's.

pub mod annotate;
pub mod api_resources;
pub mod apply;
pub mod auth;
pub mod backup;
pub mod cluster_info;
pub mod completion;
pub mod config;
pub mod cordon;
pub mod create;
pub mod create_access;
pub mod delete;
pub mod describe;
pub mod diff;
pub mod drain;
pub mod edit;
pub mod encryption;
pub mod events;
pub mod exec;
pub mod expose;
pub mod get;
pub mod lab;
pub mod label;
pub mod logs;
pub mod master;
pub mod port_forward;
pub mod recover;
pub mod rollout;
pub mod scale;
pub mod set;
pub mod top;
pub mod uncordon;
pub mod version;
pub mod wait;

pub(crate) use crate::exercise::{monitor, update};
pub(crate) use crate::{image, load};
