//! An OCI image archive with one layer (image-spec: image-layout.md, manifest.md, config.md).

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What the image's configuration says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    /// References under which the image is found, `registry/repository:tag`.
    pub names: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub user: String,
    pub working_dir: String,
}

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Packs an uncompressed tar of the root file system as an archive for `images import`.
pub(crate) fn pack(image: &Image, layer: &[u8]) -> Result<Vec<u8>> {
    let mut out = tar::Builder::new(Vec::new());
    let layer = add_blob(&mut out, LAYER, layer)?;
    let mut settings = json!({"Env": with_path(&image.env)});
    for (key, words) in [("Entrypoint", &image.entrypoint), ("Cmd", &image.cmd)] {
        if !words.is_empty() {
            settings[key] = json!(words);
        }
    }
    for (key, text) in [("User", &image.user), ("WorkingDir", &image.working_dir)] {
        if !text.is_empty() {
            settings[key] = json!(text);
        }
    }
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let config = add_blob(&mut out, CONFIG, config.to_string().as_bytes())?;
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
    let manifest = add_blob(&mut out, MANIFEST, manifest.to_string().as_bytes())?;
    let named = image.names.iter().map(|name| {
        let mut entry = manifest.clone();
        entry["annotations"] = json!({"io.containerd.image.name": name});
        entry
    });
    let index = json!({"schemaVersion": 2, "manifests": named.collect::<Vec<_>>()});
    add_file(&mut out, "index.json", index.to_string().as_bytes())?;
    add_file(&mut out, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(out.into_inner()?)
}

fn with_path(env: &[String]) -> Vec<String> {
    let mut all = env.to_vec();
    if !env.iter().any(|e| e.starts_with("PATH=")) {
        all.insert(0, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    }
    all
}

/// This machine's architecture as OCI names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Adds the blob and returns its descriptor.
fn add_blob(out: &mut tar::Builder<Vec<u8>>, media_type: &str, data: &[u8]) -> Result<Value> {
    let digest: String = Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect();
    add_file(out, &format!("blobs/sha256/{digest}"), data)?;
    Ok(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": data.len()}))
}

fn add_file(out: &mut tar::Builder<Vec<u8>>, path: &str, data: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    out.append_data(&mut header, path, data)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use super::*;

    #[test]
    fn every_descriptor_points_at_a_blob_of_that_size() {
        let image = Image { names: vec!["a/b:1".into(), "a/b:2".into()], cmd: vec!["/x".into()], ..Image::default() };
        let archive = pack(&image, b"layer bytes").unwrap();
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(archive.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            files.insert(entry.path().unwrap().to_string_lossy().into_owned(), data);
        }
        let blob = |d: &Value| {
            let data = &files[&format!("blobs/sha256/{}", d["digest"].as_str().unwrap().trim_start_matches("sha256:"))];
            assert_eq!(data.len() as u64, d["size"].as_u64().unwrap());
            data.clone()
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let names: Vec<&str> = index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["annotations"]["io.containerd.image.name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["a/b:1", "a/b:2"]);
        let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])).unwrap();
        assert_eq!(blob(&manifest["layers"][0]), b"layer bytes");
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["Cmd"], json!(["/x"]));
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
    }
}
