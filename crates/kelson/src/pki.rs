//! The cluster's certificates: one authority, one client certificate per component with upstream's user names, serving
//! certificates, and the key that signs service-account tokens.
//!
//! Every file is made once and kept; a leaf is made again when its addresses changed or when a third of its life is left.
//! Private keys are readable by their owner only.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

use crate::private_file;

const AUTHORITY_LIFE: Duration = Duration::days(3650);
const LEAF_LIFE: Duration = Duration::days(365);

/// What the certificates must say.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub node_name: String,
    /// Addresses at which the apiserver and the kubelet are reached from outside.
    pub addresses: Vec<IpAddr>,
    /// The first address of the service network, at which pods reach the apiserver.
    pub service_address: IpAddr,
    pub cluster_domain: String,
}

/// The directory `<data-dir>/pki` with everything in it made.
#[derive(Clone, Debug)]
pub(crate) struct Pki {
    dir: PathBuf,
}

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

struct Leaf<'a> {
    file: &'a str,
    common_name: String,
    organizations: &'a [&'a str],
    names: Vec<SanType>,
    usages: &'a [ExtendedKeyUsagePurpose],
}

impl Pki {
    /// Makes what is missing or about to expire.
    pub(crate) fn ensure(dir: &Path, identity: &Identity) -> Result<Self> {
        private_file::create_dir(dir)?;
        let pki = Pki { dir: dir.to_owned() };
        let authority = pki.ensure_authority("ca", "kubernetes-ca")?;
        let front_proxy = pki.ensure_authority("front-proxy-ca", "front-proxy-ca")?;
        for leaf in cluster_leaves(identity)? {
            pki.ensure_leaf(&leaf, &authority)?;
        }
        let proxy_client = client("front-proxy-client", "front-proxy-client", &[]);
        pki.ensure_leaf(&proxy_client, &front_proxy)?;
        pki.ensure_signing_key()?;
        Ok(pki)
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    pub(crate) fn pair(&self, name: &str) -> Pair {
        Pair { cert: self.dir.join(format!("{name}.crt")), key: self.dir.join(format!("{name}.key")) }
    }

    pub(crate) fn front_proxy_ca(&self) -> PathBuf {
        self.dir.join("front-proxy-ca.crt")
    }

    pub(crate) fn service_account_key(&self) -> PathBuf {
        self.dir.join("sa.key")
    }

    pub(crate) fn service_account_public_key(&self) -> PathBuf {
        self.dir.join("sa.pub")
    }

    fn ensure_authority(&self, file: &str, common_name: &str) -> Result<Issuer<'static, KeyPair>> {
        let Pair { cert, key } = self.pair(file);
        if !cert.exists() || !key.exists() {
            let mut params = CertificateParams::default();
            params.distinguished_name = name_of(common_name, &[]);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages =
                vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign];
            set_life(&mut params, AUTHORITY_LIFE);
            let pair = KeyPair::generate()?;
            let made = params.self_signed(&pair)?;
            private_file::write(&key, pair.serialize_pem().as_bytes())?;
            private_file::write_public(&cert, made.pem().as_bytes())?;
        }
        let pair = KeyPair::from_pem(&read(&key)?).with_context(|| format!("{} is no private key", key.display()))?;
        Issuer::from_ca_cert_pem(&read(&cert)?, pair)
            .with_context(|| format!("{} is no CA certificate", cert.display()))
    }

    fn ensure_leaf(&self, leaf: &Leaf<'_>, authority: &Issuer<'static, KeyPair>) -> Result<()> {
        let Pair { cert, key } = self.pair(leaf.file);
        if key.exists() && cert.exists() && still_good(&read(&cert)?, leaf, OffsetDateTime::now_utc()) {
            return Ok(());
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = name_of(&leaf.common_name, leaf.organizations);
        params.subject_alt_names.clone_from(&leaf.names);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = leaf.usages.to_vec();
        params.use_authority_key_identifier_extension = true;
        set_life(&mut params, LEAF_LIFE);
        let pair = KeyPair::generate()?;
        let made = params.signed_by(&pair, authority)?;
        private_file::write(&key, pair.serialize_pem().as_bytes())?;
        private_file::write_public(&cert, made.pem().as_bytes())
    }

    fn ensure_signing_key(&self) -> Result<()> {
        if !self.service_account_key().exists() {
            let pair = KeyPair::generate()?;
            private_file::write(&self.service_account_key(), pair.serialize_pem().as_bytes())?;
            private_file::write_public(&self.service_account_public_key(), pair.public_key_pem().as_bytes())?;
        }
        Ok(())
    }
}

/// Every certificate that the cluster's authority signs, with upstream's names.
fn cluster_leaves(identity: &Identity) -> Result<Vec<Leaf<'static>>> {
    let mut apiserver_names = Vec::new();
    let service = format!("kubernetes.default.svc.{}", identity.cluster_domain);
    for name in
        ["kubernetes", "kubernetes.default", "kubernetes.default.svc", &service, "localhost", &identity.node_name]
    {
        apiserver_names.push(SanType::DnsName(name.try_into()?));
    }
    let loopback = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
    let addresses = || identity.addresses.iter().copied().chain(loopback);
    apiserver_names.extend(addresses().map(SanType::IpAddress));
    apiserver_names.push(SanType::IpAddress(identity.service_address));
    let mut node_names = vec![SanType::DnsName(identity.node_name.as_str().try_into()?)];
    node_names.extend(addresses().map(SanType::IpAddress));

    let metrics_names = vec![SanType::DnsName("metrics-server.kube-system.svc".try_into()?)];

    Ok(vec![
        serving("metrics-server", "metrics-server".into(), &[], metrics_names),
        serving("apiserver", "kube-apiserver".into(), &[], apiserver_names),
        serving("kubelet-serving", format!("system:node:{}", identity.node_name), &["system:nodes"], node_names),
        client("kubelet", &format!("system:node:{}", identity.node_name), &["system:nodes"]),
        client("apiserver-kubelet-client", "kube-apiserver-kubelet-client", &["system:masters"]),
        client("admin", "kubernetes-admin", &["system:masters"]),
        client("controller-manager", "system:kube-controller-manager", &[]),
        client("scheduler", "system:kube-scheduler", &[]),
        client("kube-proxy", "system:kube-proxy", &[]),
        client("pod-network", "system:pod-network", &[]),
        client("local-path-provisioner", "system:local-path-provisioner", &[]),
    ])
}

fn serving(
    file: &'static str,
    common_name: String,
    organizations: &'static [&'static str],
    names: Vec<SanType>,
) -> Leaf<'static> {
    Leaf { file, common_name, organizations, names, usages: &[ExtendedKeyUsagePurpose::ServerAuth] }
}

fn client(file: &'static str, common_name: &str, organizations: &'static [&'static str]) -> Leaf<'static> {
    let usages = &[ExtendedKeyUsagePurpose::ClientAuth];
    Leaf { file, common_name: common_name.to_owned(), organizations, names: Vec::new(), usages }
}

fn name_of(common_name: &str, organizations: &[&str]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for organization in organizations {
        name.push(DnType::OrganizationName, *organization);
    }
    name.push(DnType::CommonName, common_name);
    name
}

fn set_life(params: &mut CertificateParams, life: Duration) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::minutes(5); // tolerates clocks that are a little behind
    params.not_after = now + life;
}

/// Whether a certificate on disk still serves: a third of its life is left and it names all that it must.
fn still_good(pem: &str, leaf: &Leaf<'_>, now: OffsetDateTime) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(pem.as_bytes()) else { return false };
    let Ok(cert) = pem.parse_x509() else { return false };
    let validity = cert.validity();
    let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    if until - now.unix_timestamp() < (until - from) / 3 {
        return false;
    }
    let same_name = cert.subject().iter_common_name().any(|cn| cn.as_str() == Ok(leaf.common_name.as_str()));
    let Ok(sans) = cert.subject_alternative_name() else { return false };
    let named: Vec<String> =
        sans.map(|s| s.value.general_names.iter().filter_map(text_of).collect()).unwrap_or_default();
    same_name
        && leaf.names.iter().all(|want| match want {
            SanType::DnsName(name) => named.iter().any(|n| n == name.as_str()),
            SanType::IpAddress(ip) => named.contains(&ip.to_string()),
            _ => true,
        })
}

fn text_of(name: &x509_parser::extensions::GeneralName<'_>) -> Option<String> {
    match name {
        x509_parser::extensions::GeneralName::DNSName(n) => Some((*n).to_owned()),
        x509_parser::extensions::GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            _ => None,
        },
        _ => None,
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(address: [u8; 4]) -> Identity {
        Identity {
            node_name: "node1".into(),
            addresses: vec![IpAddr::from(address)],
            service_address: IpAddr::from([10, 96, 0, 1]),
            cluster_domain: "cluster.local".into(),
        }
    }

    #[test]
    fn certificates_are_kept_until_an_address_changes() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::ensure(dir.path(), &identity([192, 0, 2, 1])).unwrap();
        let (ca, server, admin) = (read(&pki.ca()), read(&pki.pair("apiserver").cert), read(&pki.pair("admin").cert));
        let again = Pki::ensure(dir.path(), &identity([192, 0, 2, 1])).unwrap();
        assert_eq!(read(&again.pair("apiserver").cert).unwrap(), *server.as_ref().unwrap());
        let moved = Pki::ensure(dir.path(), &identity([192, 0, 2, 2])).unwrap();
        assert_ne!(read(&moved.pair("apiserver").cert).unwrap(), server.unwrap());
        assert_eq!(read(&moved.pair("admin").cert).unwrap(), admin.unwrap());
        assert_eq!(read(&moved.ca()).unwrap(), ca.unwrap());
    }

    #[test]
    fn a_leaf_is_renewed_when_a_third_of_its_life_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::ensure(dir.path(), &identity([192, 0, 2, 1])).unwrap();
        let pem = read(&pki.pair("admin").cert).unwrap();
        let leaf = client("admin", "kubernetes-admin", &["system:masters"]);
        let now = OffsetDateTime::now_utc();
        assert!(still_good(&pem, &leaf, now + Duration::days(200)));
        assert!(!still_good(&pem, &leaf, now + Duration::days(250)));
    }

    #[test]
    fn private_keys_are_for_their_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::ensure(dir.path(), &identity([192, 0, 2, 1])).unwrap();
        for key in [pki.pair("ca").key, pki.pair("admin").key, pki.service_account_key()] {
            assert_eq!(std::fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
