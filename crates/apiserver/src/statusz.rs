//! `/statusz` (KEP-4827): since when this server runs and what it is, for people, and as a document for those who ask for one.

use std::time::Duration;

use component_base::version;
use http::StatusCode;
use jiff::Timestamp;
use serde_json::json;

use crate::handlers::negotiation;

const COMPONENT: &str = "kube-apiserver";
/// Where else it tells of itself.
const PATHS: [&str; 6] = ["/healthz", "/livez", "/metrics", "/readyz", "/statusz", "/version"];
const VERSIONS: [&str; 2] = ["v1alpha1", "v1beta1"];
const WARNING: &str = "This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is \
                       for debugging purposes only.";

/// Code, media type and body.
pub(crate) type Answer = (StatusCode, &'static str, String);

#[must_use]
pub(crate) fn answer(accept: Option<&str>, started: Timestamp, now: Timestamp) -> Answer {
    let up = Duration::try_from(now.duration_since(started)).unwrap_or_default();
    let accept = accept.filter(|accept| !accept.trim().is_empty()).unwrap_or("*/*");
    for clause in negotiation::clauses(accept) {
        match (clause.kind, clause.subtype) {
            ("*", "*") | ("text", "plain" | "*") => {
                return (StatusCode::OK, "text/plain; charset=utf-8", text(started, up));
            }
            ("application", "json") => {
                let wanted = clause.param("v").filter(|version| VERSIONS.contains(version));
                let is_status = clause.param("g") == Some("config.k8s.io") && clause.param("as") == Some("Statusz");
                if let (Some(version), true) = (wanted, is_status) {
                    return (StatusCode::OK, "application/json", document(version, started, up));
                }
            }
            _ => {}
        }
    }
    (StatusCode::NOT_ACCEPTABLE, "text/plain; charset=utf-8", "406: Not Acceptable\n".to_owned())
}

fn binary_version() -> &'static str {
    version::GIT_VERSION.trim_start_matches('v')
}

fn text(started: Timestamp, up: Duration) -> String {
    let seconds = up.as_secs();
    format!(
        "\n{COMPONENT} statusz\nWarning: {WARNING}\n\nStarted: {}\nUp: {} hr {:02} min {:02} sec\nGo version: rust\n\
         Binary version: {}\nEmulation version: {}.{}\nPaths: {}\n",
        started.strftime("%a %b %e %H:%M:%S UTC %Y"),
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        binary_version(),
        version::MAJOR,
        version::MINOR,
        PATHS.join(" "),
    )
}

fn document(version: &str, started: Timestamp, up: Duration) -> String {
    let document = json!({
        "kind": "Statusz",
        "apiVersion": format!("config.k8s.io/{version}"),
        "metadata": { "name": COMPONENT },
        "startTime": started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "uptimeSeconds": up.as_secs(),
        "goVersion": "rust",
        "binaryVersion": binary_version(),
        "emulationVersion": format!("{}.{}", version::MAJOR, version::MINOR),
        "paths": PATHS,
    });
    format!("{document}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn ask(accept: Option<&str>) -> Answer {
        answer(accept, at("2026-10-06T21:03:43Z"), at("2026-10-06T22:05:46Z"))
    }

    #[test]
    fn people_get_a_text() {
        let (code, _, body) = ask(None);
        assert_eq!(code, StatusCode::OK);
        let lines: Vec<&str> = body.lines().collect();
        assert_eq!((lines[1], lines[4]), ("kube-apiserver statusz", "Started: Tue Oct  6 21:03:43 UTC 2026"));
        assert_eq!(lines[5], "Up: 1 hr 02 min 03 sec");
        assert_eq!(lines[9], "Paths: /healthz /livez /metrics /readyz /statusz /version");
        assert_eq!(ask(Some("application/json, */*")).2, body);
    }

    #[test]
    fn programs_get_a_document_of_a_version() {
        let (code, media_type, body) = ask(Some("application/json;v=v1alpha1;g=config.k8s.io;as=Statusz"));
        assert_eq!((code, media_type), (StatusCode::OK, "application/json"));
        let document: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&document["kind"], &document["uptimeSeconds"]), (&json!("Statusz"), &json!(3723)));
        assert_eq!(document["startTime"], "2026-10-06T21:03:43Z");
        assert_eq!(ask(Some("application/json")).0, StatusCode::NOT_ACCEPTABLE);
        assert_eq!(ask(Some("application/json;v=v9;g=config.k8s.io;as=Statusz")).0, StatusCode::NOT_ACCEPTABLE);
    }
}
