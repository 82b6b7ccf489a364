//! Lists of indexes as jobs write them: `0-3,5`.

/// The intervals of a list, in ascending order; upstream's message for what is no such list.
fn intervals(list: &str, completions: i64) -> impl Iterator<Item = Result<(i64, i64), String>> {
    list.split(',').map(move |part| interval(part, completions))
}

fn interval(part: &str, completions: i64) -> Result<(i64, i64), String> {
    let ends: Vec<&str> = part.split('-').collect();
    if ends.len() > 2 {
        return Err(format!(
            "the fragment {part:?} violates the requirement that an index interval can have at most two parts separated by \
             '-'"
        ));
    }
    let index = |text: &str| match text.parse::<i64>() {
        Err(_) => Err(format!("cannot convert string to integer for index: {text:?}")),
        Ok(i) if i >= completions => Err(format!("too large index: {text:?}")),
        Ok(i) => Ok(i),
    };
    let first = index(ends[0])?;
    let Some(last) = ends.get(1) else { return Ok((first, first)) };
    let last = index(last)?;
    if first >= last {
        return Err(format!("non-increasing order, previous: {first}, current: {last}"));
    }
    Ok((first, last))
}

/// How many indexes a list has.
pub(super) fn count(list: &str, completions: i64) -> Result<i64, String> {
    if list.is_empty() {
        return Ok(0);
    }
    let (mut total, mut previous) = (0, None);
    for part in intervals(list, completions) {
        let (first, last) = part?;
        if let Some(previous) = previous.filter(|p| *p >= first) {
            return Err(format!("non-increasing order, previous: {previous}, current: {first}"));
        }
        total += last - first + 1;
        previous = Some(last);
    }
    Ok(total)
}

/// The first index that is in both lists. Parts that are no good are the business of another check.
pub(super) fn overlap(a: &str, b: &str, completions: i64) -> Option<i64> {
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let others: Vec<(i64, i64)> = intervals(b, completions).flatten().collect();
    intervals(a, completions).flatten().find_map(|(first, last)| {
        others.iter().find(|(from, to)| first <= *to && *from <= last).map(|(from, _)| first.max(*from))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_counted() {
        assert_eq!(count("0-1,3", 5), Ok(3));
        assert_eq!(count("", 5), Ok(0));
        assert_eq!(count("3,1", 5), Err("non-increasing order, previous: 3, current: 1".to_owned()));
        assert_eq!(count("7", 5), Err("too large index: \"7\"".to_owned()));
        assert_eq!(count("a", 5), Err("cannot convert string to integer for index: \"a\"".to_owned()));
        assert_eq!(overlap("0-2", "2-3", 5), Some(2));
        assert_eq!(overlap("0-1", "2", 5), None);
    }
}
