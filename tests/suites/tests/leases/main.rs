//! Leases in etcd: taken, kept, watched and given up; nodes that come and go.

mod etcd;
mod lease;
mod lease_file;
mod membership;
mod scale;
