//! Writes what the correlator decides, one event after the other.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::{core::v1::Event, events::v1::Event as SeriesEvent};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use tokio::sync::mpsc;

use super::{
    Dialect, Note, Source,
    correlator::{Correlator, Decision},
};
use crate::error::ApiError;

/// How often an event is tried while the server cannot be reached, and the pause in between.
const TRIES: u32 = 12;
const PAUSE: Duration = Duration::from_secs(10);

pub(super) struct Sink {
    client: Client,
    dialect: Dialect,
    correlator: Correlator,
}

impl Sink {
    pub(super) fn new(client: Client, dialect: Dialect, source: Source) -> Self {
        Self { client, dialect, correlator: Correlator::new(dialect, source) }
    }

    pub(super) async fn run(mut self, mut notes: mpsc::Receiver<Note>) {
        while let Some(note) = notes.recv().await {
            let decision = self.correlator.decide(note, Timestamp::now());
            self.write(decision).await;
        }
    }

    async fn write(&self, decision: Decision) {
        for attempt in 1..=TRIES {
            let outcome = match &decision {
                Decision::Drop => return,
                Decision::Create(event) => self.create(event).await,
                Decision::Patch { event, patch } => match self.patch(event, patch).await {
                    // Events live for an hour; the one that counted may be gone.
                    Err(err) if err.is_not_found() => self.create(event).await,
                    outcome => outcome,
                },
            };
            match outcome {
                Ok(()) => return,
                Err(err) if err.status().is_some() => {
                    if !err.is_already_exists() && !err.is_namespace_terminating() {
                        tracing::warn!(%err, "the server refused an event");
                    }
                    return;
                }
                Err(err) if attempt == TRIES => tracing::warn!(%err, "an event could not be written"),
                Err(_) => {
                    let share = if attempt == 1 { rand::random_range(0.0..1.0) } else { 1.0 };
                    tokio::time::sleep(PAUSE.mul_f64(share)).await;
                }
            }
        }
    }

    async fn create(&self, event: &Event) -> Result<(), kube::Error> {
        let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
        let params = PostParams::default();
        match self.dialect {
            Dialect::Core => {
                let api = Api::<Event>::namespaced(self.client.clone(), namespace);
                api.create(&params, event).await.map(|_| ())
            }
            Dialect::Series => {
                let api = Api::<SeriesEvent>::namespaced(self.client.clone(), namespace);
                api.create(&params, &series_event_of(event)).await.map(|_| ())
            }
        }
    }

    async fn patch(&self, event: &Event, patch: &serde_json::Value) -> Result<(), kube::Error> {
        let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
        let name = event.metadata.name.as_deref().unwrap_or_default();
        let (params, patch) = (PatchParams::default(), Patch::Strategic(patch));
        match self.dialect {
            Dialect::Core => {
                let api = Api::<Event>::namespaced(self.client.clone(), namespace);
                api.patch(name, &params, &patch).await.map(|_| ())
            }
            Dialect::Series => {
                let api = Api::<SeriesEvent>::namespaced(self.client.clone(), namespace);
                api.patch(name, &params, &patch).await.map(|_| ())
            }
        }
    }
}

/// The same event under the names of events.k8s.io/v1.
fn series_event_of(event: &Event) -> SeriesEvent {
    SeriesEvent {
        metadata: event.metadata.clone(),
        action: event.action.clone(),
        event_time: event.event_time.clone(),
        note: event.message.clone(),
        reason: event.reason.clone(),
        regarding: Some(event.involved_object.clone()),
        related: event.related.clone(),
        reporting_controller: event.reporting_component.clone(),
        reporting_instance: event.reporting_instance.clone(),
        series: event.series.as_ref().map(|series| k8s_openapi::api::events::v1::EventSeries {
            count: series.count.unwrap_or_default(),
            last_observed_time: series
                .last_observed_time
                .clone()
                .unwrap_or(k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(Timestamp::UNIX_EPOCH)),
        }),
        type_: event.type_.clone(),
        ..SeriesEvent::default()
    }
}
