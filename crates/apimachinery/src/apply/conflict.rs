//! Fields that somebody else owns.

use super::managed::ManagerId;
use crate::status::{Cause, Details, Status};

/// A field that an applied object would change although another manager owns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub manager: ManagerId,
    /// As messages show it: `.spec.replicas`.
    pub path: String,
}

/// All conflicts of one apply, by manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflicts(pub Vec<Conflict>);

impl std::fmt::Display for Conflicts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let [conflict] = self.0.as_slice() {
            let manager = conflict.manager.shown();
            return write!(f, "Apply failed with 1 conflict: conflict with {manager}: {}", conflict.path);
        }
        write!(f, "Apply failed with {} conflicts: ", self.0.len())?;
        let mut last = None;
        for conflict in &self.0 {
            let newline = if last.is_none() { "" } else { "\n" };
            if last != Some(&conflict.manager) {
                write!(f, "{newline}conflicts with {}:", conflict.manager.shown())?;
                last = Some(&conflict.manager);
            }
            write!(f, "\n- {}", conflict.path)?;
        }
        Ok(())
    }
}

impl std::error::Error for Conflicts {}

impl Conflicts {
    /// The answer to the client: 409 with a cause for each field.
    #[must_use]
    pub fn to_status(&self) -> Status {
        let causes = self.0.iter().map(|conflict| Cause {
            reason: "FieldManagerConflict".into(),
            message: format!("conflict with {}", conflict.manager.shown()),
            field: conflict.path.clone(),
        });
        Status::new(409, "Conflict", self.to_string())
            .with_details(Details { causes: causes.collect(), ..Details::default() })
    }
}
