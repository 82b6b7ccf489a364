//! Requests without credentials.

use parking_lot::RwLock;

use super::jwt::settings::Anonymous;
use crate::attributes::UserInfo;

/// Who may come without credentials. It may change while the server runs.
pub(crate) struct AnonymousAccess(RwLock<Anonymous>);

impl AnonymousAccess {
    pub(crate) fn new(enabled: bool) -> Self {
        AnonymousAccess(RwLock::new(Anonymous::by_flag(enabled)))
    }

    pub(crate) fn set(&self, rule: Anonymous) {
        *self.0.write() = rule;
    }

    /// The user of a request without credentials; `None`: there must be some.
    #[must_use]
    pub(crate) fn user(&self, path: &str) -> Option<UserInfo> {
        let rule = self.0.read();
        let allowed = rule.enabled && (rule.paths.is_empty() || rule.paths.iter().any(|p| p == path));
        allowed.then(|| UserInfo {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            ..UserInfo::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_may_ask_for_what_the_rule_names() {
        let access = AnonymousAccess::new(true);
        assert!(access.user("/api").is_some());
        access.set(Anonymous { enabled: true, paths: vec!["/livez".to_owned()] });
        assert!(access.user("/livez").is_some() && access.user("/livez/x").is_none());
        access.set(Anonymous { enabled: false, paths: Vec::new() });
        assert!(access.user("/livez").is_none());
    }
}
