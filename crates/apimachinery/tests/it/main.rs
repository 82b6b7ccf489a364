//! The codecs and the patch engine against what a real apiserver answered.

mod apply;
mod recorded;
mod strictness;
mod yaml;
