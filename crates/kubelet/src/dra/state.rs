//! Which claims are prepared here, as it stands in `dra_manager_state`: upstream's names, so that either kubelet can undo what
//! the other has prepared.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

const KIND: &str = "DRACheckpoint";
const VERSION: &str = "checkpoint.dra.kubelet.k8s.io/v1";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Device {
    pub pool_name: String,
    pub device_name: String,
    #[serde(rename = "ShareID", skip_serializing_if = "Option::is_none")]
    pub share_id: Option<String>,
    pub request_names: Option<Vec<String>>,
    #[serde(rename = "CDIDeviceIDs")]
    pub cdi_device_ids: Option<Vec<String>>,
}

impl Device {
    /// Whether it is there for this request of its claim; none: for any.
    pub(super) fn serves(&self, request: Option<&str>) -> bool {
        // An alternative of a request is named `request/alternative`.
        let request = request.map(|r| r.split('/').next().unwrap_or_default()).filter(|r| !r.is_empty());
        let names = self.request_names.as_deref().unwrap_or_default();
        request.is_none_or(|request| names.is_empty() || names.iter().any(|name| name == request))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct OfDriver {
    pub devices: Option<Vec<Device>>,
}

/// A set, as Go writes it.
type Set = BTreeMap<String, Member>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Claim {
    #[serde(rename = "ClaimUID")]
    pub uid: String,
    #[serde(rename = "ClaimName")]
    pub name: String,
    pub namespace: String,
    #[serde(rename = "PodUIDs")]
    pub pod_uids: Set,
    /// By the drivers that something of the claim was allocated from.
    pub driver_state: BTreeMap<String, OfDriver>,
    /// All drivers have prepared it. Not kept: after a restart they are asked again.
    #[serde(skip)]
    pub is_prepared: bool,
}

#[derive(Serialize, Deserialize)]
struct Data {
    kind: String,
    #[serde(rename = "apiVersion")]
    api_version: String,
    #[serde(rename = "Entries")]
    entries: Vec<Claim>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    data: String,
    /// CRC-32 (IEEE 802.3) of `data`.
    checksum: u32,
}

/// By namespace and name.
pub(super) type Claims = BTreeMap<(String, String), Claim>;

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(sum & 1)))
    })
}

pub(super) fn read(file: &Path) -> Result<Claims, String> {
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Claims::new()),
        Err(error) => return Err(error.to_string()),
    };
    let kept: File = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    if kept.checksum != crc32(kept.data.as_bytes()) {
        return Err("checkpoint is corrupted".to_owned());
    }
    let data: Data = serde_json::from_str(&kept.data).map_err(|e| e.to_string())?;
    Ok(data.entries.into_iter().map(|claim| ((claim.namespace.clone(), claim.name.clone()), claim)).collect())
}

/// Whole or not at all.
pub(super) fn write(file: &Path, claims: &Claims) -> std::io::Result<()> {
    let entries = claims.values().cloned().collect();
    let data = Data { kind: KIND.to_owned(), api_version: VERSION.to_owned(), entries };
    let data = serde_json::to_string(&data)?;
    let checksum = crc32(data.as_bytes());
    let fresh = file.with_extension("new");
    std::fs::write(&fresh, serde_json::to_vec(&File { data, checksum })?)?;
    std::fs::rename(fresh, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_down_is_as_upstream_writes_it() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("dra_manager_state");
        let device = Device {
            pool_name: "pool".into(),
            device_name: "one".into(),
            request_names: Some(vec!["r".into()]),
            cdi_device_ids: Some(vec!["example.com/toy=one".into()]),
            share_id: None,
        };
        let claim = Claim {
            uid: "c1".into(),
            name: "claim".into(),
            namespace: "ns".into(),
            pod_uids: [("u1".to_owned(), Member {})].into(),
            driver_state: [("toys.example.com".to_owned(), OfDriver { devices: Some(vec![device]) })].into(),
            is_prepared: false,
        };
        let claims = Claims::from([(("ns".to_owned(), "claim".to_owned()), claim)]);
        write(&file, &claims).unwrap();
        let text: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let want = r#"{"kind":"DRACheckpoint","apiVersion":"checkpoint.dra.kubelet.k8s.io/v1","Entries":[{"ClaimUID":"c1","ClaimName":"claim","Namespace":"ns","PodUIDs":{"u1":{}},"DriverState":{"toys.example.com":{"Devices":[{"PoolName":"pool","DeviceName":"one","RequestNames":["r"],"CDIDeviceIDs":["example.com/toy=one"]}]}}}]}"#;
        assert_eq!(text["Data"], want);
        assert_eq!(read(&file).unwrap(), claims);
        std::fs::write(&file, std::fs::read_to_string(&file).unwrap().replace("claim", "other")).unwrap();
        assert!(read(&file).is_err());
    }

    #[test]
    fn a_device_serves_the_requests_that_it_is_named_for() {
        let check = |names: &[&str], request: Option<&str>, want: bool| {
            let names = Some(names.iter().map(ToString::to_string).collect());
            let device = Device { request_names: names, ..Device::default() };
            assert_eq!(device.serves(request), want, "{device:?} {request:?}");
        };
        check(&["a"], None, true);
        check(&["a"], Some(""), true);
        check(&["a"], Some("a"), true);
        check(&["a"], Some("a/small"), true);
        check(&["a"], Some("b"), false);
        check(&[], Some("b"), true);
    }
}
