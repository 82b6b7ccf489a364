//! The kubelet on a runtime that runs nothing, so that every step of its work can be seen and cut short.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod adoption;
mod fake_cri;
