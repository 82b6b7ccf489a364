//! Trust anchors of the cluster (ClusterTrustBundle, KEP-3257) as one file: by name, or all of a signer that have labels.

use client::error::ignore_not_found;
use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;
use kube::Api;
use kube::api::ListParams;
use kube::core::Selector;

use super::pem;

/// What the source's file holds.
pub(super) async fn anchors(
    client: Option<&kube::Client>,
    source: &ClusterTrustBundleProjection,
) -> Result<String, String> {
    let client = client.ok_or("ClusterTrustBundle projection is not supported in static kubelet mode")?;
    let bundles: Api<ClusterTrustBundle> = Api::all(client.clone());
    let is_optional = source.optional == Some(true);
    if let Some(name) = &source.name {
        let found = ignore_not_found(bundles.get(name).await);
        return match found.map_err(|e| format!("while getting ClusterTrustBundle: {e}"))? {
            Some(bundle) => Ok(together(&[bundle])),
            None if is_optional => Ok(String::new()),
            None => Err(format!(
                "while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io \"{name}\" not found"
            )),
        };
    }
    let mut found = Vec::new();
    // No selector selects nothing, an empty one everything.
    if let Some(selector) = &source.label_selector {
        let selector =
            Selector::try_from(selector.clone()).map_err(|e| format!("while parsing label selector: {e}"))?;
        let listed = bundles.list(&ListParams::default().labels_from(&selector)).await;
        let listed = listed.map_err(|e| format!("while listing ClusterTrustBundles: {e}"))?;
        found = listed.items;
        found.retain(|bundle| bundle.spec.signer_name == source.signer_name);
    }
    if found.is_empty() && !is_optional {
        return Err("combination of signerName and labelSelector matched zero ClusterTrustBundles".to_owned());
    }
    Ok(together(&found))
}

/// The certificates of all, each once, in an order that does not depend on that of the bundles.
fn together(bundles: &[ClusterTrustBundle]) -> String {
    let mut all: Vec<Vec<u8>> = bundles.iter().flat_map(|b| pem::certificates(&b.spec.trust_bundle)).collect();
    all.sort();
    all.dedup();
    all.iter().map(|der| pem::block(der)).collect()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::Response;
    use serde_json::json;

    use super::*;

    fn bundle(name: &str, signer: &str, certificates: &[&str]) -> serde_json::Value {
        let text: String = certificates.iter().map(|c| pem::block(c.as_bytes())).collect();
        json!({ "metadata": { "name": name }, "spec": { "signerName": signer, "trustBundle": text } })
    }

    /// An apiserver with three bundles, two of which have the label `live`.
    async fn cluster(request: http::Request<kube::client::Body>) -> Result<Response<String>, Infallible> {
        let all = [
            bundle("plain", "", &["b", "a", "b"]),
            bundle("example.com:s:1", "example.com/s", &["c", "b"]),
            bundle("example.com:s:2", "example.com/s", &["b", "d"]),
        ];
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        let name = path.strip_prefix("/apis/certificates.k8s.io/v1beta1/clustertrustbundles").unwrap();
        let items = match (name, query.contains("live")) {
            ("", true) => &all[1..2],
            ("", false) => &all[..],
            (name, _) => match all.iter().find(|b| name[1..] == b["metadata"]["name"]) {
                Some(found) => return Ok(Response::new(found.to_string())),
                None => {
                    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                        "reason": "NotFound", "message": "not found" });
                    return Ok(Response::builder().status(404).body(status.to_string()).unwrap());
                }
            },
        };
        Ok(Response::new(json!({ "metadata": {}, "items": items }).to_string()))
    }

    #[tokio::test]
    async fn bundles_are_found_by_name_or_by_signer_and_labels() {
        let client = kube::Client::new(tower::service_fn(cluster), "default");
        let check = async |source: serde_json::Value, want: Result<&[&str], &str>| {
            let mut all = json!({ "path": "ca.pem" });
            all.as_object_mut().unwrap().extend(source.as_object().cloned().unwrap());
            let got = anchors(Some(&client), &serde_json::from_value(all).unwrap()).await;
            let want: Result<String, String> =
                want.map(|c| c.iter().map(|c| pem::block(c.as_bytes())).collect()).map_err(str::to_owned);
            assert_eq!(got, want, "{source}");
        };
        check(json!({ "name": "plain" }), Ok(&["a", "b"])).await;
        let words = "while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io \"none\" not found";
        check(json!({ "name": "none" }), Err(words)).await;
        check(json!({ "name": "none", "optional": true }), Ok(&[])).await;
        let signer = |selector: serde_json::Value| json!({ "signerName": "example.com/s", "labelSelector": selector });
        check(signer(json!({})), Ok(&["b", "c", "d"])).await;
        check(signer(json!({ "matchLabels": { "state": "live" } })), Ok(&["b", "c"])).await;
        let words = "combination of signerName and labelSelector matched zero ClusterTrustBundles";
        check(json!({ "signerName": "example.com/s" }), Err(words)).await;
        check(json!({ "signerName": "example.com/x", "labelSelector": {}, "optional": true }), Ok(&[])).await;
    }
}
