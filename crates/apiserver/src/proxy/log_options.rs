//! Options of `pods/log`: checked as upstream checks `PodLogOptions`, and passed on to the kubelet.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors, Path};
use apimachinery::meta::Gvk;
use apimachinery::status::Status;

use super::push_parameter;
use crate::query::Query;

const STREAMS: [&str; 3] = ["All", "Stderr", "Stdout"];

/// The query for the kubelet.
///
/// # Errors
/// 400 for what cannot be read, 422 for what makes no sense.
pub(super) fn query_of(query: &Query, pod: &str) -> Result<String, Status> {
    let given = |key: &str| query.get(key).filter(|value| !value.is_empty());
    let number = |key: &str| -> Result<Option<i64>, Status> {
        let Some(text) = given(key) else { return Ok(None) };
        let invalid = || Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"));
        text.parse().map(Some).map_err(|_| invalid())
    };
    let (tail, bytes, since) = (number("tailLines")?, number("limitBytes")?, number("sinceSeconds")?);
    let since_time = given("sinceTime");
    if let Some(time) = since_time.filter(|time| time.parse::<jiff::Timestamp>().is_err()) {
        let why = format!("parsing time {time:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {time:?} as \"2006\"");
        return Err(Status::bad_request(why));
    }
    let mut errs = FieldErrors::new();
    let mut at_least = |key: &str, value: Option<i64>, least: i64, why: &str| {
        if let Some(value) = value.filter(|value| *value < least) {
            errs.invalid_value(&Path::new(key), value, why);
        }
    };
    at_least("tailLines", tail, 0, "must be greater than or equal to 0");
    at_least("limitBytes", bytes, 1, "must be greater than 0");
    if since.is_some() && since_time.is_some() {
        errs.forbidden(&Path::root(), "at most one of `sinceTime` or `sinceSeconds` may be specified");
    } else if let Some(seconds) = since.filter(|seconds| *seconds < 1) {
        errs.invalid_value(&Path::new("sinceSeconds"), seconds, "must be greater than 0");
    }
    let stream = given("stream").unwrap_or("All");
    if !STREAMS.contains(&stream) {
        errs.not_supported(&Cursor::new(Path::new("stream"), &Value::from(stream)), &STREAMS);
    } else if stream != "All" && tail.is_some() {
        errs.forbidden(&Path::root(), "`tailLines` and specific `stream` are mutually exclusive for now");
    }
    if !errs.is_empty() {
        return Err(Status::invalid(&Gvk::new("", "v1", "PodLogOptions"), pod, &errs));
    }
    let mut out = String::new();
    for key in ["follow", "previous", "timestamps"] {
        if query.is_true(key) {
            push_parameter(&mut out, key, "true");
        }
    }
    for key in ["sinceSeconds", "sinceTime", "tailLines", "limitBytes", "stream"] {
        if let Some(value) = given(key) {
            push_parameter(&mut out, key, value);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(query: &str, want: &str) {
        let got =
            query_of(&Query::parse(query), "p").unwrap_or_else(|status| format!("{} {}", status.code, status.message));
        assert_eq!(got, want);
    }

    #[test]
    fn what_the_kubelet_knows_is_passed_on() {
        check("container=c&follow=true&previous=false&tailLines=3&x=y", "follow=true&tailLines=3");
        check("sinceTime=2026-01-02T15%3A04%3A05Z", "sinceTime=2026-01-02T15%3A04%3A05Z");
        check("", "");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        check("tailLines=x", "400 strconv.ParseInt: parsing \"x\": invalid syntax");
        check(
            "tailLines=-1&limitBytes=0",
            "422 PodLogOptions \"p\" is invalid: [tailLines: Invalid value: -1: must be greater than or equal to 0, \
             limitBytes: Invalid value: 0: must be greater than 0]",
        );
        check(
            "sinceSeconds=0",
            "422 PodLogOptions \"p\" is invalid: sinceSeconds: Invalid value: 0: must be greater than 0",
        );
        check(
            "stream=stdin",
            "422 PodLogOptions \"p\" is invalid: stream: Unsupported value: \"stdin\": supported values: \"All\", \"Stderr\", \"Stdout\"",
        );
    }
}
