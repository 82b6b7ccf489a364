//! Kubeconfig files with the certificates embedded, so that each is all that its user needs.

use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::pki::{Pair, Pki};
use crate::private_file;

/// Writes a kubeconfig for the holder of `pair`, to the server at `url`.
pub(crate) fn write(path: &Path, url: &str, user: &str, pki: &Pki, pair: &Pair) -> Result<()> {
    let embed = |file: &Path| -> Result<String> {
        Ok(STANDARD.encode(std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?))
    };
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "kelson",
            "cluster": {"server": url, "certificate-authority-data": embed(&pki.ca())?},
        }],
        "users": [{
            "name": user,
            "user": {"client-certificate-data": embed(&pair.cert)?, "client-key-data": embed(&pair.key)?},
        }],
        "contexts": [{"name": "kelson", "context": {"cluster": "kelson", "user": user}}],
        "current-context": "kelson",
    });
    let yaml = serde_saphyr::to_string(&config).context("cannot write a kubeconfig as YAML")?;
    private_file::write(path, yaml.as_bytes())
}
