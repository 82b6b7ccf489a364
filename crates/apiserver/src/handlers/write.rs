//! Create, update, patch, delete, deletecollection.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::status::Status;
use http::{Response, StatusCode, header};

use super::decode::{self, Decoded};
use super::read::selection;
use super::reply::{Coded, Listing, Reply};
use super::{Call, Target, negotiation, respond};
use crate::body::{Body, RequestBody};
use crate::registry::{
    DeleteOptions, Deleted, ListOptions, Part, Preconditions, Stored, Updated, Write, WriteKind, WriteOptions,
};

/// Resources whose deletion answers with the object instead of a Status.
const ANSWER_WITH_OBJECT: &[&str] = &[
    "pods",
    "podtemplates",
    "persistentvolumeclaims",
    "persistentvolumes",
    "resourcequotas",
    "serviceaccounts",
    "services",
    "storageclasses",
    "volumeattachments",
    "volumeattributesclasses",
    "csinodes",
    "csidrivers",
];

/// The write that a call asks for.
pub(crate) fn write_of(call: &Call, target: &Target, options: WriteOptions) -> Write {
    Write {
        resource: target.resource.clone(),
        namespace: if target.resource.def.is_namespaced() { call.info.namespace.as_str().into() } else { "".into() },
        name: call.info.name.as_str().into(),
        subresource: call.info.subresource.clone(),
        user: Arc::clone(&call.user),
        options,
        applies: false,
        warnings: Vec::new(),
    }
}

pub(super) async fn create(call: &mut Call, target: &Target, body: RequestBody) -> Result<Response<Body>, Status> {
    let accepted = negotiation::negotiate(call.accepts(), call.is_pretty())?;
    let encoding = decode::body_encoding(call)?;
    let bytes = decode::read_body(body).await?;
    let options = WriteOptions::parse(&call.query, WriteKind::Create, call.user_agent())?;
    let def = target.resource.def;
    let Decoded { mut object, mut warnings } = match &target.resource.custom {
        Some(custom) => {
            let (object, warnings) = crate::custom::decode(custom, &bytes, encoding, options.field_validation)?;
            Decoded { object, warnings }
        }
        None => decode::decode(&bytes, encoding, &def.gvk(), options.field_validation)?,
    };
    call.warnings.append(&mut warnings);
    drop(bytes);
    let mut write = write_of(call, target, options);
    fit_namespace(&mut object, &write)?;
    crate::audit::about(&object);
    def.strategy.default(&mut object);
    let registry = Arc::clone(call.server.registry());
    let created = registry.create(&mut write, object).await;
    call.warnings.append(&mut write.warnings);
    let reply = Reply::Stored { resource: &target.resource, stored: created? };
    respond::respond(call, accepted, Coded { code: StatusCode::CREATED, reply }).await
}

/// An object that names no namespace gets the request's; one that names another is refused.
pub(crate) fn fit_namespace(object: &mut Value, write: &Write) -> Result<(), Status> {
    if !write.resource.def.is_namespaced() || object.namespace() == write.namespace {
        return Ok(());
    }
    if !object.namespace().is_empty() {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    object.set(&["metadata", "namespace"], write.namespace.clone());
    Ok(())
}

/// The object must be the one that the path names.
pub(crate) fn check_name(object: &Value, name: &str) -> Result<(), Status> {
    match object.name() {
        "" => Err(Status::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        ))),
        other if other != name => Err(Status::bad_request(format!(
            "the name of the object ({other}) does not match the name on the URL ({name})"
        ))),
        _ => Ok(()),
    }
}

pub(crate) async fn update(
    call: &mut Call,
    target: &Target,
    part: Part<'_>,
    body: RequestBody,
) -> Result<Response<Body>, Status> {
    let accepted = negotiation::negotiate(call.accepts(), call.is_pretty())?;
    let encoding = decode::body_encoding(call)?;
    let bytes = decode::read_body(body).await?;
    let options = WriteOptions::parse(&call.query, WriteKind::Update, call.user_agent())?;
    let def = target.resource.def;
    let Decoded { mut object, mut warnings } = match &target.resource.custom {
        Some(custom) => {
            let (object, warnings) = crate::custom::decode(custom, &bytes, encoding, options.field_validation)?;
            Decoded { object, warnings }
        }
        None => decode::decode(&bytes, encoding, &def.gvk(), options.field_validation)?,
    };
    call.warnings.append(&mut warnings);
    drop(bytes);
    let mut write = write_of(call, target, options);
    fit_namespace(&mut object, &write)?;
    check_name(&object, &write.name)?;
    crate::audit::about(&object);
    def.strategy.default(&mut object);
    let change = move |_: &Value| Ok(object.clone());
    let registry = Arc::clone(call.server.registry());
    let updated = registry.update(&mut write, part, &Preconditions::default(), false, &change).await;
    call.warnings.append(&mut write.warnings);
    respond_updated(call, target, accepted, updated?).await
}

async fn respond_updated(
    call: &Call,
    target: &Target,
    accepted: negotiation::Accepted,
    updated: Updated,
) -> Result<Response<Body>, Status> {
    let code = if updated.created { StatusCode::CREATED } else { StatusCode::OK };
    let reply = Reply::Stored { resource: &target.resource, stored: updated.stored };
    respond::respond(call, accepted, Coded { code, reply }).await
}

pub(crate) async fn patch(
    call: &mut Call,
    target: &Target,
    part: Part<'_>,
    body: RequestBody,
) -> Result<Response<Body>, Status> {
    let accepted = negotiation::negotiate(call.accepts(), call.is_pretty())?;
    let updated = patch_part(call, target, part, body).await?;
    respond_updated(call, target, accepted, updated).await
}

/// Patches a part of an object.
pub(crate) async fn patch_part(
    call: &mut Call,
    target: &Target,
    part: Part<'_>,
    body: RequestBody,
) -> Result<Updated, Status> {
    let kind = super::patch::kind_of(call.header(header::CONTENT_TYPE), call.speaks_cbor())?;
    if target.resource.custom.is_some() && kind == super::patch::PatchKind::Strategic {
        return Err(Status::unsupported_media_type(
            "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, \
             application/merge-patch+json, application/apply-patch+yaml",
        ));
    }
    let bytes = decode::read_body(body).await?;
    let options = WriteOptions::parse(&call.query, kind.options_kind(), call.user_agent())?;
    let mut write = write_of(call, target, options);
    write.applies = kind.applies();
    // A view is patched as the kind that it is.
    let def = target.resource.def;
    let view = matches!(part, Part::View(_)).then(|| target.subresource.map(|s| s.gvk.clone())).flatten();
    let gvk = view.clone().unwrap_or_else(|| def.gvk());
    let ty = view.as_ref().and_then(crate::encoding::type_of).unwrap_or_else(|| target.resource.ty().clone());
    let strategy = view.is_none().then_some(def.strategy);
    let patch = super::patch::Patch::parse(kind, &bytes, (&gvk, &ty), strategy, &write)?;
    drop(bytes);
    let change = |old: &Value| patch.apply(old);
    let registry = Arc::clone(call.server.registry());
    let upsert = patch.makes_missing_objects() && target.subresource.is_none();
    let updated = registry.update(&mut write, part, &Preconditions::default(), upsert, &change).await;
    call.warnings.append(&mut patch.take_warnings());
    call.warnings.append(&mut write.warnings);
    updated
}

pub(super) async fn delete(call: &mut Call, target: &Target, body: RequestBody) -> Result<Response<Body>, Status> {
    let accepted = negotiation::negotiate(call.accepts(), call.is_pretty())?;
    let options = delete_options(call, body).await?;
    let mut write = write_of(call, target, write_options(&options));
    let registry = Arc::clone(call.server.registry());
    let deleted = registry.delete(&mut write, &options).await;
    call.warnings.append(&mut write.warnings);
    let def = target.resource.def;
    let (code, stored) = match deleted? {
        Deleted::Gone(stored) if !ANSWER_WITH_OBJECT.contains(&def.gvr.resource.as_str()) => {
            let status = deleted_status(target, &write, &stored);
            return Ok(respond::plain_value(&status, StatusCode::OK, accepted.encoding));
        }
        Deleted::Gone(stored) => (StatusCode::OK, stored),
        Deleted::Pending(stored) if options.orphan_dependents == Some(false) => (StatusCode::ACCEPTED, stored),
        Deleted::Pending(stored) => (StatusCode::OK, stored),
    };
    let reply = Reply::Stored { resource: &target.resource, stored };
    respond::respond(call, accepted, Coded { code, reply }).await
}

/// `Success`, and of what.
fn deleted_status(target: &Target, write: &Write, stored: &Stored) -> Value {
    let gvr = &target.resource.def.gvr;
    let object = crate::registry::value_of(&target.resource, stored);
    let mut details = Value::from([("name", write.name.clone().into()), ("kind", gvr.resource.clone().into())]);
    if !gvr.group.is_empty() {
        details.set(&["group"], gvr.group.clone());
    }
    if !object.uid().is_empty() {
        details.set(&["uid"], object.uid());
    }
    Value::from([
        ("kind", "Status".into()),
        ("apiVersion", "v1".into()),
        ("metadata", Value::object()),
        ("status", "Success".into()),
        ("details", details),
    ])
}

pub(super) async fn delete_collection(
    call: &mut Call,
    target: &Target,
    body: RequestBody,
) -> Result<Response<Body>, Status> {
    let accepted = negotiation::negotiate(call.accepts(), call.is_pretty())?;
    let list_options = ListOptions::parse(&call.query, false)?;
    let selection = selection(call, target, &list_options)?;
    let options = delete_options(call, body).await?;
    let mut write = write_of(call, target, write_options(&options));
    write.name = "".into();
    let registry = Arc::clone(call.server.registry());
    let deleted = registry.delete_collection(&mut write, &selection, &options).await;
    call.warnings.append(&mut write.warnings);
    let reply = Reply::List(Listing { resource: &target.resource, result: deleted? });
    respond::respond(call, accepted, Coded { code: StatusCode::OK, reply }).await
}

/// The options of a deletion: the body if there is one, else the query.
async fn delete_options(call: &Call, body: RequestBody) -> Result<DeleteOptions, Status> {
    let bytes = decode::read_body(body).await?;
    if bytes.is_empty() {
        return DeleteOptions::from_query(&call.query);
    }
    let encoding = decode::body_encoding(call)?;
    DeleteOptions::from_value(decode::decode_options(&bytes, encoding, "DeleteOptions")?)
}

fn write_options(options: &DeleteOptions) -> WriteOptions {
    WriteOptions { dry_run: options.dry_run, sent: options.sent.clone(), ..WriteOptions::default() }
}
