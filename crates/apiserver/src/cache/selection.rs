//! Which objects of a resource a request means.

use std::sync::Arc;

use apimachinery::selector::{FieldSelector, LabelSelector};
use compact_str::CompactString;
use storage::Key;

use super::object::{Object, Shape};

/// Namespace, name, labels and fields together. The default selects everything.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// `None`: all namespaces.
    pub namespace: Option<CompactString>,
    pub name: Option<CompactString>,
    pub labels: Option<Arc<LabelSelector>>,
    fields: Vec<FieldTerm>,
}

/// A term of a field selector, resolved to where the cache keeps the value.
#[derive(Clone, Debug)]
struct FieldTerm {
    field: Field,
    value: CompactString,
    equal: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Namespace,
    /// Index of a selectable field.
    Of(usize),
}

/// A field that the resource does not let clients select by.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownField {
    #[error("{0:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")]
    OfPlainKind(String),
    #[error("field label not supported: {0}")]
    OfKind(String),
}

impl Selection {
    #[must_use]
    pub fn new(namespace: Option<&str>, name: Option<&str>, labels: LabelSelector) -> Self {
        Selection {
            namespace: namespace.map(CompactString::from),
            name: name.map(CompactString::from),
            labels: (!labels.is_empty()).then(|| Arc::new(labels)),
            fields: Vec::new(),
        }
    }

    /// Adds what a field selector demands.
    ///
    /// # Errors
    /// When the resource does not know a field of it.
    pub fn with_fields(self, shape: &Shape, selector: &FieldSelector) -> Result<Self, UnknownField> {
        self.with_some_fields(shape, selector, &|_| true)
    }

    /// As [`Self::with_fields`], where not every field of the shape may be named.
    ///
    /// # Errors
    /// When the resource does not know a field of it.
    pub fn with_some_fields(
        mut self,
        shape: &Shape,
        selector: &FieldSelector,
        allowed: &dyn Fn(&str) -> bool,
    ) -> Result<Self, UnknownField> {
        let has_fields = shape.fields.iter().any(|(label, _)| allowed(label));
        for term in &selector.terms {
            let field = match term.field.as_str() {
                "metadata.name" => Field::Name,
                "metadata.namespace" => Field::Namespace,
                other => match shape.fields.iter().position(|(label, _)| *label == other && allowed(label)) {
                    Some(index) => Field::Of(index),
                    None if !has_fields => return Err(UnknownField::OfPlainKind(other.to_owned())),
                    None => return Err(UnknownField::OfKind(other.to_owned())),
                },
            };
            if field == Field::Name && term.equal && self.name.is_none() {
                self.name = Some(term.value.as_str().into());
            }
            self.fields.push(FieldTerm { field, value: term.value.as_str().into(), equal: term.equal });
        }
        Ok(self)
    }

    #[must_use]
    pub fn matches(&self, shape: &Shape, object: &Object) -> bool {
        let (namespace, name) = shape.names(&object.key);
        self.namespace.as_ref().is_none_or(|wanted| wanted == namespace || !shape.namespaced)
            && self.name.as_ref().is_none_or(|wanted| wanted == name)
            && self.fields.iter().all(|term| {
                let value = match term.field {
                    Field::Name => name,
                    Field::Namespace => namespace,
                    Field::Of(index) => object.field(index),
                };
                (value == term.value) == term.equal
            })
            && self.labels.as_ref().is_none_or(|labels| labels.matches(|key| object.label(key)))
    }

    /// More than a namespace is asked for.
    #[must_use]
    pub fn has_predicate(&self) -> bool {
        self.name.is_some() || self.labels.as_ref().is_some_and(|l| !l.is_empty()) || !self.fields.is_empty()
    }

    /// The one key that can match, when namespace and name are given.
    #[must_use]
    pub fn only_key(&self, shape: &Shape) -> Option<Key> {
        let name = self.name.as_deref()?;
        match &self.namespace {
            Some(namespace) => Some(shape.key(namespace, name)),
            None if !shape.namespaced => Some(shape.key("", name)),
            None => None,
        }
    }

    /// A selectable field that must have one value.
    pub(super) fn required_field(&self) -> Option<(usize, &str)> {
        self.fields.iter().find_map(|term| match term.field {
            Field::Of(index) if term.equal => Some((index, term.value.as_str())),
            _ => None,
        })
    }

    /// A label that must have one value.
    pub(super) fn required_label(&self) -> Option<(&str, &str)> {
        self.labels.as_ref()?.required()
    }
}
