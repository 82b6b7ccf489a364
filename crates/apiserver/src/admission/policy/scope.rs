//! What the expressions of a policy see, and how they are evaluated.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use apimachinery::Value;

use super::authorizer::{Asker, Asking};
use super::compiled::Compiled;
use crate::admission::Request;
use crate::admission::dynamic::review::{object_value, request_value};
use crate::authz::Authorizer;
use crate::lister::Lister;
use expressions::{Activation, Budget, CALL_LIMIT, Error, OBJECT_LIMIT, Opaque, Val};

/// The values behind the names: one for all policies that look at a request.
pub(in crate::admission) struct Facts {
    pub object: Value,
    pub old_object: Value,
    request: Value,
    namespace: Value,
    asker: Asker,
}

impl Facts {
    pub(in crate::admission) fn new(
        request: &Request,
        lister: &dyn Lister,
        authorizers: &Arc<[Arc<dyn Authorizer>]>,
    ) -> Self {
        let namespace = if request.namespace.is_empty() || request.is_core("namespaces") {
            Value::Null
        } else {
            lister.get("namespaces", "", &request.namespace).map_or(Value::Null, |namespace| shown(&namespace))
        };
        Facts {
            object: object_value(request, &request.object),
            old_object: object_value(request, &request.old_object),
            request: request_value(request),
            namespace,
            asker: Asker::new(authorizers, request),
        }
    }
}

/// A namespace as policies see it: without what is nobody's business.
fn shown(namespace: &Value) -> Value {
    let mut shown = namespace.clone();
    for field in ["managedFields", "ownerReferences", "selfLink"] {
        shown.remove(&["metadata", field]);
    }
    shown
}

/// One policy over one request with one parameter. It has a budget for all of its expressions.
pub(in crate::admission) struct Scope<'a> {
    names: Activation<'a>,
    spent: Rc<RefCell<Budget>>,
}

impl<'a> Scope<'a> {
    pub(in crate::admission) fn new(
        facts: &'a Facts,
        params: Option<&'a Value>,
        variables: &'a [(String, Compiled)],
    ) -> Self {
        let mut names = Activation::new();
        names.bind("object", Val::json(&facts.object));
        names.bind("oldObject", Val::json(&facts.old_object));
        names.bind("request", Val::json(&facts.request));
        names.bind("params", params.map_or(Val::Null, Val::json));
        names.bind("namespaceObject", Val::json(&facts.namespace));
        names.bind("authorizer", Val::Opaque(Rc::new(Asking::new(facts.asker.clone()))));
        let spent = Rc::new(RefCell::new(Budget::new(OBJECT_LIMIT)));
        let base = names.clone();
        let variables = Rc::new_cyclic(|me| Variables {
            me: Weak::clone(me),
            of: variables,
            base,
            known: RefCell::new(vec![None; variables.len()]),
            spent: Rc::clone(&spent),
        });
        names.bind("variables", Val::Opaque(variables));
        Scope { names, spent }
    }

    /// # Errors
    /// Why there is no value, in upstream's words.
    pub(in crate::admission) fn evaluate(&self, expression: &'a Compiled) -> Result<Val<'a>, Failure> {
        let program = match &expression.program {
            Ok(program) => program,
            Err(error) => return Err(Failure::Error(format!("compilation error: compilation failed: {error}"))),
        };
        let mut budget = Budget::new(CALL_LIMIT.min(self.spent.borrow().left()));
        let value = program.evaluate(&self.names, &mut budget);
        let within = self.spent.borrow_mut().spend(budget.spent());
        match (value, within) {
            (Ok(value), Ok(())) => Ok(value),
            (Err(Error::Failed(why)), _) => {
                Err(Failure::Error(format!("expression '{}' resulted in error: {why}", expression.source)))
            }
            (Err(Error::Budget), _) | (_, Err(_)) => Err(Failure::Budget),
        }
    }

    /// Do all match conditions hold? A condition that fails decides only if no other is false.
    ///
    /// # Errors
    /// The failures, where none is false.
    pub(in crate::admission) fn all_hold(&self, conditions: &'a [(String, Compiled)]) -> Result<bool, String> {
        let mut failures = Vec::new();
        for (_, condition) in conditions {
            match self.evaluate(condition) {
                Ok(Val::Bool(true)) => {}
                Ok(_) => return Ok(false),
                Err(failure) => failures.push(failure.to_string()),
            }
        }
        match failures.as_slice() {
            [] => Ok(true),
            [one] => Err(one.clone()),
            many => Err(format!("[{}]", many.join(", "))),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(in crate::admission) enum Failure {
    #[error("{0}")]
    Error(String),
    #[error("validation failed due to running out of cost budget, no further validation rules will be run")]
    Budget,
}

/// `variables`: each is evaluated when it is first asked for, and then known.
struct Variables<'a> {
    me: Weak<Variables<'a>>,
    of: &'a [(String, Compiled)],
    base: Activation<'a>,
    known: RefCell<Vec<Option<Result<Val<'a>, Error>>>>,
    spent: Rc<RefCell<Budget>>,
}

impl<'a> Opaque<'a> for Variables<'a> {
    fn type_name(&self) -> &'static str {
        "kubernetes.variables"
    }

    fn field(&self, name: &str) -> Option<Result<Val<'a>, Error>> {
        let at = self.of.iter().position(|(n, _)| n == name)?;
        if let Some(known) = self.known.borrow()[at].clone() {
            return Some(known);
        }
        // Until it is known, a variable that asks for itself gets this.
        let circular = Error::new(format!("composited variable \"{name}\" refers to itself"));
        self.known.borrow_mut()[at] = Some(Err(circular));
        let value = self.evaluate(name, &self.of[at].1);
        self.known.borrow_mut()[at] = Some(value.clone());
        Some(value)
    }
}

impl<'a> Variables<'a> {
    fn evaluate(&self, name: &str, expression: &'a Compiled) -> Result<Val<'a>, Error> {
        let program = expression
            .program
            .as_ref()
            .map_err(|error| Error::new(format!("composited variable \"{name}\" fails to compile: {error}")))?;
        let mut names = self.base.clone();
        if let Some(me) = self.me.upgrade() {
            names.bind("variables", Val::Opaque(me));
        }
        let mut budget = Budget::new(CALL_LIMIT.min(self.spent.borrow().left()));
        let value = program.evaluate(&names, &mut budget);
        self.spent.borrow_mut().spend(budget.spent())?;
        match value {
            Err(Error::Failed(why)) => {
                Err(Error::new(format!("composited variable \"{name}\" fails to evaluate: {why}")))
            }
            other => other,
        }
    }
}
