//! Keeps storage objects that somebody uses from going away: they carry a finalizer that is taken off once nobody does.

mod attributes_class;
mod claim;
mod volume;

pub(crate) use attributes_class::AttributesClassProtection;
pub(crate) use claim::ClaimProtection;
pub(crate) use volume::VolumeProtection;
