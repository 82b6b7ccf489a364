//! Types that are not known yet, and what they turn out to be.

use std::fmt;
use std::sync::Arc;

use compact_str::CompactString;

use super::ObjectType;
use super::declarations::Overload;

/// The type of an expression, as far as it can be told before there is a value.
#[derive(Clone, Debug, PartialEq)]
pub enum DeclaredType {
    /// Of any type: known when there is a value.
    Dyn,
    /// Of what is wrong: fits everywhere.
    Error,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    /// Of a type itself.
    Type,
    List(Arc<DeclaredType>),
    Map(Arc<DeclaredType>, Arc<DeclaredType>),
    Optional(Arc<DeclaredType>),
    /// Of the libraries, by its full name.
    Opaque(&'static str),
    /// What a schema describes.
    Object(Arc<ObjectType>),
    /// Fields whose types come from expressions (`variables`).
    Record(Arc<Vec<(String, DeclaredType)>>),
    /// An object that an expression makes.
    Made(CompactString),
    /// Any type, the same wherever a declaration names it.
    Parameter(u8),
    /// To be found out.
    Unknown(usize),
}

impl fmt::Display for DeclaredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DeclaredType::Dyn | DeclaredType::Unknown(_) | DeclaredType::Parameter(_) => "dyn",
            DeclaredType::Error => "!error!",
            DeclaredType::Null => "null",
            DeclaredType::Bool => "bool",
            DeclaredType::Int => "int",
            DeclaredType::Uint => "uint",
            DeclaredType::Double => "double",
            DeclaredType::String => "string",
            DeclaredType::Bytes => "bytes",
            DeclaredType::Timestamp => "timestamp",
            DeclaredType::Duration => "duration",
            DeclaredType::Type => "type",
            DeclaredType::Object(_) | DeclaredType::Record(_) => "object",
            DeclaredType::Opaque(name) => name,
            DeclaredType::Made(name) => name,
            DeclaredType::List(item) => return write!(f, "list({item})"),
            DeclaredType::Map(key, value) => return write!(f, "map({key}, {value})"),
            DeclaredType::Optional(of) => return write!(f, "optional_type({of})"),
        })
    }
}

/// What has been found out about unknown types.
#[derive(Default)]
pub(super) struct Unifier {
    found: Vec<Option<DeclaredType>>,
}

impl Unifier {
    pub(super) fn unknown(&mut self) -> DeclaredType {
        self.found.push(None);
        DeclaredType::Unknown(self.found.len() - 1)
    }

    /// The arguments and the result of a function, with unknown types for its parameters.
    pub(super) fn instance(&mut self, overload: &Overload) -> (Vec<DeclaredType>, DeclaredType) {
        let first = self.found.len();
        self.found.resize(first + overload.parameters, None);
        let fresh = |of: &DeclaredType| {
            map(of, &|part| match part {
                DeclaredType::Parameter(nth) => Some(DeclaredType::Unknown(first + usize::from(*nth))),
                _ => None,
            })
        };
        (overload.arguments.iter().map(fresh).collect(), fresh(&overload.result))
    }

    /// With what is known by now. What is still unknown may be of any type, if it is asked for `finally`.
    pub(super) fn resolved(&self, of: &DeclaredType, finally: bool) -> DeclaredType {
        map(of, &|part| match part {
            DeclaredType::Unknown(nth) => match self.found.get(*nth).and_then(Option::as_ref) {
                Some(known) => Some(self.resolved(known, finally)),
                None => finally.then_some(DeclaredType::Dyn),
            },
            _ => None,
        })
    }

    /// Can that be put where `wanted` is asked for? What this tells about unknown types is kept only if it can.
    pub(super) fn fits(&mut self, of: &DeclaredType, wanted: &DeclaredType) -> bool {
        self.all_fit(std::slice::from_ref(of), std::slice::from_ref(wanted))
    }

    pub(super) fn all_fit(&mut self, of: &[DeclaredType], wanted: &[DeclaredType]) -> bool {
        let before = self.found.clone();
        let fit = self.each_assignable(of, wanted);
        if !fit {
            self.found = before;
        }
        fit
    }

    fn each_assignable(&mut self, of: &[DeclaredType], wanted: &[DeclaredType]) -> bool {
        of.len() == wanted.len() && of.iter().zip(wanted).all(|(of, wanted)| self.assignable(of, wanted))
    }

    fn assignable(&mut self, of: &DeclaredType, wanted: &DeclaredType) -> bool {
        use DeclaredType as T;
        if let T::Unknown(nth) = wanted {
            let known = self.found[*nth].is_some();
            if self.substitutes(of, *nth) {
                return true;
            }
            if known {
                return false;
            }
        }
        if let T::Unknown(nth) = of {
            return self.substitutes(wanted, *nth);
        }
        match (of, wanted) {
            (T::Dyn | T::Error, _) | (_, T::Dyn | T::Error) => true,
            (T::Null, other) | (other, T::Null) => matches!(
                other,
                T::Null
                    | T::Timestamp
                    | T::Duration
                    | T::Optional(_)
                    | T::Opaque(_)
                    | T::Object(_)
                    | T::Record(_)
                    | T::Made(_)
            ),
            (T::List(a), T::List(b)) | (T::Optional(a), T::Optional(b)) => self.assignable(a, b),
            (T::Map(key, value), T::Map(other_key, other_value)) => {
                self.assignable(key, other_key) && self.assignable(value, other_value)
            }
            (a, b) => a == b,
        }
    }

    /// May an unknown type be that one? Then it is, unless more was known of it.
    fn substitutes(&mut self, of: &DeclaredType, nth: usize) -> bool {
        if *of == DeclaredType::Unknown(nth) {
            return true;
        }
        match self.found[nth].clone() {
            Some(known) if known == *of => true,
            Some(known) => {
                if !self.assignable(of, &known) {
                    return false;
                }
                let general = self.more_general(of.clone(), known);
                if !self.mentions(&general, nth) {
                    self.found[nth] = Some(general);
                }
                true
            }
            None if self.mentions(of, nth) => false,
            None => {
                self.found[nth] = Some(of.clone());
                true
            }
        }
    }

    fn mentions(&self, of: &DeclaredType, nth: usize) -> bool {
        match of {
            DeclaredType::Unknown(other) if *other == nth => true,
            DeclaredType::Unknown(other) => self.found[*other].as_ref().is_some_and(|known| self.mentions(known, nth)),
            DeclaredType::List(item) | DeclaredType::Optional(item) => self.mentions(item, nth),
            DeclaredType::Map(key, value) => self.mentions(key, nth) || self.mentions(value, nth),
            _ => false,
        }
    }

    /// Of two that fit together.
    pub(super) fn more_general(&self, a: DeclaredType, b: DeclaredType) -> DeclaredType {
        if !at_least_as_general(&a, &b) && at_least_as_general(&b, &a) { b } else { a }
    }
}

fn at_least_as_general(a: &DeclaredType, b: &DeclaredType) -> bool {
    use DeclaredType as T;
    match (a, b) {
        (T::Dyn | T::Unknown(_), _) => true,
        (_, T::Dyn | T::Unknown(_)) => false,
        (T::List(a), T::List(b)) | (T::Optional(a), T::Optional(b)) => at_least_as_general(a, b),
        (T::Map(key, value), T::Map(other_key, other_value)) => {
            at_least_as_general(key, other_key) && at_least_as_general(value, other_value)
        }
        // What may be null is more than null.
        (T::Null, other) => *other == T::Null,
        (_, T::Null) => true,
        (a, b) => a == b,
    }
}

/// The type with some of its parts exchanged.
fn map(of: &DeclaredType, exchange: &impl Fn(&DeclaredType) -> Option<DeclaredType>) -> DeclaredType {
    if let Some(other) = exchange(of) {
        return other;
    }
    match of {
        DeclaredType::List(item) => DeclaredType::List(map(item, exchange).into()),
        DeclaredType::Optional(inner) => DeclaredType::Optional(map(inner, exchange).into()),
        DeclaredType::Map(key, value) => DeclaredType::Map(map(key, exchange).into(), map(value, exchange).into()),
        other => other.clone(),
    }
}
