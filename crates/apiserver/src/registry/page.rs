//! Continue tokens: where the next page of a list begins, and of which moment it is.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use storage::Revision;

const VERSION: &str = "meta.k8s.io/v1";

/// A decoded token. The form is upstream's, so that tokens survive a restart and an exchange of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// `None`: the page is of now, whatever has changed since the first one.
    pub revision: Option<Revision>,
    /// The key relative to the list's prefix after which (exclusive) the page begins.
    pub after: String,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(default)]
    v: String,
    #[serde(default)]
    rv: i64,
    #[serde(default)]
    start: String,
}

#[must_use]
pub(super) fn encode(token: &Token) -> String {
    let rv = token.revision.map_or(-1, |r| i64::try_from(r.0).unwrap_or(i64::MAX));
    // The first key behind that one.
    let wire = Wire { v: VERSION.into(), rv, start: format!("{}\0", token.after) };
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&wire).unwrap_or_default())
}

/// # Errors
/// Upstream's words for what is wrong with the token.
pub(super) fn decode(text: &str) -> Result<Token, String> {
    let invalid = |why: String| format!("continue key is not valid: {why}");
    let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|e| {
        let at = match e {
            base64::DecodeError::InvalidByte(at, _) => at,
            _ => text.len(),
        };
        invalid(format!("illegal base64 data at input byte {at}"))
    })?;
    let wire: Wire = serde_json::from_slice(&bytes).map_err(|e| invalid(e.to_string()))?;
    if wire.v != VERSION {
        return Err(invalid(format!("server does not recognize this encoded version {}", wire.v)));
    }
    if wire.rv == 0 {
        return Err(invalid(format!("incorrect encoded start resourceVersion (version {VERSION})")));
    }
    if wire.start.is_empty() {
        return Err(invalid(format!("encoded start key empty (version {VERSION})")));
    }
    // A key that leaves its prefix would list another resource.
    let escapes = wire.start.split('/').any(|part| matches!(part, "." | ".."));
    if escapes || wire.start.starts_with('/') {
        return Err(invalid(wire.start));
    }
    let after = wire.start.strip_suffix('\0').unwrap_or(&wire.start).to_owned();
    Ok(Token { revision: u64::try_from(wire.rv).ok().map(Revision), after })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_and_strange_ones_are_refused() {
        let token = Token { revision: Some(Revision(7)), after: "ns/a".into() };
        assert_eq!(decode(&encode(&token)), Ok(token));
        let now = Token { revision: None, after: "a".into() };
        assert_eq!(decode(&encode(&now)), Ok(now));
        for (text, why) in [
            ("!!!", "continue key is not valid: illegal base64 data at input byte 0"),
            ("eyJhIjoxfQ", "continue key is not valid: server does not recognize this encoded version "),
        ] {
            assert_eq!(decode(text), Err(why.to_owned()));
        }
        let escaping = URL_SAFE_NO_PAD.encode(r#"{"v":"meta.k8s.io/v1","rv":3,"start":"../secrets/x"}"#);
        assert!(decode(&escaping).is_err());
    }

    #[test]
    fn tampered_tokens_are_refused_or_stay_below_their_prefix() {
        let wires =
            [r#"{"v":"meta.k8s.io/v1","rv":3,"start":"ns/a\u0000"}"#, r#"{"v":"meta.k8s.io/v1","rv":-1,"start":"b"}"#];
        let tokens: &[&[u8]] = &[b"..", b"/", b"\0", b"-1", b"18446744073709551616", b"null", b"\xff", b"%2e%2e"];
        testing::fuzz::fuzz(&testing::fuzz::texts(20, &wires), tokens, |bytes, ()| {
            let Ok(token) = decode(&URL_SAFE_NO_PAD.encode(bytes)) else { return false };
            assert!(!token.after.starts_with('/') && !token.after.split('/').any(|part| part == ".."), "{token:?}");
            assert_eq!(decode(&encode(&token)), Ok(token));
            true
        });
        testing::fuzz::fuzz(
            &testing::fuzz::texts(20, &wires.map(|wire| URL_SAFE_NO_PAD.encode(wire)).each_ref().map(String::as_str)),
            tokens,
            |bytes, ()| {
                let text = String::from_utf8_lossy(bytes);
                match decode(&text) {
                    Ok(_) => true,
                    Err(why) => {
                        assert!(why.starts_with("continue key is not valid: "), "{why}");
                        false
                    }
                }
            },
        );
    }
}
