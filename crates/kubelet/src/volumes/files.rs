//! What files a ConfigMap, Secret, downward API or projected volume consists of.

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource};

use super::pod_certificates::Place;
use super::{Setup, trust_bundles};
use crate::env;

/// One file of a volume, `path` relative to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub path: String,
    pub data: Vec<u8>,
    pub mode: u32,
    /// Its owner, where it must be the container's user.
    pub user: Option<u32>,
}

fn mode_of(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0o644) & 0o7777
}

/// The entries of a map as files: all of them, or those that `items` names, under the paths that it gives.
fn pick(
    entries: Vec<(String, Vec<u8>)>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: i32,
    what: &str,
) -> Result<Vec<File>, String> {
    let file = |path: String, data: Vec<u8>, mode: i32| File { path, data, mode: mode_of(mode), user: None };
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        return Ok(entries.into_iter().map(|(key, data)| file(key, data, mode)).collect());
    };
    let mut files = Vec::new();
    for item in items {
        match entries.iter().find(|(key, _)| *key == item.key) {
            Some((_, data)) => files.push(file(item.path.clone(), data.clone(), item.mode.unwrap_or(mode))),
            None if optional => {}
            None => return Err(format!("{what} references non-existent config key: {}", item.key)),
        }
    }
    Ok(files)
}

pub(super) fn config_map(
    setup: &Setup<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: i32,
) -> Result<Vec<File>, String> {
    let Some(data) = setup.materials.config_maps.get(name) else {
        return if optional { Ok(Vec::new()) } else { Err(format!("configmap \"{name}\" not found")) };
    };
    let binaries = setup.materials.config_map_binaries.get(name).into_iter().flatten();
    let texts = data.iter().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let entries = texts.chain(binaries.map(|(k, v)| (k.clone(), v.clone()))).collect();
    pick(entries, items, optional, mode, "configmap")
}

pub(super) fn secret(
    setup: &Setup<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: i32,
) -> Result<Vec<File>, String> {
    let Some(data) = setup.materials.secrets.get(name) else {
        return if optional { Ok(Vec::new()) } else { Err(format!("secret \"{name}\" not found")) };
    };
    let entries = data.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    pick(entries, items, optional, mode, "secret")
}

pub(super) fn downward(setup: &Setup<'_>, items: &[DownwardAPIVolumeFile], mode: i32) -> Result<Vec<File>, String> {
    let mut files = Vec::new();
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            env::field_value(setup.pod, &field.field_path, setup.sources).map_err(|e| e.to_string())?
        } else if let Some(resource) = &item.resource_field_ref {
            let name = resource.container_name.as_deref().unwrap_or_default();
            let all = setup.pod.spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
            let container =
                all.into_iter().find(|c| c.name == name).ok_or_else(|| format!("container {name} not found"))?;
            let divisor = resource.divisor.as_ref().map_or("0", |q| q.0.as_str());
            env::resource_value(container, &resource.resource, divisor, setup.sources).map_err(|e| e.to_string())?
        } else {
            continue;
        };
        let mode = mode_of(item.mode.unwrap_or(mode));
        files.push(File { path: item.path.clone(), data: text.into_bytes(), mode, user: None });
    }
    Ok(files)
}

pub(super) async fn projected(
    setup: &Setup<'_>,
    volume: &str,
    source: &ProjectedVolumeSource,
) -> Result<Vec<File>, String> {
    let mode = source.default_mode.unwrap_or(0o644);
    let user = common_user(setup);
    // As upstream: what tells who the pod is, is for its user alone where all containers run as one; with fsGroup its group
    // can read it.
    let is_private = user.is_some() || setup.fs_group().is_some();
    let own = |path: &str, text: String| {
        let mode = if is_private { 0o600 } else { mode_of(mode) };
        File { path: path.to_owned(), data: text.into_bytes(), mode, user }
    };
    let mut files = Vec::new();
    for (index, part) in source.sources.iter().flatten().enumerate() {
        if let Some(s) = &part.config_map {
            files.extend(config_map(setup, &s.name, s.items.as_deref(), s.optional == Some(true), mode)?);
        }
        if let Some(s) = &part.secret {
            files.extend(secret(setup, &s.name, s.items.as_deref(), s.optional == Some(true), mode)?);
        }
        if let Some(s) = &part.downward_api {
            files.extend(downward(setup, s.items.as_deref().unwrap_or_default(), mode)?);
        }
        if let Some(s) = &part.service_account_token {
            let client = setup.context.client.as_ref().ok_or("there is no apiserver to ask for a token")?;
            let token = setup.context.tokens.get(client, setup.pod, s.audience.as_deref(), s.expiration_seconds).await;
            let token = token.map_err(|e| format!("failed to fetch token: {e}"))?;
            files.push(own(&s.path, token.text));
        }
        if let Some(s) = &part.cluster_trust_bundle {
            files.push(own(&s.path, trust_bundles::anchors(setup.context.client.as_ref(), s).await?));
        }
        if let Some(s) = &part.pod_certificate {
            let pod_uid = setup.pod.metadata.uid.clone().unwrap_or_default();
            let place = Place { pod_uid, volume: volume.to_owned(), index };
            let given = setup.context.pod_certificates.get(setup.context, setup.pod, &place, s).await?;
            let named = |path: &Option<String>| path.clone().filter(|p| !p.is_empty());
            let bundle = named(&s.credential_bundle_path);
            files.extend(bundle.map(|path| own(&path, format!("{}{}", given.key, given.chain))));
            files.extend(named(&s.key_path).map(|path| own(&path, given.key.clone())));
            files.extend(named(&s.certificate_chain_path).map(|path| own(&path, given.chain.clone())));
        }
    }
    Ok(files)
}

/// The user that every container of the pod runs as, if there is one.
fn common_user(setup: &Setup<'_>) -> Option<u32> {
    let spec = setup.pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut users = all.map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod));
    let first = users.next()??;
    users.all(|u| u == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}
