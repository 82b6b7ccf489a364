//! The codecs and the patch engine against what a real apiserver answered.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "tests fail by panicking and say what they skip")]

mod apply;
mod arbitrary;
mod fuzz;
mod properties;
mod recorded;
mod strictness;
mod yaml;
