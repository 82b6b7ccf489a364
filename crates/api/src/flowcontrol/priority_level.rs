//! PriorityLevelConfiguration.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::conditions;
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::{Checks, int, same, text};

pub(crate) struct PriorityLevelStrategy;

const MAX_QUEUES: i64 = 10_000_000;
/// The hash that deals a hand has so many bits.
const HASH_BITS: i64 = 60;
const DEFAULT_SHARES: i64 = 30;

/// Bits that it takes to deal a hand from a deck; a little more than needed, as upstream estimates it.
fn entropy_bits(deck: i64, hand: i64) -> i64 {
    #[expect(clippy::cast_precision_loss, reason = "decks and hands have fewer than 2^26 cards")]
    let bits = (deck as f64).log2() * hand as f64;
    #[expect(clippy::cast_possible_truncation, reason = "a float that is too large becomes the largest integer")]
    let whole = bits.ceil() as i64;
    whole
}

fn validate_queuing(queuing: &Cursor<'_>, errs: &mut FieldErrors) {
    let (limit, queues, hand) = (queuing.field("queueLengthLimit"), queuing.field("queues"), queuing.field("handSize"));
    if int(&limit) <= 0 {
        errs.invalid_int(&limit, "must be positive");
    }
    let (deck, dealt) = (int(&queues), int(&hand));
    if deck <= 0 {
        errs.invalid_int(&queues, "must be positive");
    } else if deck > MAX_QUEUES {
        errs.invalid(&queues, format!("must not be greater than {MAX_QUEUES}"));
    }
    if dealt <= 0 {
        errs.invalid_int(&hand, "must be positive");
    } else if dealt > deck {
        errs.invalid(&hand, format!("should not be greater than queues ({deck})"));
    } else if entropy_bits(deck, dealt) > HASH_BITS {
        errs.invalid(
            &hand,
            format!(
                "required entropy bits of deckSize {deck} and handSize {dealt} should not be greater than {HASH_BITS}"
            ),
        );
    }
}

fn validate_shares(part: &Cursor<'_>, errs: &mut FieldErrors) {
    let (shares, lendable) = (part.field("nominalConcurrencyShares"), part.field("lendablePercent"));
    if int(&shares) < 0 {
        errs.invalid(&shares, "must be a non-negative integer");
    }
    if !(0..=100).contains(&int(&lendable)) {
        errs.invalid(&lendable, "must be between 0 and 100, inclusive");
    }
    let borrowing = part.field("borrowingLimitPercent");
    if int(&borrowing) < 0 {
        errs.invalid(&borrowing, "if specified, must be a non-negative integer");
    }
}

fn validate_limited(limited: &Cursor<'_>, errs: &mut FieldErrors) {
    validate_shares(limited, errs);
    let response = limited.field("limitResponse");
    let queuing = response.field("queuing");
    match response.str_at(&["type"]) {
        "Reject" => {
            if !queuing.is_absent() {
                errs.forbidden(&queuing.path, "must be nil if limited.limitResponse.type is not Limited");
            }
        }
        "Queue" => {
            if queuing.is_absent() {
                errs.required(&queuing.path, "must not be empty if limited.limitResponse.type is Limited");
            } else {
                validate_queuing(&queuing, errs);
            }
        }
        _ => {
            errs.one_of(&response.field("type"), &["Queue", "Reject"]);
        }
    }
}

/// The levels that every server has, whose specs are fixed.
fn mandatory(name: &str) -> Option<Value> {
    match name {
        "exempt" => Some(Value::from([("type", "Exempt".into())])),
        "catch-all" => {
            let limited = Value::from([
                ("nominalConcurrencyShares", 5.into()),
                ("lendablePercent", 0.into()),
                ("limitResponse", Value::from([("type", "Reject".into())])),
            ]);
            Some(Value::from([("type", "Limited".into()), ("limited", limited)]))
        }
        _ => None,
    }
}

impl Strategy for PriorityLevelStrategy {
    fn default(&self, level: &mut Value) {
        let spec = level.entry(&["spec"]);
        match spec.str_at(&["type"]) {
            "Exempt" => {
                spec.set_default(&["exempt", "nominalConcurrencyShares"], 0);
                spec.set_default(&["exempt", "lendablePercent"], 0);
            }
            "Limited" if !spec["limited"].is_null() => {
                spec.set_default(&["limited", "nominalConcurrencyShares"], DEFAULT_SHARES);
                spec.set_default(&["limited", "lendablePercent"], 0);
            }
            _ => {}
        }
        if !spec.at(&["limited", "limitResponse", "queuing"]).is_null() {
            let queuing = spec.entry(&["limited", "limitResponse", "queuing"]);
            for (field, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
                if int(&queuing[field]) == 0 {
                    queuing.set(&[field], value);
                }
            }
        }
    }

    fn prepare_for_create(&self, level: &mut Value) {
        level.set(&["status"], Value::object());
    }

    fn validate(&self, level: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let root = Cursor::root(level);
        let spec = root.field("spec");
        let (kind, limited, exempt) = (spec.field("type"), spec.field("limited"), spec.field("exempt"));
        if (level.name() == "exempt") != (text(&kind) == "Exempt") {
            errs.invalid_text(&kind, "must be 'Exempt' if and only if `name` is 'exempt'");
        }
        match text(&kind) {
            "Exempt" => {
                if !limited.is_absent() {
                    errs.forbidden(&limited.path, "must be nil if the type is not Limited");
                }
                if !exempt.is_absent() {
                    validate_shares(&exempt, &mut errs);
                    if !exempt["borrowingLimitPercent"].is_null() {
                        errs.forbidden(
                            &exempt.path.child("borrowingLimitPercent"),
                            "must be nil if the type is Exempt",
                        );
                    }
                }
            }
            "Limited" => {
                if !exempt.is_absent() {
                    errs.forbidden(&exempt.path, "must be nil if the type is Limited");
                }
                if limited.is_absent() {
                    errs.required(&limited.path, "must not be empty when type is Limited");
                } else {
                    validate_limited(&limited, &mut errs);
                }
            }
            _ => {
                errs.one_of(&kind, &["Exempt", "Limited"]);
            }
        }
        if let Some(fixed) = mandatory(level.name()) {
            let mut given = spec.value.clone();
            // How much the exempt level nominally has may be set.
            if level.name() == "exempt" {
                given.remove(&["exempt"]);
            }
            if !same(&given, &fixed) {
                let except = if level.name() == "exempt" { " except the 'spec.exempt' field" } else { "" };
                let why = format!("spec of '{}'{except} must equal the fixed value", level.name());
                errs.invalid_struct(&spec, why);
            }
        }
        conditions(&root.fields(&["status", "conditions"]), &mut errs);
        errs
    }

    fn validate_status_update(&self, level: &Value, _: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        conditions(&Cursor::root(level).fields(&["status", "conditions"]), &mut errs);
        errs
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn row(&self, level: &Value, now: Now) -> Option<Vec<Cell>> {
        let spec = &level["spec"];
        let none = || Value::from("<none>");
        let number = |v: &Value| v.as_i64().map_or_else(none, Value::from);
        let part = if spec["limited"].is_null() { &spec["exempt"] } else { &spec["limited"] };
        let queuing = spec.at(&["limited", "limitResponse", "queuing"]);
        Some(vec![
            level.name().into(),
            spec.str_at(&["type"]).into(),
            number(&part["nominalConcurrencyShares"]),
            number(&queuing["queues"]),
            number(&queuing["handSize"]),
            number(&queuing["queueLengthLimit"]),
            table_cells::created(level, now),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    #[test]
    fn a_hand_is_dealt_from_the_queues() {
        assert_eq!(entropy_bits(64, 8), 48);
        let level = serde_json::from_str(
            r#"{"metadata":{"name":"a"},"spec":{"type":"Limited","limited":{"nominalConcurrencyShares":-1,"limitResponse":{"type":"Queue","queuing":{"queues":2,"handSize":3,"queueLengthLimit":1}}}}}"#,
        )
        .unwrap();
        assert_findings(
            &PriorityLevelStrategy.validate(&level),
            &[
                "spec.limited.nominalConcurrencyShares: Invalid value: -1: must be a non-negative integer",
                "spec.limited.limitResponse.queuing.handSize: Invalid value: 3: should not be greater than queues (2)",
            ],
        );
    }
}
