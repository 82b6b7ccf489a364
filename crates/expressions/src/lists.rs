//! Lists and sets.

use std::cmp::Ordering;

use super::Error;
use super::value::{Val, compare, equal};

pub(super) fn method<'a>(name: &str, target: &Val<'a>, args: &[Val<'a>]) -> Result<Val<'a>, Error> {
    let items = target.items().ok_or_else(Error::no_overload)?;
    match (name, args) {
        ("isSorted", []) => {
            let mut sorted = true;
            for pair in items.windows(2) {
                sorted &= compare(&pair[0], &pair[1]).ok_or_else(Error::no_overload)? != Ordering::Greater;
            }
            Ok(Val::Bool(sorted))
        }
        ("sum", []) => {
            let mut items = items.into_iter();
            let Some(first) = items.next() else { return Ok(Val::Int(0)) };
            items.try_fold(first, |sum, item| {
                super::operators::apply("_+_", &[sum, item]).unwrap_or_else(|| Err(Error::no_overload()))
            })
        }
        ("min" | "max", []) => extreme(name, items),
        ("indexOf", [v]) => Ok(place(items.iter().position(|i| equal(i, v)))),
        ("lastIndexOf", [v]) => Ok(place(items.iter().rposition(|i| equal(i, v)))),
        ("join", []) => join(&items, ""),
        ("join", [Val::String(by)]) => join(&items, by),
        ("slice", [Val::Int(from), Val::Int(to)]) => {
            let at = |i: &i64| usize::try_from(*i).ok().filter(|i| *i <= items.len());
            match (at(from), at(to)) {
                (Some(from), Some(to)) if from <= to => Ok(Val::list(items[from..to].to_vec())),
                _ => Err(Error::new(format!("cannot slice({from}, {to}), list is length {}", items.len()))),
            }
        }
        ("flatten", []) => {
            Ok(Val::list(items.into_iter().flat_map(|i| i.items().unwrap_or_else(|| vec![i])).collect()))
        }
        ("reverse", []) => Ok(Val::list(items.into_iter().rev().collect())),
        ("distinct", []) => {
            let mut kept: Vec<Val<'a>> = Vec::new();
            for item in items {
                if !kept.iter().any(|k| equal(k, &item)) {
                    kept.push(item);
                }
            }
            Ok(Val::list(kept))
        }
        ("sort", []) => {
            let mut items = items;
            if items.windows(2).any(|w| compare(&w[0], &w[1]).is_none()) {
                return Err(Error::no_overload());
            }
            items.sort_by(|a, b| compare(a, b).unwrap_or(Ordering::Equal));
            Ok(Val::list(items))
        }
        ("first" | "last", []) => {
            let item = if name == "first" { items.first() } else { items.last() };
            Ok(item.cloned().map_or(Val::Optional(None), Val::some))
        }
        _ => Err(Error::no_overload()),
    }
}

fn place<'a>(found: Option<usize>) -> Val<'a> {
    Val::Int(found.and_then(|i| i64::try_from(i).ok()).unwrap_or(-1))
}

fn extreme<'a>(name: &str, items: Vec<Val<'a>>) -> Result<Val<'a>, Error> {
    let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
    let mut items = items.into_iter();
    let mut best = items.next().ok_or_else(|| Error::new(format!("{name} called on empty list")))?;
    for item in items {
        if compare(&item, &best).ok_or_else(Error::no_overload)? == wanted {
            best = item;
        }
    }
    Ok(best)
}

fn join<'a>(items: &[Val<'a>], by: &str) -> Result<Val<'a>, Error> {
    let texts: Vec<&str> = items.iter().map(|i| i.as_str().ok_or_else(Error::no_overload)).collect::<Result<_, _>>()?;
    Ok(Val::string(texts.join(by)))
}

/// `sets.contains`, `sets.intersects`, `sets.equivalent`.
pub(super) fn sets<'a>(name: &str, a: &Val<'a>, b: &Val<'a>) -> Result<Val<'a>, Error> {
    let (Some(a), Some(b)) = (a.items(), b.items()) else { return Err(Error::no_overload()) };
    let within = |x: &[Val<'_>], y: &[Val<'_>]| x.iter().all(|i| y.iter().any(|j| equal(i, j)));
    Ok(Val::Bool(match name {
        "sets.contains" => within(&b, &a),
        "sets.intersects" => a.iter().any(|i| b.iter().any(|j| equal(i, j))),
        _ => within(&a, &b) && within(&b, &a),
    }))
}
