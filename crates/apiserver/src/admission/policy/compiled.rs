//! Policies with their expressions compiled.

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::Value;
use parking_lot::Mutex;

use crate::lister::Lister;
use expressions::Program;

/// An expression, or why it is none.
pub(in crate::admission) struct Compiled {
    /// As written, without the space around it.
    pub source: String,
    pub program: Result<Program, String>,
}

/// A policy, ready to be evaluated.
pub(in crate::admission) struct Policy {
    pub object: Arc<Value>,
    pub conditions: Vec<(String, Compiled)>,
    pub variables: Vec<(String, Compiled)>,
    /// Of a validating policy.
    pub validations: Vec<Validation>,
    pub annotations: Vec<(String, Compiled)>,
    /// Of a mutating policy.
    pub mutations: Vec<Mutation>,
}

pub(in crate::admission) struct Validation {
    pub expression: Compiled,
    pub message: String,
    pub message_expression: Option<Compiled>,
    pub reason: String,
}

pub(in crate::admission) enum Mutation {
    Apply(Compiled),
    Patch(Compiled),
}

/// A policy with the bindings that put it in force.
pub(in crate::admission) struct Hook {
    pub policy: Arc<Policy>,
    pub bindings: Vec<Arc<Value>>,
}

/// The hooks of one kind of policy, as they were when the caches last changed.
pub(in crate::admission) struct Hooks {
    lister: Arc<dyn Lister>,
    policies: &'static str,
    bindings: &'static str,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    generations: Option<(u64, u64)>,
    hooks: Arc<Vec<Hook>>,
    /// By name; a policy that did not change is not compiled again.
    compiled: HashMap<String, Arc<Policy>>,
}

impl Compiled {
    pub(in crate::admission) fn new(source: &str) -> Self {
        let source = source.trim().to_owned();
        let program = Program::compile(&source).map_err(|error| error.to_string());
        Compiled { source, program }
    }
}

impl Policy {
    fn new(object: Arc<Value>) -> Self {
        let spec = &object["spec"];
        let named = |list: &str, name: &str, expression: &str| {
            let entries = spec[list].items().iter();
            entries.map(|e| (e.str_at(&[name]).to_owned(), Compiled::new(e.str_at(&[expression])))).collect::<Vec<_>>()
        };
        let validations = spec["validations"].items().iter().map(|v| Validation {
            expression: Compiled::new(v.str_at(&["expression"])),
            message: v.str_at(&["message"]).trim().to_owned(),
            message_expression: v["messageExpression"].as_str().filter(|e| !e.is_empty()).map(Compiled::new),
            reason: v.str_at(&["reason"]).to_owned(),
        });
        let mutations = spec["mutations"].items().iter().filter_map(|m| match m.str_at(&["patchType"]) {
            "ApplyConfiguration" => {
                Some(Mutation::Apply(Compiled::new(m.str_at(&["applyConfiguration", "expression"]))))
            }
            "JSONPatch" => Some(Mutation::Patch(Compiled::new(m.str_at(&["jsonPatch", "expression"])))),
            _ => None,
        });
        Policy {
            conditions: named("matchConditions", "name", "expression"),
            variables: named("variables", "name", "expression"),
            validations: validations.collect(),
            annotations: named("auditAnnotations", "key", "valueExpression"),
            mutations: mutations.collect(),
            object: Arc::clone(&object),
        }
    }

    pub(super) fn name(&self) -> &str {
        self.object.name()
    }

    pub(super) fn spec(&self) -> &Value {
        &self.object["spec"]
    }

    /// A failure of an expression lets the request pass.
    pub(super) fn ignores_failures(&self) -> bool {
        self.spec().str_at(&["failurePolicy"]) == "Ignore"
    }
}

impl Hooks {
    pub(in crate::admission) fn new(lister: Arc<dyn Lister>, policies: &'static str, bindings: &'static str) -> Self {
        Hooks { lister, policies, bindings, state: Mutex::default() }
    }

    /// The policies that have bindings, by name.
    pub(in crate::admission) fn current(&self) -> Arc<Vec<Hook>> {
        let now = (self.lister.generation(self.policies), self.lister.generation(self.bindings));
        let mut state = self.state.lock();
        if state.generations != Some(now) {
            self.refresh(&mut state);
            state.generations = Some(now);
        }
        Arc::clone(&state.hooks)
    }

    fn refresh(&self, state: &mut State) {
        let bindings = self.lister.list(self.bindings, "");
        let mut compiled = HashMap::new();
        let mut hooks = Vec::new();
        for object in self.lister.list(self.policies, "") {
            let name = object.name().to_owned();
            let of_policy = bindings.iter().filter(|b| b.str_at(&["spec", "policyName"]) == name);
            let of_policy: Vec<_> = of_policy.cloned().collect();
            if of_policy.is_empty() {
                continue;
            }
            let same = state.compiled.get(&name).filter(|p| p.object["spec"] == object["spec"]);
            let policy = same.map_or_else(|| Arc::new(Policy::new(object)), Arc::clone);
            compiled.insert(name, Arc::clone(&policy));
            hooks.push(Hook { policy, bindings: of_policy });
        }
        state.compiled = compiled;
        state.hooks = Arc::new(hooks);
    }
}
