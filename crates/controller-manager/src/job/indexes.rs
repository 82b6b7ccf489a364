//! Sets of completion indexes in the text form of a Job's status: `1,3-5,7`.

use std::{collections::BTreeSet, fmt::Write};

/// What cannot be read, or is not below `completions`, is left out.
pub(super) fn parse(text: &str, completions: i32) -> BTreeSet<i32> {
    let mut indexes = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<i32>(), last.trim().parse::<i32>()) {
            indexes.extend(first.max(0)..=last.min(completions - 1));
        }
    }
    indexes
}

/// Two neighbours stay apart, three and more become a range.
pub(super) fn format(indexes: &BTreeSet<i32>) -> String {
    let mut text = String::new();
    let mut indexes = indexes.iter().copied().peekable();
    while let Some(first) = indexes.next() {
        let mut last = first;
        while indexes.peek() == Some(&(last + 1)) {
            last += 1;
            indexes.next();
        }
        if !text.is_empty() {
            text.push(',');
        }
        // Writing to a String cannot fail.
        let _ = match last - first {
            0 => write!(text, "{first}"),
            1 => write!(text, "{first},{last}"),
            _ => write!(text, "{first}-{last}"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_come_and_go() {
        for (text, normal) in
            [("", ""), ("3", "3"), ("1,2", "1,2"), ("1-3", "1-3"), ("0,2,3,4,9-99", "0,2-4,9"), ("x,5-4,7", "7")]
        {
            assert_eq!(format(&parse(text, 10)), normal, "{text}");
        }
    }
}
