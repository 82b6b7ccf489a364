//! The text form of metrics, as kubelets write it. Pure.

use std::collections::BTreeMap;

/// One value: name, labels, value, and its time in milliseconds since 1970 where one is given.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
    pub(crate) at: Option<i64>,
}

/// All values; lines that cannot be read are left out.
pub(crate) fn parse(text: &str) -> Vec<Line> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Line> {
    let name_end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(name_end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => parse_labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    let mut words = rest.split_whitespace();
    let value = words.next()?.parse().ok()?;
    Some(Line { name: name.to_owned(), labels, value, at: words.next().and_then(|at| at.parse().ok()) })
}

/// `a="b",c="d"} …`: values may hold escaped quotes, backslashes and line ends.
fn parse_labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut letters = after.char_indices();
        let end = loop {
            match letters.next()? {
                (_, '\\') => value.push(match letters.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (at, '"') => break at,
                (_, letter) => value.push(letter),
            }
        };
        labels.insert(name.to_owned(), value);
        rest = &after[end + 1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_with_labels_and_times() {
        let text = "# HELP a b\n# TYPE a gauge\na 2\nb{x=\"1\",y=\"q\\\"\\\\,}\\n\"} 1.5e3 1700\nnonsense\nc{x=\"1\n";
        let lines = parse(text);
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].name.as_str(), lines[0].value, lines[0].at), ("a", 2.0, None));
        assert_eq!((lines[1].value, lines[1].at), (1500.0, Some(1700)));
        assert_eq!(lines[1].labels["y"], "q\"\\,}\n");
    }
}
