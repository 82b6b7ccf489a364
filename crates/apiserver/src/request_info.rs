//! From a path, a method and a query to what is asked: upstream's `RequestInfo`.

use apimachinery::meta::Gvr;
use apimachinery::selector::{FieldSelector, LabelSelector};
use http::Method;

use crate::attributes::{Narrowed, RequestInfo};
use crate::query::Query;

/// Subresources of a namespace that are not resources inside it.
const NAMESPACE_SUBRESOURCES: &[&str] = &["status", "finalize"];

/// Works out what a request asks for. Never fails: a path that means no resource is a non-resource request.
#[must_use]
pub(crate) fn request_info(method: &Method, path: &str, query: &Query) -> RequestInfo {
    let mut info =
        RequestInfo { verb: method.as_str().to_ascii_lowercase(), path: path.to_owned(), ..RequestInfo::default() };
    let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let group = match parts.as_slice() {
        ["api", _, _, ..] => "",
        ["apis", group, _, _, ..] => group,
        _ => return info,
    };
    let version_at = if parts[0] == "api" { 1 } else { 2 };
    let version = parts[version_at];
    parts.drain(..=version_at);

    info.is_resource = true;
    info.gvr = Gvr::new(group, version, "");
    // The deprecated form /watch/… names the verb in the path; /proxy/… did, once.
    let deprecated = match parts.first() {
        Some(&"watch") if parts.len() > 1 => {
            parts.remove(0);
            true
        }
        _ => false,
    };
    info.verb = if deprecated { "watch" } else { verb_of(method) }.to_owned();

    if parts.first() == Some(&"namespaces") && parts.len() > 1 {
        info.namespace = parts[1].to_owned();
        // /namespaces/NAME/status and the like are about the namespace itself.
        if parts.len() > 2 && !NAMESPACE_SUBRESOURCES.contains(&parts[2]) {
            parts.drain(..2);
        }
    }
    info.gvr.resource = parts.first().copied().unwrap_or_default().into();
    if let Some(name) = parts.get(1) {
        info.name = (*name).to_owned();
    }
    if let Some(subresource) = parts.get(2) {
        info.subresource = (*subresource).to_owned();
    }
    if parts.len() > 3 {
        // What a proxy passes on keeps its trailing slash.
        info.rest = parts[3..].join("/");
        if path.ends_with('/') {
            info.rest.push('/');
        }
    }

    if info.name.is_empty() {
        match info.verb.as_str() {
            "get" if query.is_true("watch") => info.verb = "watch".into(),
            "get" => info.verb = "list".into(),
            "delete" => info.verb = "deletecollection".into(),
            _ => {}
        }
    }
    // The deprecated form has endpoints for one object, where selectors mean nothing: there they narrow no right.
    if !deprecated {
        let text = |name: &str| query.get(name).filter(|text| !text.is_empty());
        if let Some(text) = text("labelSelector") {
            info.label_selector = Narrowed::of(LabelSelector::parse(text));
        }
        if let Some(text) = text("fieldSelector") {
            info.field_selector = Narrowed::of(FieldSelector::parse(text));
        }
        // A list of one name is a question about that object alone.
        if info.name.is_empty()
            && matches!(info.verb.as_str(), "list" | "watch")
            && let Some(name) = name_in(&info.field_selector.selector)
        {
            info.name = name.to_owned();
        }
    }
    info
}

fn verb_of(method: &Method) -> &'static str {
    match method.as_str() {
        "POST" => "create",
        "GET" | "HEAD" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    }
}

/// The name that a selector demands.
fn name_in(selector: &FieldSelector) -> Option<&str> {
    let term = selector.terms.iter().find(|term| term.field == "metadata.name" && term.equal)?;
    let is_segment = !matches!(term.value.as_str(), "" | "." | "..") && !term.value.contains(['/', '%']);
    is_segment.then_some(term.value.as_str())
}

/// Requests that last as long as the client likes: they have no deadline and take no seat.
#[must_use]
pub(crate) fn is_long_running(info: &RequestInfo) -> bool {
    matches!(info.verb.as_str(), "watch" | "proxy")
        || matches!(info.subresource.as_str(), "proxy" | "exec" | "attach" | "portforward" | "log")
        || info.path.starts_with("/debug/pprof/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: &str, target: &str, want: &str) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let info = request_info(&method.parse().unwrap(), path, &Query::parse(query));
        let got = if info.is_resource {
            format!(
                "{} {} ns={} name={} sub={} rest={}",
                info.verb,
                info.gvr.group_resource(),
                info.namespace,
                info.name,
                info.subresource,
                info.rest
            )
        } else {
            format!("{} {}", info.verb, info.path)
        };
        assert_eq!(got, want);
    }

    #[test]
    fn paths_mean_what_upstream_takes_them_for() {
        check("GET", "/api/v1/pods", "list pods ns= name= sub= rest=");
        check("GET", "/api/v1/namespaces", "list namespaces ns= name= sub= rest=");
        check("GET", "/api/v1/namespaces/a", "get namespaces ns=a name=a sub= rest=");
        check("PUT", "/api/v1/namespaces/a/finalize", "update namespaces ns=a name=a sub=finalize rest=");
        check("POST", "/apis/apps/v1/namespaces/a/deployments", "create deployments.apps ns=a name= sub= rest=");
        check(
            "GET",
            "/apis/apps/v1/namespaces/a/deployments/b/scale",
            "get deployments.apps ns=a name=b sub=scale rest=",
        );
        check("DELETE", "/api/v1/namespaces/a/pods", "deletecollection pods ns=a name= sub= rest=");
        check("GET", "/api/v1/watch/namespaces/a/pods/p", "watch pods ns=a name=p sub= rest=");
        check("GET", "/api/v1/pods?watch=1", "watch pods ns= name= sub= rest=");
        check("GET", "/api/v1/pods?watch=false", "list pods ns= name= sub= rest=");
        check("GET", "/api/v1/pods?fieldSelector=metadata.name%3Dx", "list pods ns= name=x sub= rest=");
        check("DELETE", "/api/v1/pods?fieldSelector=metadata.name%3Dx", "deletecollection pods ns= name= sub= rest=");
        check("GET", "/api/v1/pods?fieldSelector=a!=b,metadata.name==x", "list pods ns= name=x sub= rest=");
        check("GET", "/api/v1/pods?fieldSelector=metadata.name!=x", "list pods ns= name= sub= rest=");
        check("GET", "/api/v1/watch/pods?fieldSelector=metadata.name%3Dx", "watch pods ns= name= sub= rest=");
        check("GET", "/api/v1/nodes/n/proxy/logs/", "get nodes ns= name=n sub=proxy rest=logs/");
        check("GET", "/api/v1", "get /api/v1");
        check("GET", "/healthz", "get /healthz");
        check("GET", "/apis/apps/v1", "get /apis/apps/v1");
    }

    #[test]
    fn selectors_are_told_and_what_cannot_be_read_widens_the_question() {
        let info = |target: &str| {
            let (path, query) = target.split_once('?').unwrap();
            request_info(&Method::GET, path, &Query::parse(query))
        };
        let told = info("/api/v1/pods?labelSelector=a%3Db&fieldSelector=spec.nodeName%3Dn");
        assert_eq!(told.label_selector, Narrowed::of(LabelSelector::parse("a=b")));
        assert_eq!(told.field_selector, Narrowed::of(FieldSelector::parse("spec.nodeName=n")));
        let unread = info("/api/v1/pods?labelSelector=a+in+(");
        assert!(unread.label_selector.partly && unread.label_selector.selector.is_empty());
        assert_eq!(info("/api/v1/watch/pods?labelSelector=a").label_selector, Narrowed::default());
    }
}
