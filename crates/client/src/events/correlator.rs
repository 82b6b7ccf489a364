//! Decides, without I/O, what becomes of each event: written anew, counted on one that was written before, or dropped
//! because its source floods.
//!
//! The rules are those of upstream's recorder: more than ten different messages of one reason on one object in ten
//! minutes are combined into one event; equal events count up; a source may write 25 events about an object at once and
//! then one in five minutes.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSeries, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
};
use kube::core::ObjectMeta;
use serde_json::{Value, json};

use super::{Dialect, EventType, Note, Source};

const SIMILAR_MESSAGES: usize = 10;
const SIMILAR_WITHIN: Duration = Duration::from_secs(600);
const BURST: f64 = 25.0;
const PER_SECOND: f64 = 1.0 / 300.0;
/// A series that was silent for this long is over.
const SERIES_WITHIN: Duration = Duration::from_secs(360);
const REMEMBERED: usize = 4096;
const MESSAGE_BYTES: usize = 1024;
const COMBINED: &str = "(combined from similar events): ";

/// What becomes of an event. The whole event comes along with a patch for the case that what it patches is gone.
#[derive(Debug)]
pub(super) enum Decision {
    Drop,
    Create(Event),
    Patch { event: Event, patch: Value },
}

pub(super) struct Correlator {
    dialect: Dialect,
    source: Source,
    similar: Recent<SimilarKey, Similar>,
    written: Recent<WrittenKey, Written>,
    buckets: Recent<ObjectId, Bucket>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ObjectId {
    api_version: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    uid: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct SimilarKey {
    object: ObjectId,
    event_type: EventType,
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct WrittenKey {
    similar: SimilarKey,
    /// The message, or nothing for the combined event of the key.
    message: Option<String>,
    field_path: Option<String>,
    /// Only in a series.
    action: String,
    related: Option<ObjectId>,
}

struct Similar {
    messages: HashSet<String>,
    last: Timestamp,
}

struct Written {
    name: String,
    first: Timestamp,
    last: Timestamp,
    count: i32,
}

struct Bucket {
    tokens: f64,
    filled: Timestamp,
}

impl ObjectId {
    fn of(reference: &ObjectReference) -> Self {
        Self {
            api_version: reference.api_version.clone(),
            kind: reference.kind.clone(),
            namespace: reference.namespace.clone(),
            name: reference.name.clone(),
            uid: reference.uid.clone(),
        }
    }
}

impl Correlator {
    pub(super) fn new(dialect: Dialect, source: Source) -> Self {
        Self { dialect, source, similar: Recent::new(), written: Recent::new(), buckets: Recent::new() }
    }

    pub(super) fn decide(&mut self, note: Note, now: Timestamp) -> Decision {
        match self.dialect {
            Dialect::Core => self.decide_counted(note, now),
            Dialect::Series => self.decide_series(note, now),
        }
    }

    fn decide_counted(&mut self, mut note: Note, now: Timestamp) -> Decision {
        let object = ObjectId::of(&note.regarding);
        let similar = SimilarKey { object: object.clone(), event_type: note.event_type, reason: note.reason.clone() };
        let combined = self.is_one_of_many(&similar, &note.message, now);
        if combined {
            note.message.insert_str(0, COMBINED);
        }
        let key = WrittenKey {
            similar,
            message: (!combined).then(|| note.message.clone()),
            field_path: note.regarding.field_path.clone(),
            action: String::new(),
            related: None,
        };
        let mut event = self.event_of(note, now);
        let decision = match self.written.get(&key) {
            Some(known) => {
                known.count = known.count.saturating_add(1);
                known.last = now;
                event.metadata.name = Some(known.name.clone());
                event.count = Some(known.count);
                event.first_timestamp = Some(Time(known.first));
                let patch =
                    json!({ "count": event.count, "lastTimestamp": event.last_timestamp, "message": event.message });
                Decision::Patch { event, patch }
            }
            None => {
                let name = event.metadata.name.clone().unwrap_or_default();
                self.written.put(key, Written { name, first: now, last: now, count: 1 });
                Decision::Create(event)
            }
        };
        if self.floods(object, now) { Decision::Drop } else { decision }
    }

    fn decide_series(&mut self, note: Note, now: Timestamp) -> Decision {
        let key = WrittenKey {
            similar: SimilarKey {
                object: ObjectId::of(&note.regarding),
                event_type: note.event_type,
                reason: note.reason.clone(),
            },
            message: None,
            field_path: note.regarding.field_path.clone(),
            action: note.action.clone(),
            related: note.related.as_ref().map(ObjectId::of),
        };
        let mut event = self.event_of(note, now);
        match self.written.get(&key) {
            Some(known) if since(known.last, now) < SERIES_WITHIN => {
                known.count = known.count.saturating_add(1);
                known.last = now;
                event.metadata.name = Some(known.name.clone());
                event.event_time = Some(MicroTime(known.first));
                event.series = Some(EventSeries { count: Some(known.count), last_observed_time: Some(MicroTime(now)) });
                let patch = json!({ "series": event.series });
                Decision::Patch { event, patch }
            }
            _ => {
                let name = event.metadata.name.clone().unwrap_or_default();
                self.written.put(key, Written { name, first: now, last: now, count: 1 });
                Decision::Create(event)
            }
        }
    }

    fn event_of(&self, note: Note, now: Timestamp) -> Event {
        let object_name = note.regarding.name.clone().unwrap_or_default();
        let namespace = note.regarding.namespace.clone().filter(|ns| !ns.is_empty()).unwrap_or("default".into());
        let source = &self.source;
        let mut message = note.message;
        cut(&mut message, MESSAGE_BYTES);
        let base = Event {
            metadata: ObjectMeta {
                name: Some(format!("{object_name}.{:x}", now.as_nanosecond())),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: note.regarding,
            related: note.related,
            type_: Some(note.event_type.as_str().to_owned()),
            reason: Some(note.reason),
            message: Some(message),
            reporting_component: Some(source.component.to_string()),
            ..Event::default()
        };
        match self.dialect {
            Dialect::Core => Event {
                source: Some(EventSource {
                    component: Some(source.component.to_string()),
                    host: (!source.host.is_empty()).then(|| source.host.to_string()),
                }),
                reporting_instance: Some(source.host.to_string()),
                first_timestamp: Some(Time(now)),
                last_timestamp: Some(Time(now)),
                count: Some(1),
                ..base
            },
            Dialect::Series => Event {
                reporting_instance: Some(format!("{}-{}", source.component, source.host)),
                action: Some(note.action),
                event_time: Some(MicroTime(now)),
                ..base
            },
        }
    }

    /// Whether the message is the eleventh or a later one of its kind in ten minutes.
    fn is_one_of_many(&mut self, key: &SimilarKey, message: &str, now: Timestamp) -> bool {
        if self.similar.get(key).is_none_or(|similar| since(similar.last, now) > SIMILAR_WITHIN) {
            self.similar.put(key.clone(), Similar { messages: HashSet::new(), last: now });
        }
        let Some(similar) = self.similar.get(key) else { return false };
        similar.last = now;
        similar.messages.insert(message.to_owned());
        if similar.messages.len() < SIMILAR_MESSAGES {
            return false;
        }
        // Any one is forgotten, so that what is kept stays bounded.
        if let Some(any) = similar.messages.iter().next().cloned() {
            similar.messages.remove(&any);
        }
        true
    }

    fn floods(&mut self, object: ObjectId, now: Timestamp) -> bool {
        let Some(bucket) = self.buckets.get(&object) else {
            self.buckets.put(object, Bucket { tokens: BURST - 1.0, filled: now });
            return false;
        };
        bucket.tokens = (bucket.tokens + since(bucket.filled, now).as_secs_f64() * PER_SECOND).min(BURST);
        bucket.filled = now;
        if bucket.tokens < 1.0 {
            return true;
        }
        bucket.tokens -= 1.0;
        false
    }
}

fn since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

/// Cuts at a character boundary.
fn cut(text: &mut String, bytes: usize) {
    if text.len() > bytes {
        let end = (0..=bytes).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        text.truncate(end);
    }
}

/// A map that forgets the entries that were not used for longest.
struct Recent<K, V> {
    entries: HashMap<K, (V, u64)>,
    clock: u64,
}

impl<K: Eq + Hash + Clone, V> Recent<K, V> {
    fn new() -> Self {
        Self { entries: HashMap::new(), clock: 0 }
    }

    fn get(&mut self, key: &K) -> Option<&mut V> {
        self.clock += 1;
        let (value, used) = self.entries.get_mut(key)?;
        *used = self.clock;
        Some(value)
    }

    fn put(&mut self, key: K, value: V) {
        self.clock += 1;
        self.entries.insert(key, (value, self.clock));
        if self.entries.len() > REMEMBERED {
            // The older half goes at once, which makes this cheap on average.
            let mut used: Vec<u64> = self.entries.values().map(|(_, used)| *used).collect();
            let (_, middle, _) = used.select_nth_unstable(REMEMBERED / 2);
            let middle = *middle;
            self.entries.retain(|_, (_, used)| *used >= middle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(reason: &str, message: &str) -> Note {
        Note {
            event_type: EventType::Normal,
            regarding: ObjectReference {
                kind: Some("Pod".into()),
                namespace: Some("ns".into()),
                name: Some("web".into()),
                ..ObjectReference::default()
            },
            related: None,
            reason: reason.into(),
            action: "Binding".into(),
            message: message.into(),
        }
    }

    fn correlator(dialect: Dialect) -> Correlator {
        Correlator::new(dialect, Source { component: "kubelet".into(), host: "n1".into() })
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn show(decision: &Decision) -> String {
        match decision {
            Decision::Drop => "drop".into(),
            Decision::Create(event) => format!("create {}", event.message.as_deref().unwrap_or_default()),
            Decision::Patch { event, patch } => {
                format!("patch {} {}", event.metadata.name.as_deref().unwrap_or_default(), patch)
            }
        }
    }

    #[test]
    fn equal_events_count_up_on_the_first() {
        let mut correlator = correlator(Dialect::Core);
        let Decision::Create(first) = correlator.decide(note("Pulled", "image a"), at(0)) else {
            panic!("not created")
        };
        assert_eq!(first.source.as_ref().and_then(|s| s.host.as_deref()), Some("n1"));
        assert_eq!(first.metadata.name.as_deref(), Some("web.17979cfe362a0000"));
        let second = correlator.decide(note("Pulled", "image a"), at(5));
        assert_eq!(
            show(&second),
            r#"patch web.17979cfe362a0000 {"count":2,"lastTimestamp":"2023-11-14T22:13:25Z","message":"image a"}"#
        );
        assert_eq!(show(&correlator.decide(note("Pulled", "image b"), at(6))), "create image b");
    }

    #[test]
    fn the_tenth_different_message_is_combined() {
        let mut correlator = correlator(Dialect::Core);
        for n in 0..9 {
            assert_eq!(show(&correlator.decide(note("Failed", &format!("m{n}")), at(n))), format!("create m{n}"));
        }
        assert_eq!(show(&correlator.decide(note("Failed", "m9"), at(9))), format!("create {COMBINED}m9"));
        assert!(show(&correlator.decide(note("Failed", "m10"), at(10))).contains(r#""count":2"#));
        assert_eq!(show(&correlator.decide(note("Failed", "m11"), at(1000))), "create m11");
    }

    #[test]
    fn a_flooding_source_is_held_back_to_one_in_five_minutes() {
        let mut correlator = correlator(Dialect::Core);
        let mut kept = 0;
        for n in 0..100 {
            if !matches!(correlator.decide(note("Failed", "again"), at(n)), Decision::Drop) {
                kept += 1;
            }
        }
        assert_eq!(kept, 25);
        assert!(matches!(correlator.decide(note("Failed", "again"), at(500)), Decision::Patch { .. }));
    }

    #[test]
    fn a_series_counts_whatever_the_note_says() {
        let mut correlator = correlator(Dialect::Series);
        let Decision::Create(first) = correlator.decide(note("FailedScheduling", "0/3 nodes"), at(0)) else {
            panic!("not created")
        };
        assert_eq!((first.series, first.count, first.source), (None, None, None));
        assert_eq!(first.reporting_instance.as_deref(), Some("kubelet-n1"));
        let second = correlator.decide(note("FailedScheduling", "0/4 nodes"), at(5));
        assert!(
            show(&second).contains(r#"{"series":{"count":2,"lastObservedTime":"2023-11-14T22:13:25.000000Z"}}"#),
            "{}",
            show(&second)
        );
        assert_eq!(show(&correlator.decide(note("FailedScheduling", "0/5 nodes"), at(1000))), "create 0/5 nodes");
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let mut text = "é".repeat(600);
        cut(&mut text, MESSAGE_BYTES);
        assert_eq!(text.len(), 1024);
        let mut text = format!("x{}", "é".repeat(600));
        cut(&mut text, MESSAGE_BYTES);
        assert_eq!(text.len(), 1023);
    }

    #[test]
    fn what_was_not_used_for_longest_is_forgotten_first() {
        let mut recent = Recent::new();
        for n in 0..REMEMBERED {
            recent.put(n, ());
        }
        assert!(recent.get(&0).is_some());
        recent.put(REMEMBERED, ());
        assert!(recent.get(&0).is_some() && recent.get(&1).is_none() && recent.get(&REMEMBERED).is_some());
    }
}
