//! What types and fields are for, in upstream's words (`data/descriptions.txt`).

use std::sync::OnceLock;

const TEXT: &str = include_str!("../../data/descriptions.txt");

/// Where the description of the type of every kind is taken from that has none of its own for these fields.
const TYPICAL: &str = "io.k8s.api.core.v1.Pod";

/// The lines about one type: its own, then its fields'.
#[derive(Clone, Copy, Default)]
pub(super) struct Described(&'static str);

impl Described {
    pub(super) fn own(self) -> Option<String> {
        text_of(self.0.lines().next()?)
    }

    pub(super) fn field(self, name: &str) -> Option<String> {
        let line = self.0.lines().skip(1).find(|line| {
            line.strip_prefix('\t').and_then(|line| line.strip_prefix(name)).is_some_and(|rest| rest.starts_with(' '))
        })?;
        text_of(line)
    }
}

/// Behind the name comes a string of JSON.
fn text_of(line: &str) -> Option<String> {
    let (_, text) = line.split_once(' ')?;
    serde_json::from_str(text).ok().filter(|text: &String| !text.is_empty())
}

/// What there is to say about a type, by its name in OpenAPI.
pub(super) fn of(name: &str) -> Described {
    static TYPES: OnceLock<Vec<(&str, Described)>> = OnceLock::new();
    let types = TYPES.get_or_init(|| {
        let mut types = Vec::new();
        let mut rest = TEXT;
        while let Some((name, _)) = rest.split_once(' ') {
            // The next line that is not about a field begins the next type.
            let end = rest.match_indices('\n').find(|(i, _)| !rest[i + 1..].starts_with('\t'));
            let (block, after) = rest.split_at(end.map_or(rest.len(), |(i, _)| i + 1));
            types.push((name, Described(block)));
            rest = after;
        }
        types
    });
    types.binary_search_by_key(&name, |(name, _)| name).map(|i| types[i].1).unwrap_or_default()
}

/// `kind` and `apiVersion` mean the same in every kind.
pub(super) fn of_type_meta(field: &str) -> Option<String> {
    of(TYPICAL).field(field)
}
