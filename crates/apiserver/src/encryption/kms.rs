//! A key-management service outside (KMS v2): it encrypts the seeds that this server makes keys of, and never sees values.
//!
//! Every value has a key of its own, made of the seed and 32 random bytes in front of it. The seed lies beside each value,
//! encrypted by the service; a new one is made at the start and when the service says that its key is another.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use hkdf::Hkdf;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use prost::Message;
use rand::RngExt;
use sha2::Sha256;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};

use super::local::{open_gcm, seal_gcm};
use super::{Failure, Provider};

/// How often the service is asked whether it is well and which key it uses.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// As long as it is not.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// What a key is made of besides the seed, in bytes.
const INFO: usize = 32;
/// How many seeds of the past are remembered.
const REMEMBERED: usize = 1000;
/// What lies beside every value may be no larger than this, in bytes.
const MAX_SEED: usize = 1024;
const MAX_KEY_ID: usize = 1024;
const MAX_ANNOTATIONS: usize = 32 * 1024;

/// How a seed is used: as AES-GCM's key itself, as before v1.29, or to make keys of.
const TYPE_KEY: i32 = 0;
const TYPE_SEED: i32 = 1;

/// What is stored (`EncryptedObject`).
#[derive(Clone, PartialEq, prost::Message)]
struct Stored {
    #[prost(bytes = "vec", tag = "1")]
    data: Vec<u8>,
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(bytes = "vec", tag = "3")]
    seed: Vec<u8>,
    #[prost(btree_map = "string, bytes", tag = "4")]
    annotations: BTreeMap<String, Vec<u8>>,
    #[prost(int32, tag = "5")]
    seed_type: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    healthz: String,
    #[prost(string, tag = "3")]
    key_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DecryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    key_id: String,
    #[prost(btree_map = "string, bytes", tag = "4")]
    annotations: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DecryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    plaintext: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EncryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    plaintext: Vec<u8>,
    #[prost(string, tag = "2")]
    uid: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EncryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(btree_map = "string, bytes", tag = "3")]
    annotations: BTreeMap<String, Vec<u8>>,
}

/// A seed as only the service can read it: its encrypted form, the service's key, and what the service wants to be told.
type Sealed = (Vec<u8>, String, BTreeMap<String, Vec<u8>>);

/// The seed that is written with.
#[derive(Clone)]
struct Seed {
    plain: Vec<u8>,
    encrypted: EncryptResponse,
}

pub(super) struct Kms {
    name: String,
    prefix: Vec<u8>,
    channel: Channel,
    timeout: Duration,
    /// One at a time makes a seed.
    making: tokio::sync::Mutex<()>,
    current: Mutex<Option<Seed>>,
    known: Mutex<HashMap<Sealed, Vec<u8>>>,
    /// What the service last said of itself: its key, or why it is not well. `None`: it was not asked yet.
    health: Mutex<Option<Result<String, String>>>,
}

impl Kms {
    /// Begins to ask the service at a socket how it is; that ends with the last user of this.
    pub(super) fn start(name: &str, socket: PathBuf, timeout: Duration) -> Arc<Self> {
        let channel =
            Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let socket = socket.clone();
                async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(socket).await?)) }
            }));
        let kms = Arc::new(Kms {
            name: name.to_owned(),
            prefix: format!("k8s:enc:kms:v2:{name}:").into_bytes(),
            channel,
            timeout,
            making: tokio::sync::Mutex::new(()),
            current: Mutex::default(),
            known: Mutex::default(),
            health: Mutex::default(),
        });
        tokio::spawn(watch(Arc::downgrade(&kms)));
        kms
    }

    async fn call<Q, A>(&self, method: &'static str, question: Q) -> Result<A, Failure>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        let asked = async {
            client.ready().await.map_err(|e| Failure::Unreachable(e.to_string()))?;
            let path = PathAndQuery::from_static(method);
            let codec = tonic_prost::ProstCodec::<Q, A>::default();
            let answer = client.unary(tonic::Request::new(question), path, codec).await;
            answer.map(tonic::Response::into_inner).map_err(|status| failure_of(&status))
        };
        let late = |_| Failure::Unreachable("context deadline exceeded".to_owned());
        tokio::time::timeout(self.timeout, asked).await.map_err(late)?
    }

    /// Asks the service how it is; with another key of its comes a new seed.
    async fn look(&self) -> Result<String, String> {
        let asked = self.call("/v2.KeyManagementService/Status", StatusRequest {}).await;
        let status: StatusResponse = asked.map_err(String::from)?;
        if !matches!(status.version.as_str(), "v2" | "v2beta1") {
            return Err(format!("expected KMSv2 API version v2, got {}", status.version));
        }
        if status.healthz != "ok" {
            return Err(format!("got unexpected healthz status: {}", status.healthz));
        }
        if status.key_id.is_empty() {
            return Err("invalid KMSv2 key ID: keyID is empty".to_owned());
        }
        let outdated = self.current.lock().as_ref().is_some_and(|seed| seed.encrypted.key_id != status.key_id);
        if outdated {
            *self.current.lock() = None;
        }
        Ok(status.key_id)
    }

    async fn seed(&self) -> Result<Seed, String> {
        let current = || self.current.lock().clone();
        if let Some(seed) = current() {
            return Ok(seed);
        }
        let _making = self.making.lock().await;
        if let Some(seed) = current() {
            return Ok(seed);
        }
        let plain: [u8; 32] = rand::rng().random();
        let request = EncryptRequest { plaintext: plain.to_vec(), uid: uuid::Uuid::new_v4().to_string() };
        let encrypted: EncryptResponse = self
            .call("/v2.KeyManagementService/Encrypt", request)
            .await
            .map_err(|why| format!("failed to encrypt DEK, error: {}", String::from(why)))?;
        check_encrypted(&encrypted)?;
        let known = matches!(&*self.health.lock(), Some(Ok(key)) if *key == encrypted.key_id);
        if !known {
            // It may have changed its key just now.
            let key = self.look().await?;
            if key != encrypted.key_id {
                return Err("failed to rotate DEK: the status and the encryption are of different key IDs".to_owned());
            }
        }
        let seed = Seed { plain: plain.to_vec(), encrypted };
        let EncryptResponse { ciphertext, key_id, annotations } = seed.encrypted.clone();
        self.remember((ciphertext, key_id, annotations), seed.plain.clone());
        *self.current.lock() = Some(seed.clone());
        Ok(seed)
    }

    fn remember(&self, encrypted: Sealed, plain: Vec<u8>) {
        let mut known = self.known.lock();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(encrypted, plain);
    }

    async fn seed_of(&self, stored: &Stored) -> Result<Vec<u8>, Failure> {
        let sealed = (stored.seed.clone(), stored.key_id.clone(), stored.annotations.clone());
        if let Some(seed) = self.known.lock().get(&sealed) {
            return Ok(seed.clone());
        }
        let (ciphertext, key_id, annotations) = sealed.clone();
        let request = DecryptRequest { ciphertext, uid: uuid::Uuid::new_v4().to_string(), key_id, annotations };
        let told = |why: String| format!("failed to decrypt DEK, error: {why}");
        let answer: DecryptResponse =
            self.call("/v2.KeyManagementService/Decrypt", request).await.map_err(|failure| match failure {
                Failure::Unreachable(why) => Failure::Unreachable(told(why)),
                Failure::Unreadable(why) => Failure::Unreadable(told(why)),
            })?;
        self.remember(sealed, answer.plaintext.clone());
        Ok(answer.plaintext)
    }
}

/// Keeps asking the service how it is, as long as somebody uses it.
async fn watch(kms: Weak<Kms>) {
    loop {
        let Some(used) = kms.upgrade() else { return };
        let health = used.look().await;
        if let Err(why) = &health {
            tracing::warn!(kms = used.name, why, "a key-management service is not well");
        }
        let pause = if health.is_ok() { ASK_EVERY } else { ASK_AGAIN };
        *used.health.lock() = Some(health);
        drop(used);
        tokio::time::sleep(pause).await;
    }
}

/// Is that fit to lie beside every value?
fn check_encrypted(answer: &EncryptResponse) -> Result<(), String> {
    let seed = |why: &str| Err(format!("failed to validate encrypted DEK source: encrypted DEK source is {why}"));
    let key_id = |why: &str| Err(format!("failed to validate key id: keyID is {why}"));
    let too_long = |size: usize, max: usize| format!("{size} bytes, which exceeds the max size of {max}");
    let annotations: usize = answer.annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    match (answer.ciphertext.len(), answer.key_id.len()) {
        (0, _) => seed("empty"),
        (size, _) if size > MAX_SEED => seed(&too_long(size, MAX_SEED)),
        (_, 0) => key_id("empty"),
        (_, size) if size > MAX_KEY_ID => key_id(&too_long(size, MAX_KEY_ID)),
        _ if annotations > MAX_ANNOTATIONS => Err(format!(
            "failed to validate annotations: total size of annotations is {}",
            too_long(annotations, MAX_ANNOTATIONS)
        )),
        _ => Ok(()),
    }
}

/// Most services that cannot reach their own keys say so with codes that mean nothing in particular.
fn failure_of(status: &tonic::Status) -> Failure {
    match status.code() {
        Code::InvalidArgument | Code::NotFound | Code::OutOfRange | Code::DataLoss | Code::Unimplemented => {
            Failure::Unreadable(status.to_string())
        }
        _ => Failure::Unreachable(status.to_string()),
    }
}

/// The key of one value.
fn key_of(seed: &[u8], info: &[u8]) -> Result<[u8; 32], String> {
    let made = Hkdf::<Sha256>::from_prk(seed).map_err(|_| format!("invalid seed length {}", seed.len()))?;
    let mut key = [0; 32];
    made.expand(info, &mut key).map_err(|e| e.to_string())?;
    Ok(key)
}

fn open(seed: &[u8], stored: &Stored, place: &[u8]) -> Result<Vec<u8>, String> {
    match stored.seed_type {
        TYPE_KEY => open_gcm(seed, &stored.data, place),
        TYPE_SEED => {
            let (info, sealed) =
                stored.data.split_at_checked(INFO).ok_or("the stored data was shorter than the required size")?;
            open_gcm(&key_of(seed, info)?, sealed, place)
        }
        other => Err(format!("unknown type {other} of an encrypted key")),
    }
}

#[async_trait]
impl Provider for Kms {
    fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    async fn encrypt(&self, data: &[u8], place: &[u8]) -> Result<Vec<u8>, String> {
        let seed = self.seed().await?;
        let info: [u8; INFO] = rand::rng().random();
        let sealed = seal_gcm(&key_of(&seed.plain, &info)?, data, place)?;
        let stored = Stored {
            data: [&info[..], &sealed].concat(),
            key_id: seed.encrypted.key_id,
            seed: seed.encrypted.ciphertext,
            annotations: seed.encrypted.annotations,
            seed_type: TYPE_SEED,
        };
        Ok([&self.prefix[..], &stored.encode_to_vec()].concat())
    }

    async fn decrypt(&self, data: &[u8], place: &[u8]) -> Result<Vec<u8>, Failure> {
        let stored =
            Stored::decode(data).map_err(|e| Failure::Unreadable(format!("failed to proto decode data: {e}")))?;
        let seed = self.seed_of(&stored).await?;
        open(&seed, &stored, place).map_err(Failure::Unreadable)
    }

    async fn is_stale(&self, data: &[u8]) -> bool {
        let Ok(stored) = Stored::decode(data) else { return true };
        match self.seed().await {
            Ok(seed) => stored.key_id != seed.encrypted.key_id || stored.seed_type != TYPE_SEED,
            Err(_) => false,
        }
    }

    async fn check(&self) -> Result<(), String> {
        match &*self.health.lock() {
            Some(Ok(_)) => Ok(()),
            Some(Err(why)) => Err(format!(
                "failed to perform status section of the healthz check for KMS Provider {}, error: {why}",
                self.name
            )),
            None => Err(format!("the KMS Provider {} was not asked yet", self.name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(seed: usize, key_id: &str, annotation: usize, want: Result<(), &str>) {
        let annotations = BTreeMap::from([("a.example".to_owned(), vec![0; annotation])]);
        let answer = EncryptResponse { ciphertext: vec![1; seed], key_id: key_id.to_owned(), annotations };
        assert_eq!(check_encrypted(&answer), want.map_err(str::to_owned));
    }

    #[test]
    fn what_cannot_be_kept_beside_a_value_is_refused() {
        check(1024, "k", 100, Ok(()));
        check(0, "k", 0, Err("failed to validate encrypted DEK source: encrypted DEK source is empty"));
        let long = "failed to validate encrypted DEK source: encrypted DEK source is 1025 bytes, which exceeds the max size of 1024";
        check(1025, "k", 0, Err(long));
        check(1, "", 0, Err("failed to validate key id: keyID is empty"));
        let much = "failed to validate annotations: total size of annotations is 32777 bytes, which exceeds the max size of 32768";
        check(1, "k", 32 * 1024, Err(much));
    }

    #[tokio::test]
    async fn a_seed_is_known_with_all_that_the_service_is_told() {
        let nobody = tempfile::tempdir().unwrap().path().join("kms.sock");
        let kms = Kms::start("k", nobody, Duration::from_secs(5));
        kms.remember((vec![1], "key-1".to_owned(), BTreeMap::new()), vec![7]);
        let stored = Stored { seed: vec![1], key_id: "key-1".to_owned(), ..Stored::default() };
        assert_eq!(kms.seed_of(&stored).await, Ok(vec![7]));
        let other = Stored { key_id: "key-2".to_owned(), ..stored };
        assert!(matches!(kms.seed_of(&other).await, Err(Failure::Unreachable(_))));
    }
}
