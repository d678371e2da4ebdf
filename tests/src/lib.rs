//! lab

pub mod etcd;
