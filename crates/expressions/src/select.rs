//! Which fields an expression looks at.

use ::cel::common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue, operators as op};

/// Does it select that field of that variable, anywhere (`claims.email`, `claims.?email`)?
pub(super) fn selects(expr: &IdedExpr, variable: &str, field: &str) -> bool {
    let within = |inner: &IdedExpr| selects(inner, variable, field);
    let is_variable = |of: &IdedExpr| matches!(&of.expr, Expr::Ident(name) if name == variable);
    let is_field = |key: &IdedExpr| matches!(&key.expr, Expr::Literal(LiteralValue::String(s)) if s.inner() == field);
    match &expr.expr {
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => false,
        Expr::Select(select) => (select.field == field && is_variable(&select.operand)) || within(&select.operand),
        Expr::Call(call) => {
            let optional = matches!((call.func_name.as_str(), call.args.as_slice()),
                (op::OPT_SELECT, [of, key]) if is_variable(of) && is_field(key));
            optional || call.args.iter().any(within) || call.target.as_deref().is_some_and(within)
        }
        Expr::List(list) => list.elements.iter().any(within),
        Expr::Map(map) => map.entries.iter().any(|entry| in_entry(&entry.expr, &within)),
        Expr::Struct(made) => made.entries.iter().any(|entry| in_entry(&entry.expr, &within)),
        Expr::Comprehension(loops) => {
            let parts = [&loops.iter_range, &loops.accu_init, &loops.loop_cond, &loops.loop_step, &loops.result];
            parts.into_iter().any(within)
        }
    }
}

fn in_entry(entry: &EntryExpr, within: &impl Fn(&IdedExpr) -> bool) -> bool {
    match entry {
        EntryExpr::StructField(field) => within(&field.value),
        EntryExpr::MapEntry(entry) => within(&entry.key) || within(&entry.value),
    }
}

#[cfg(test)]
mod tests {
    use crate::Program;

    #[test]
    fn fields_are_found_wherever_they_are_selected() {
        let selects = |source: &str| Program::compile(source).unwrap().selects("claims", "email");
        for source in [
            "claims.email",
            "'x:' + claims.email",
            "claims.?email.orValue('')",
            "has(claims.email) ? 'a' : 'b'",
            "[claims.email][0]",
            "{'a': claims.email}.a",
            "['a'].map(x, x + claims.email)[0]",
            "claims.email.lowerAscii()",
        ] {
            assert!(selects(source), "{source}");
        }
        for source in ["claims.sub", "claims.email_verified", "claims.x.email", "user.email", "'claims.email'"] {
            assert!(!selects(source), "{source}");
        }
    }
}
