//! For tests: the contract suite that every engine passes, and servers of etcd to run it on.

pub mod etcd_server;
pub mod suite;
