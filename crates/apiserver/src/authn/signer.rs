//! The keys of service-account tokens: signing, verifying, and the documents by which others verify (RFC 7517, OpenID
//! Connect Discovery).

use std::path::Path;

use apimachinery::Value;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot read {path}: {why}")]
    Read { path: String, why: String },
    #[error("{path} holds no key that can be used for tokens: {why}")]
    Unusable { path: String, why: String },
}

/// A public key that tokens are verified with.
pub struct VerifyingKey {
    pub id: String,
    algorithm: Algorithm,
    key: DecodingKey,
    jwk: Value,
}

/// The private key that tokens are signed with.
pub struct Signer {
    id: String,
    algorithm: Algorithm,
    key: EncodingKey,
}

/// Upstream's key id: the SHA-256 of the public key's DER, in URL-safe base64.
fn key_id(spki: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(spki))
}

impl VerifyingKey {
    /// All public keys of a PEM file; of a private key in it, its public part.
    ///
    /// # Errors
    /// When the file holds none.
    pub fn load(path: &Path) -> Result<Vec<Self>, KeyError> {
        let shown = path.display().to_string();
        let text =
            std::fs::read_to_string(path).map_err(|e| KeyError::Read { path: shown.clone(), why: e.to_string() })?;
        let unusable = |why: &str| KeyError::Unusable { path: shown.clone(), why: why.to_owned() };
        let mut keys = Vec::new();
        for pem in x509_parser::pem::Pem::iter_from_buffer(text.as_bytes()).filter_map(Result::ok) {
            let spki = match pem.label.as_str() {
                "PUBLIC KEY" => pem.contents,
                "RSA PUBLIC KEY" => wrap_rsa(&pem.contents),
                "CERTIFICATE" => {
                    let (_, cert) =
                        x509_parser::parse_x509_certificate(&pem.contents).map_err(|e| unusable(&e.to_string()))?;
                    cert.public_key().raw.to_vec()
                }
                label if label.ends_with("PRIVATE KEY") => {
                    public_part(&pem.contents, label).ok_or_else(|| unusable("its private key cannot be read"))?
                }
                _ => continue,
            };
            keys.push(VerifyingKey::of_spki(&spki).ok_or_else(|| unusable("neither RSA nor an elliptic curve"))?);
        }
        if keys.is_empty() { Err(unusable("no PEM block is a key")) } else { Ok(keys) }
    }

    fn of_spki(spki: &[u8]) -> Option<Self> {
        let (_, parsed) = SubjectPublicKeyInfo::from_der(spki).ok()?;
        let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let id = key_id(spki);
        let (algorithm, key, mut jwk) = match parsed.parsed().ok()? {
            PublicKey::RSA(rsa) => {
                let modulus = strip_zero(rsa.modulus);
                let key = DecodingKey::from_rsa_raw_components(modulus, rsa.exponent);
                let jwk = Value::from([
                    ("kty", "RSA".into()),
                    ("alg", "RS256".into()),
                    ("n", b64(modulus).into()),
                    ("e", b64(strip_zero(rsa.exponent)).into()),
                ]);
                (Algorithm::RS256, key, jwk)
            }
            PublicKey::EC(point) => {
                let (algorithm, name, curve, size) = match point.key_size() {
                    256 => (Algorithm::ES256, "ES256", "P-256", 32),
                    384 => (Algorithm::ES384, "ES384", "P-384", 48),
                    _ => return None,
                };
                let data = point.data().get(1..).filter(|d| d.len() == 2 * size)?;
                let (x, y) = (b64(&data[..size]), b64(&data[size..]));
                let key = DecodingKey::from_ec_components(&x, &y).ok()?;
                let jwk = Value::from([
                    ("kty", "EC".into()),
                    ("alg", name.into()),
                    ("crv", curve.into()),
                    ("x", x.into()),
                    ("y", y.into()),
                ]);
                (algorithm, key, jwk)
            }
            _ => return None,
        };
        jwk.set(&["use"], "sig");
        jwk.set(&["kid"], id.as_str());
        Some(VerifyingKey { id, algorithm, key, jwk })
    }

    /// The claims of a token that this key signed; its times and audiences are the caller's business.
    #[must_use]
    pub fn verify(&self, token: &str) -> Option<Value> {
        let mut validation = Validation::new(self.algorithm);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        jsonwebtoken::decode::<Value>(token, &self.key, &validation).ok().map(|data| data.claims)
    }
}

fn strip_zero(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(&[0]).unwrap_or(bytes)
}

/// A PKCS#1 public key as SubjectPublicKeyInfo: the algorithm `rsaEncryption` around it.
fn wrap_rsa(pkcs1: &[u8]) -> Vec<u8> {
    const RSA_ENCRYPTION: &[u8] =
        &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
    let mut bits = vec![0];
    bits.extend_from_slice(pkcs1);
    let inner = [RSA_ENCRYPTION, &der(0x03, &bits)].concat();
    der(0x30, &inner)
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let n = content.len();
    if n < 128 {
        out.extend(u8::try_from(n).ok());
    } else {
        let bytes: Vec<u8> = n.to_be_bytes().into_iter().skip_while(|b| *b == 0).collect();
        out.extend(u8::try_from(0x80 | bytes.len()).ok());
        out.extend(bytes);
    }
    out.extend_from_slice(content);
    out
}

/// The public part of a private key, through the TLS library's own reading of it.
fn public_part(contents: &[u8], label: &str) -> Option<Vec<u8>> {
    let key = match label {
        "RSA PRIVATE KEY" => PrivateKeyDer::Pkcs1(contents.to_vec().into()),
        "EC PRIVATE KEY" => PrivateKeyDer::Sec1(contents.to_vec().into()),
        _ => PrivateKeyDer::Pkcs8(contents.to_vec().into()),
    };
    let signing = rustls::crypto::ring::sign::any_supported_type(&key).ok()?;
    signing.public_key().map(|spki| spki.as_ref().to_vec())
}

impl Signer {
    /// # Errors
    /// When the file holds no RSA or elliptic-curve key.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let shown = path.display().to_string();
        let unusable = |why: &str| KeyError::Unusable { path: shown.clone(), why: why.to_owned() };
        let pem = std::fs::read(path).map_err(|e| KeyError::Read { path: shown.clone(), why: e.to_string() })?;
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| unusable(&e.to_string()))?;
        let signing = rustls::crypto::ring::sign::any_supported_type(&key).map_err(|e| unusable(&e.to_string()))?;
        let public = signing.public_key().ok_or_else(|| unusable("it has no public part"))?;
        let verifying =
            VerifyingKey::of_spki(public.as_ref()).ok_or_else(|| unusable("neither RSA nor an elliptic curve"))?;
        let key = match verifying.algorithm {
            Algorithm::RS256 => EncodingKey::from_rsa_pem(&pem),
            _ => EncodingKey::from_ec_pem(&pem),
        };
        Ok(Signer { id: verifying.id, algorithm: verifying.algorithm, key: key.map_err(|e| unusable(&e.to_string()))? })
    }

    /// # Errors
    /// When the key refuses; the text is for the log.
    pub fn sign(&self, claims: &Value) -> Result<String, String> {
        let mut header = Header::new(self.algorithm);
        header.typ = None;
        header.kid = Some(self.id.clone());
        jsonwebtoken::encode(&header, claims, &self.key).map_err(|e| e.to_string())
    }
}

/// `/openid/v1/jwks`
#[must_use]
pub fn key_set(keys: &[VerifyingKey]) -> Value {
    Value::from([("keys", Value::Array(keys.iter().map(|k| k.jwk.clone()).collect()))])
}

/// `/.well-known/openid-configuration`
#[must_use]
pub fn discovery_document(issuer: &str, jwks_uri: &str, keys: &[VerifyingKey]) -> Value {
    let mut algorithms: Vec<&str> = keys.iter().map(|k| k.jwk.str_at(&["alg"])).collect();
    algorithms.sort_unstable();
    algorithms.dedup();
    let list = |items: &[&str]| Value::Array(items.iter().map(|i| Value::from(*i)).collect());
    Value::from([
        ("issuer", issuer.into()),
        ("jwks_uri", jwks_uri.into()),
        ("response_types_supported", list(&["id_token"])),
        ("subject_types_supported", list(&["public"])),
        ("id_token_signing_alg_values_supported", list(&algorithms)),
    ])
}
