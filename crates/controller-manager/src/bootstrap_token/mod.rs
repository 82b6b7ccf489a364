//! Tokens with which nodes join: what a secret of that kind says.

pub(crate) mod cleaner;
pub(crate) mod signer;

use client::informer::{Selection, SharedInformer};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;

use crate::context::Context;

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const PREFIX: &str = "bootstrap-token-";

fn informer(context: &Context) -> SharedInformer<Secret> {
    context.informers.namespaced::<Secret>(NAMESPACE, Selection::fields(&format!("type={TYPE}")))
}

fn value<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    let bytes = secret.data.as_ref()?.get(key)?;
    std::str::from_utf8(&bytes.0).ok().filter(|text| !text.is_empty())
}

/// When the token ends. One whose end cannot be read has ended.
fn expiration(secret: &Secret) -> Option<Timestamp> {
    value(secret, "expiration").map(|text| text.parse().unwrap_or(Timestamp::UNIX_EPOCH))
}

/// Id and secret of a token that signs now.
fn signing(secret: &Secret, now: Timestamp) -> Option<(&str, &str)> {
    let is_word = |text: &&str, length| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    let id = value(secret, "token-id").filter(|id| is_word(id, 6))?;
    let key = value(secret, "token-secret").filter(|key| is_word(key, 16))?;
    let is_named = secret.metadata.name.as_deref().and_then(|name| name.strip_prefix(PREFIX)) == Some(id);
    let signs = value(secret, "usage-bootstrap-signing") == Some("true");
    let lives = expiration(secret).is_none_or(|end| end > now);
    (is_named && signs && lives && secret.metadata.deletion_timestamp.is_none()).then_some((id, key))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use kube::core::ObjectMeta;

    use super::*;

    pub(super) fn secret(words: &str) -> Secret {
        let data = words.split(' ').filter_map(|word| word.split_once('='));
        let data = data.map(|(key, value)| (key.to_owned(), ByteString(value.as_bytes().to_vec()))).collect();
        Secret {
            metadata: ObjectMeta { name: Some("bootstrap-token-abcdef".into()), ..ObjectMeta::default() },
            data: Some(data),
            ..Secret::default()
        }
    }

    #[track_caller]
    fn check(words: &str, want: bool) {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(signing(&secret(words), now).is_some(), want, "{words}");
    }

    #[test]
    fn only_whole_living_tokens_sign() {
        let whole = "token-id=abcdef token-secret=0123456789abcdef usage-bootstrap-signing=true";
        check(whole, true);
        check(&format!("{whole} expiration=2027-01-01T00:00:00Z"), true);
        check(&format!("{whole} expiration=2025-01-01T00:00:00Z"), false);
        check(&format!("{whole} expiration=soon"), false);
        check(&whole.replace("abcdef token", "xxxxxx token"), false);
        check(&whole.replace("0123", "012"), false);
        check(&whole.replace("true", "false"), false);
    }
}
