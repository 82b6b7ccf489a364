//! Providers whose keys are in the configuration.

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::aes::cipher::block_padding::Pkcs7;
use aes_gcm::aes::cipher::consts::U12;
use aes_gcm::aes::cipher::{BlockDecryptMut, BlockEncryptMut, KeyIvInit};
use aes_gcm::aes::{Aes128, Aes192, Aes256};
use aes_gcm::{AesGcm, KeyInit};
use async_trait::async_trait;
use crypto_secretbox::XSalsa20Poly1305;
use rand::RngExt;

use super::{Failure, Provider};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cipher {
    AesGcm,
    AesCbc,
    Secretbox,
}

impl Cipher {
    /// As configurations and stored values have it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Cipher::AesGcm => "aesgcm",
            Cipher::AesCbc => "aescbc",
            Cipher::Secretbox => "secretbox",
        }
    }

    /// In bytes.
    pub(super) fn key_sizes(self) -> &'static [usize] {
        match self {
            Cipher::AesGcm | Cipher::AesCbc => &[16, 24, 32],
            Cipher::Secretbox => &[32],
        }
    }

    fn encrypt(self, key: &[u8], data: &[u8], place: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Cipher::AesGcm => seal_gcm(key, data, place),
            Cipher::AesCbc => encrypt_cbc(key, data),
            Cipher::Secretbox => {
                let cipher = XSalsa20Poly1305::new_from_slice(key).map_err(|e| e.to_string())?;
                let nonce: [u8; 24] = rand::rng().random();
                let sealed = cipher.encrypt(&nonce.into(), data).map_err(|e| e.to_string())?;
                Ok([&nonce[..], &sealed].concat())
            }
        }
    }

    fn decrypt(self, key: &[u8], data: &[u8], place: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Cipher::AesGcm => open_gcm(key, data, place),
            Cipher::AesCbc => decrypt_cbc(key, data),
            Cipher::Secretbox => {
                let cipher = XSalsa20Poly1305::new_from_slice(key).map_err(|e| e.to_string())?;
                let (nonce, sealed) = split(data, 24)?;
                cipher
                    .decrypt(nonce.into(), sealed)
                    .map_err(|_| "output array was not large enough for encryption".to_owned())
            }
        }
    }
}

/// Keys of one cipher, the one that is written with first.
pub(super) struct Local {
    cipher: Cipher,
    prefix: Vec<u8>,
    keys: Vec<(String, Vec<u8>)>,
}

impl Local {
    pub(super) fn new(cipher: Cipher, keys: Vec<(String, Vec<u8>)>) -> Self {
        Local { cipher, prefix: format!("k8s:enc:{}:v1:", cipher.name()).into_bytes(), keys }
    }

    /// The index of the key that a value names, and the rest.
    fn key_of<'d>(&self, data: &'d [u8]) -> Option<(usize, &'d [u8])> {
        self.keys.iter().enumerate().find_map(|(i, (name, _))| {
            let rest = data.strip_prefix(name.as_bytes())?.strip_prefix(b":")?;
            Some((i, rest))
        })
    }
}

#[async_trait]
impl Provider for Local {
    fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    async fn encrypt(&self, data: &[u8], place: &[u8]) -> Result<Vec<u8>, String> {
        let (name, key) = self.keys.first().ok_or("there is no key")?;
        let encrypted = self.cipher.encrypt(key, data, place)?;
        Ok([&self.prefix[..], name.as_bytes(), b":", &encrypted].concat())
    }

    async fn decrypt(&self, data: &[u8], place: &[u8]) -> Result<Vec<u8>, Failure> {
        let no_key = || format!("no matching key was found for the provided {} transformer", self.cipher.name());
        let (i, rest) = self.key_of(data).ok_or_else(|| Failure::Unreadable(no_key()))?;
        self.cipher.decrypt(&self.keys[i].1, rest, place).map_err(Failure::Unreadable)
    }

    async fn is_stale(&self, data: &[u8]) -> bool {
        self.key_of(data).is_none_or(|(i, _)| i != 0)
    }
}

fn split(data: &[u8], at: usize) -> Result<(&[u8], &[u8]), String> {
    data.split_at_checked(at).ok_or_else(|| "the stored data was shorter than the required size".to_owned())
}

/// AES-GCM with a random nonce in front, bound to a place.
pub(super) fn seal_gcm(key: &[u8], data: &[u8], place: &[u8]) -> Result<Vec<u8>, String> {
    let nonce: [u8; 12] = rand::rng().random();
    let payload = Payload { msg: data, aad: place };
    let nonce_of = &nonce.into();
    let sealed = match key.len() {
        16 => gcm::<Aes128>(key)?.encrypt(nonce_of, payload),
        24 => gcm::<Aes192>(key)?.encrypt(nonce_of, payload),
        _ => gcm::<Aes256>(key)?.encrypt(nonce_of, payload),
    };
    Ok([&nonce[..], &sealed.map_err(|e| e.to_string())?].concat())
}

pub(super) fn open_gcm(key: &[u8], data: &[u8], place: &[u8]) -> Result<Vec<u8>, String> {
    let (nonce, sealed) = split(data, 12)?;
    let payload = Payload { msg: sealed, aad: place };
    let nonce = nonce.into();
    let opened = match key.len() {
        16 => gcm::<Aes128>(key)?.decrypt(nonce, payload),
        24 => gcm::<Aes192>(key)?.decrypt(nonce, payload),
        _ => gcm::<Aes256>(key)?.decrypt(nonce, payload),
    };
    opened.map_err(|_| "cipher: message authentication failed".to_owned())
}

fn gcm<A>(key: &[u8]) -> Result<AesGcm<A, U12>, String>
where
    AesGcm<A, U12>: KeyInit,
{
    AesGcm::<A, U12>::new_from_slice(key).map_err(|e| e.to_string())
}

/// AES-CBC with a random vector in front. It does not tell whether somebody has changed the value.
fn encrypt_cbc(key: &[u8], data: &[u8]) -> Result<Vec<u8>, String> {
    let vector: [u8; 16] = rand::rng().random();
    let wrong = |e: aes_gcm::aes::cipher::InvalidLength| e.to_string();
    let encrypted = match key.len() {
        16 => cbc::Encryptor::<Aes128>::new_from_slices(key, &vector)
            .map_err(wrong)?
            .encrypt_padded_vec_mut::<Pkcs7>(data),
        24 => cbc::Encryptor::<Aes192>::new_from_slices(key, &vector)
            .map_err(wrong)?
            .encrypt_padded_vec_mut::<Pkcs7>(data),
        _ => cbc::Encryptor::<Aes256>::new_from_slices(key, &vector)
            .map_err(wrong)?
            .encrypt_padded_vec_mut::<Pkcs7>(data),
    };
    Ok([&vector[..], &encrypted].concat())
}

fn decrypt_cbc(key: &[u8], data: &[u8]) -> Result<Vec<u8>, String> {
    let (vector, encrypted) = split(data, 16)?;
    let wrong = |e: aes_gcm::aes::cipher::InvalidLength| e.to_string();
    let opened = match key.len() {
        16 => cbc::Decryptor::<Aes128>::new_from_slices(key, vector)
            .map_err(wrong)?
            .decrypt_padded_vec_mut::<Pkcs7>(encrypted),
        24 => cbc::Decryptor::<Aes192>::new_from_slices(key, vector)
            .map_err(wrong)?
            .decrypt_padded_vec_mut::<Pkcs7>(encrypted),
        _ => cbc::Decryptor::<Aes256>::new_from_slices(key, vector)
            .map_err(wrong)?
            .decrypt_padded_vec_mut::<Pkcs7>(encrypted),
    };
    opened.map_err(|_| "invalid padding on input".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_encrypted_can_be_read_in_its_place_only() {
        for cipher in [Cipher::AesGcm, Cipher::AesCbc, Cipher::Secretbox] {
            for size in cipher.key_sizes() {
                let local =
                    Local::new(cipher, vec![("k1".to_owned(), vec![1; *size]), ("k2".to_owned(), vec![2; *size])]);
                let value = local.encrypt(b"hello", b"/here").await.unwrap();
                let start = format!("k8s:enc:{}:v1:k1:", cipher.name());
                assert!(value.starts_with(start.as_bytes()) && !value.ends_with(b"hello"));
                let data = &value[local.prefix().len()..];
                assert_eq!(local.decrypt(data, b"/here").await.unwrap(), b"hello");
                assert_eq!(local.decrypt(data, b"/there").await.is_ok(), cipher != Cipher::AesGcm);
                assert!(!local.is_stale(data).await);
                assert!(local.decrypt(&data[..10], b"/here").await.is_err());
                // The keys in the other order: it can still be read, but would be written differently.
                let turned =
                    Local::new(cipher, vec![("k2".to_owned(), vec![2; *size]), ("k1".to_owned(), vec![1; *size])]);
                assert_eq!(turned.decrypt(data, b"/here").await.unwrap(), b"hello");
                assert!(turned.is_stale(data).await);
                let lost = Local::new(cipher, vec![("k3".to_owned(), vec![1; *size])]);
                assert!(lost.decrypt(data, b"/here").await.is_err());
            }
        }
    }

    /// As Go's `secretbox.Seal` lays it out: nonce, tag, text. From NaCl's own test vector.
    #[test]
    fn boxes_are_those_of_nacl() {
        let key = "1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389";
        let nonce = "69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37";
        let bytes = |hex: &str| -> Vec<u8> {
            (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
        };
        let text = bytes(
            "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffce5ecbaaf33bd751a1ac728d45e6c61296cdc3c01233561f41db66cce314adb310e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f21af1fde048977eb48f59ffd4924ca1c60902e52f0a089bc76897040e082f937763848645e0705",
        );
        let cipher = XSalsa20Poly1305::new_from_slice(&bytes(key)).unwrap();
        let nonce = bytes(nonce);
        let sealed = cipher.encrypt(nonce.as_slice().into(), text.as_slice()).unwrap();
        assert_eq!(sealed[..16], bytes("f3ffc7703f9400e52a7dfb4b3d3305d9")[..]);
    }
}
