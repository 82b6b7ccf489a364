//! Words of a label selector.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Word,
    In,
    NotIn,
    Comma,
    Open,
    Close,
    Not,
    Equals,
    DoubleEquals,
    NotEquals,
    Greater,
    Less,
    /// A run of special characters that is no operator.
    Unknown,
    End,
}

/// Splits a selector into tokens, each with its text.
pub(super) fn lex(text: &str) -> Vec<(Token, String)> {
    let special = |c: char| matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<');
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, len) = if special(first) {
            operator(rest, special)
        } else {
            let len = rest.find(|c: char| special(c) || c.is_whitespace()).unwrap_or(rest.len());
            let token = match &rest[..len] {
                "in" => Token::In,
                "notin" => Token::NotIn,
                _ => Token::Word,
            };
            (token, len)
        };
        tokens.push((token, rest[..len].to_owned()));
        rest = rest[len..].trim_start();
    }
    tokens
}

/// The longest operator at the start; characters that only look like the beginning of one are unknown.
fn operator(rest: &str, special: impl Fn(char) -> bool) -> (Token, usize) {
    for (text, token) in [
        ("==", Token::DoubleEquals),
        ("!=", Token::NotEquals),
        ("=", Token::Equals),
        ("!", Token::Not),
        ("(", Token::Open),
        (")", Token::Close),
        (",", Token::Comma),
        (">", Token::Greater),
        ("<", Token::Less),
    ] {
        if rest.starts_with(text) {
            return (token, text.len());
        }
    }
    (Token::Unknown, rest.find(|c| !special(c)).unwrap_or(rest.len()))
}
