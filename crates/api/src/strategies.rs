//! Which kind has rules of its own: one explicit list.

use crate::strategy::{Plain, Strategy};

/// Group, version (`*`: all), resource, and where its rules stand.
const STRATEGIES: &[(&str, &str, &str, &dyn Strategy)] = &[];

pub(crate) fn of(group: &str, version: &str, resource: &str) -> &'static dyn Strategy {
    let row = STRATEGIES.iter().find(|(g, v, r, _)| *g == group && (*v == "*" || *v == version) && *r == resource);
    row.map_or(&Plain, |(_, _, _, strategy)| *strategy)
}
