//! Create.

use apimachinery::Value;
use apimachinery::status::Status;
use rand::RngExt;
use storage::Ttl;

use super::{Encoded, FieldManager, Registry, Stored, Write, meta, status};
use crate::admission::{Operation, Request};
use crate::attributes::UserInfo;

/// What generated names end with: no vowels, so that no words appear, and no characters that look alike.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX: usize = 5;
/// The longest a generated name may be (a DNS label).
const MAX_GENERATED: usize = 63;
/// How often a generated name that is taken is generated again.
const ATTEMPTS: usize = 8;
/// Resources whose creator may say their status: a kubelet registers its node with one.
const KEEP_STATUS: &[&str] = &["nodes", "servicecidrs"];

impl Registry {
    /// Creates an object (in the served version, defaults filled in).
    ///
    /// # Errors
    /// What admission, validation or the store has against it.
    pub async fn create(&self, write: &mut Write, object: Value) -> Result<Stored, Status> {
        for _ in 1..ATTEMPTS {
            let Some(named) = with_generated_name(&object) else { break };
            match self.create_named(write, named).await {
                Err(taken) if taken.reason == "AlreadyExists" => {}
                done => return done,
            }
        }
        let object = with_generated_name(&object).unwrap_or(object);
        self.create_named(write, object).await
    }

    async fn create_named(&self, write: &mut Write, mut object: Value) -> Result<Stored, Status> {
        write.name = object.name().into();
        if !write.applies {
            FieldManager::of(write).take_changes(None, &mut object);
        }
        let mut request = write.admission_request(Operation::Create, object, Value::Null);
        let admitted = self.admission.admit(&mut request).await;
        write.warnings.append(&mut request.warnings);
        admitted?;
        let stored = self.store_new(write, &mut request).await;
        self.admission.finish(&request, stored.is_ok()).await;
        stored
    }

    async fn store_new(&self, write: &mut Write, request: &mut Request) -> Result<Stored, Status> {
        let def = write.resource.def;
        let object = &mut request.object;
        def.strategy.default(object);
        meta::fill_system_fields(object, def);
        if def.subresource("status").is_some() && !KEEP_STATUS.contains(&def.gvr.resource.as_str()) {
            object.remove(&["status"]);
        }
        def.strategy.prepare_for_create(object);
        name_requester(object, &write.user);
        def.strategy.stamp(object, None, &meta::timestamp());
        let mut errs = meta::validate(object, def);
        errs.extend(meta::validate_finalizer_names(object, def));
        errs.extend(def.strategy.validate(object));
        errs.extend(super::cel::check(def, object, None, errs.is_empty()));
        if !errs.is_empty() {
            return Err(Status::invalid(&def.storage, object.name(), &errs));
        }
        write.warnings.extend(def.strategy.warnings(object, None));
        def.strategy.canonicalize(object);
        let validated = self.admission.validate(request).await;
        write.warnings.append(&mut request.warnings);
        validated?;

        if !request.object.meta("resourceVersion").is_empty_value() {
            return Err(status::plain("resourceVersion should not be set on objects to be created"));
        }
        let key = write.key();
        let followed = self.admission.follows(request);
        let object = if followed { request.object.clone() } else { std::mem::take(&mut request.object) };
        let Encoded { body, value, form } = self.encode(&write.resource, object).await?;
        if write.options.dry_run {
            return match self.read(&write.resource, &key).await? {
                Some(_) => Err(Status::already_exists(&def.gvr, &write.name)),
                None => Ok(Stored { body, revision: None, form }),
            };
        }
        match self.storage.create(&key, value, self.ttl(write)).await {
            Ok(revision) => Ok(Stored { body, revision: Some(revision), form }),
            Err(error) => Err(status::of(&error, &def.gvr, &key)),
        }
    }

    /// Events are forgotten after a while; nothing else is.
    pub(super) fn ttl(&self, write: &Write) -> Option<Ttl> {
        (write.resource.def.storage_prefix == "events").then_some(Ttl(self.event_ttl))
    }
}

/// A request for a certificate carries who made it, whatever it says itself: signers trust that.
fn name_requester(object: &mut Value, user: &UserInfo) {
    if object.kind() != "CertificateSigningRequest" || !object.api_version().starts_with("certificates.k8s.io/") {
        return;
    }
    let spec = object.entry(&["spec"]);
    for field in ["username", "uid", "groups", "extra"] {
        spec.remove(&[field]);
    }
    for (field, value) in user.value().entries() {
        spec.set(&[field], value.clone());
    }
}

/// The object under a name that was chosen for it, if it only says how its name begins.
fn with_generated_name(object: &Value) -> Option<Value> {
    let prefix = object.str_at(&["metadata", "generateName"]);
    if prefix.is_empty() || !object.name().is_empty() {
        return None;
    }
    let keep = prefix.char_indices().map(|(i, c)| i + c.len_utf8()).take_while(|end| *end <= MAX_GENERATED - SUFFIX);
    let prefix = &prefix[..keep.last().unwrap_or(0)];
    let mut random = rand::rng();
    let suffix: String = (0..SUFFIX).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect();
    let name = format!("{prefix}{suffix}");
    let mut object = object.clone();
    object.set(&["metadata", "name"], name);
    Some(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_are_cut_to_a_label() {
        let mut object = Value::object();
        object.set(&["metadata", "generateName"], "x".repeat(70));
        let named = with_generated_name(&object).unwrap();
        assert_eq!(named.name().len(), 63);
        assert_eq!(with_generated_name(&named), None, "a name is not replaced");
    }
}
