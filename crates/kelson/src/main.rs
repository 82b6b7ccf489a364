//! The whole of Kubernetes in one program: `kelson up`, or each component by its upstream name.

#![forbid(unsafe_code)]

fn main() {}
