//! What expressions of admission see: `object`, `oldObject`, `request`, `params`, `namespaceObject`, `authorizer`, `variables`.

use std::sync::Arc;

use super::{AUTHORIZER, CompileError, Declarations, DeclaredType, ObjectType, Program, RESOURCE_CHECK, Type};

/// The names, for objects of that type; `params` is one of them only where a policy has a kind of parameter.
#[must_use]
pub fn declarations(object: &Type, params: Option<&Type>) -> Declarations {
    let mut names = Declarations::new()
        .with("object", object)
        .with("oldObject", object)
        .with("request", request())
        .with("namespaceObject", namespace())
        .with("authorizer", DeclaredType::Opaque(AUTHORIZER))
        .with("authorizer.requestResource", DeclaredType::Opaque(RESOURCE_CHECK));
    if let Some(params) = params {
        names.declare("params", params);
    }
    names
}

/// Declares `variables`: each sees those before it. Tells what is wrong with which of them; one that is wrong may be of any
/// type.
pub fn declare_variables<'v>(
    names: &mut Declarations,
    variables: impl Iterator<Item = (&'v str, &'v str)>,
) -> Vec<(usize, CompileError)> {
    let (mut fields, mut wrong) = (Vec::new(), Vec::new());
    names.declare("variables", DeclaredType::Record(Arc::default()));
    for (i, (name, expression)) in variables.enumerate() {
        let of = match Program::checked(expression, names) {
            Ok((_, of)) => of,
            Err(error) => {
                wrong.push((i, error));
                DeclaredType::Dyn
            }
        };
        fields.push((name.to_owned(), of));
        names.declare("variables", DeclaredType::Record(fields.clone().into()));
    }
    wrong
}

fn object(fields: impl IntoIterator<Item = (&'static str, Type)>) -> Type {
    Type::Object(ObjectType::exact(fields.into_iter().map(|(name, of)| (name.into(), of))).into())
}

fn texts(fields: &[&'static str]) -> Vec<(&'static str, Type)> {
    fields.iter().map(|field| (*field, Type::String)).collect()
}

fn list_of_text() -> Type {
    Type::List(Type::String.into())
}

fn map_of_text() -> Type {
    Type::Map(Type::String.into())
}

fn request() -> Type {
    let kind = || object(texts(&["group", "version", "kind"]));
    let resource = || object(texts(&["group", "version", "resource"]));
    let mut user = texts(&["username", "uid"]);
    user.extend([("groups", list_of_text()), ("extra", Type::Map(list_of_text().into()))]);
    let mut fields = texts(&["subResource", "requestSubResource", "name", "namespace", "operation"]);
    fields.extend([
        ("kind", kind()),
        ("requestKind", kind()),
        ("resource", resource()),
        ("requestResource", resource()),
        ("userInfo", object(user)),
        ("dryRun", Type::Bool),
        ("options", Type::Dyn),
    ]);
    object(fields)
}

fn namespace() -> Type {
    let mut metadata = texts(&["name", "generateName", "namespace", "UID", "resourceVersion"]);
    metadata.extend([
        ("labels", map_of_text()),
        ("annotations", map_of_text()),
        ("creationTimestamp", Type::Timestamp),
        ("deletionTimestamp", Type::Timestamp),
        ("deletionGracePeriodSeconds", Type::Int),
        ("generation", Type::Int),
        ("finalizers", list_of_text()),
    ]);
    let (spec, status) = (object([("finalizers", list_of_text())]), object(texts(&["phase"])));
    object([("metadata", object(metadata)), ("spec", spec), ("status", status)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_of_the_type_that_they_make() {
        let mut names = declarations(&Type::Dyn, None);
        let variables = [("n", "size(object.list)"), ("wrong", "params.x"), ("m", "variables.n + 1")];
        let wrong = declare_variables(&mut names, variables.into_iter());
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].1.0.contains("undeclared reference to 'params'"), "{wrong:?}");
        let of = |source: &str| Program::checked(source, &names).map(|(_, of)| of);
        assert_eq!(of("variables.m > 3 && request.userInfo.username == 'a'"), Ok(DeclaredType::Bool));
        assert_eq!(of("variables.wrong"), Ok(DeclaredType::Dyn));
        assert_eq!(of("request.namespace + namespaceObject.metadata.namespace"), Ok(DeclaredType::String));
        assert_eq!(of("authorizer.requestResource.check('get').allowed()"), Ok(DeclaredType::Bool));
        assert!(of("variables.other").unwrap_err().0.contains("undefined field 'other'"));
        assert!(of("request.object").is_err());
    }
}
