//! What a request asks for, and what each of the cluster's signers lets through.

use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;
use rcgen::{CertificateSigningRequestParams, DnType, DnValue, ExtendedKeyUsagePurpose, KeyUsagePurpose, SanType};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};

pub(super) const KUBE_APISERVER_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub(super) const KUBE_APISERVER_CLIENT_KUBELET: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub(super) const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
pub(super) const LEGACY_UNKNOWN: &str = "kubernetes.io/legacy-unknown";

/// A request that could be read, and whose signature is that of the key in it.
pub(super) struct Request {
    pub(super) params: CertificateSigningRequestParams,
    organizations: Vec<String>,
    common_name: String,
}

impl Request {
    pub(super) fn parse(spec: &CertificateSigningRequestSpec) -> Result<Self, String> {
        let text = std::str::from_utf8(&spec.request.0).map_err(|_| "request is not PEM".to_owned())?;
        let params = CertificateSigningRequestParams::from_pem(text)
            .map_err(|err| format!("unable to parse csr \"\": {err}"))?;
        let common_name = match params.params.distinguished_name.get(&DnType::CommonName) {
            Some(name) => text_of(name),
            None => String::new(),
        };
        // The parameters keep one organization only.
        let organizations = organizations(text).ok_or_else(|| "request is not a PKCS#10 request".to_owned())?;
        Ok(Self { params, organizations, common_name })
    }

    /// Whether it is a kubelet's request for a client certificate of its node.
    pub(super) fn is_node_client(&self, usages: &[String]) -> bool {
        self.validate_kubelet_client(usages).is_ok()
    }

    /// The user that the certificate is for.
    pub(super) fn common_name(&self) -> &str {
        &self.common_name
    }

    /// What the signer has against it, in upstream's words.
    pub(super) fn validate(&self, signer: &str, usages: &[String]) -> Result<(), String> {
        match signer {
            KUBE_APISERVER_CLIENT => {
                let known = ["client auth", "digital signature", "key encipherment"];
                let foreign: Vec<_> = usages.iter().filter(|usage| !known.contains(&usage.as_str())).cloned().collect();
                if !foreign.is_empty() {
                    return Err(format!("invalid usages for client certificate: {}", foreign.join(",")));
                }
                if usages.iter().any(|usage| usage == "client auth") {
                    Ok(())
                } else {
                    Err("missing required usage for client certificate: client auth".to_owned())
                }
            }
            KUBE_APISERVER_CLIENT_KUBELET => self.validate_kubelet_client(usages).map_err(str::to_owned),
            KUBELET_SERVING => self.validate_kubelet_serving(usages).map_err(str::to_owned),
            LEGACY_UNKNOWN => Ok(()),
            other => Err(format!("unrecognized signerName: {other:?}")),
        }
    }

    fn validate_node(&self) -> Result<(), &'static str> {
        if self.organizations != ["system:nodes"] {
            return Err("subject organization is not system:nodes");
        }
        if !self.common_name.starts_with("system:node:") {
            return Err("subject common name does not begin with system:node:");
        }
        Ok(())
    }

    fn validate_kubelet_client(&self, usages: &[String]) -> Result<(), &'static str> {
        self.validate_node()?;
        if let Some(name) = self.params.params.subject_alt_names.first() {
            return Err(match name {
                SanType::DnsName(_) => "DNS subjectAltNames are not allowed",
                SanType::Rfc822Name(_) => "Email subjectAltNames are not allowed",
                SanType::IpAddress(_) => "IP subjectAltNames are not allowed",
                _ => "URI subjectAltNames are not allowed",
            });
        }
        if is_exactly(usages, "client auth") { Ok(()) } else { Err("usages did not match") }
    }

    fn validate_kubelet_serving(&self, usages: &[String]) -> Result<(), &'static str> {
        self.validate_node()?;
        let names = &self.params.params.subject_alt_names;
        if names.is_empty() {
            return Err("DNS or IP subjectAltName is required");
        }
        for name in names {
            match name {
                SanType::DnsName(_) | SanType::IpAddress(_) => {}
                SanType::Rfc822Name(_) => return Err("Email subjectAltNames are not allowed"),
                _ => return Err("URI subjectAltNames are not allowed"),
            }
        }
        if is_exactly(usages, "server auth") { Ok(()) } else { Err("usages did not match") }
    }
}

/// Digital signature and `auth`, and key encipherment or not (which only RSA keys need).
fn is_exactly(usages: &[String], auth: &str) -> bool {
    let mut usages: Vec<_> = usages.iter().map(String::as_str).filter(|usage| *usage != "key encipherment").collect();
    usages.sort_unstable();
    usages == {
        let mut want = ["digital signature", auth];
        want.sort_unstable();
        want
    }
}

fn text_of(value: &DnValue) -> String {
    match value {
        DnValue::Utf8String(text) => text.clone(),
        DnValue::PrintableString(text) => text.as_str().to_owned(),
        DnValue::Ia5String(text) => text.as_str().to_owned(),
        DnValue::TeletexString(text) => text.as_str().to_owned(),
        _ => String::new(),
    }
}

fn organizations(pem: &str) -> Option<Vec<String>> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).ok()?;
    let names = request.certification_request_info.subject.iter_organization();
    Some(names.filter_map(|name| name.as_str().ok()).map(str::to_owned).collect())
}

/// The usages of a request in the certificate's terms; unknown ones are errors.
pub(super) fn usages_of(usages: &[String]) -> Result<(Vec<KeyUsagePurpose>, Vec<ExtendedKeyUsagePurpose>), String> {
    use ExtendedKeyUsagePurpose as Extended;
    use KeyUsagePurpose as Key;
    let (mut key, mut extended) = (Vec::new(), Vec::new());
    for usage in usages {
        match usage.as_str() {
            "signing" | "digital signature" => key.push(Key::DigitalSignature),
            "content commitment" => key.push(Key::ContentCommitment),
            "key encipherment" => key.push(Key::KeyEncipherment),
            "key agreement" => key.push(Key::KeyAgreement),
            "data encipherment" => key.push(Key::DataEncipherment),
            "cert sign" => key.push(Key::KeyCertSign),
            "crl sign" => key.push(Key::CrlSign),
            "encipher only" => key.push(Key::EncipherOnly),
            "decipher only" => key.push(Key::DecipherOnly),
            "any" => extended.push(Extended::Any),
            "server auth" => extended.push(Extended::ServerAuth),
            "client auth" => extended.push(Extended::ClientAuth),
            "code signing" => extended.push(Extended::CodeSigning),
            "email protection" | "s/mime" => extended.push(Extended::EmailProtection),
            "timestamping" => extended.push(Extended::TimeStamping),
            "ocsp signing" => extended.push(Extended::OcspSigning),
            other => return Err(format!("unrecognized usage: {other}")),
        }
    }
    Ok((key, extended))
}

#[cfg(test)]
pub(super) mod tests {
    use k8s_openapi::ByteString;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    pub(in super::super) fn spec(
        common_name: &str,
        organization: &str,
        hosts: &[&str],
    ) -> CertificateSigningRequestSpec {
        let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.distinguished_name.push(DnType::OrganizationName, organization);
        let request = params.serialize_request(&KeyPair::generate().unwrap()).unwrap();
        CertificateSigningRequestSpec {
            request: ByteString(request.pem().unwrap().into_bytes()),
            ..CertificateSigningRequestSpec::default()
        }
    }

    fn check(signer: &str, subject: (&str, &str), hosts: &[&str], usages: &[&str], want: Result<(), &str>) {
        let request = Request::parse(&spec(subject.0, subject.1, hosts)).unwrap();
        let usages: Vec<_> = usages.iter().map(|usage| (*usage).to_owned()).collect();
        assert_eq!(request.validate(signer, &usages), want.map_err(str::to_owned));
    }

    #[test]
    fn each_signer_lets_through_what_it_is_for() {
        let (node, client) = (("system:node:n1", "system:nodes"), ["digital signature", "client auth"]);
        check(KUBE_APISERVER_CLIENT_KUBELET, node, &[], &client, Ok(()));
        check(
            KUBE_APISERVER_CLIENT_KUBELET,
            node,
            &[],
            &["client auth", "key encipherment", "digital signature"],
            Ok(()),
        );
        check(KUBE_APISERVER_CLIENT_KUBELET, node, &[], &["client auth"], Err("usages did not match"));
        let san = Err("DNS subjectAltNames are not allowed");
        check(KUBE_APISERVER_CLIENT_KUBELET, node, &["n1"], &client, san);
        let organization = Err("subject organization is not system:nodes");
        check(KUBE_APISERVER_CLIENT_KUBELET, ("system:node:n1", "system:masters"), &[], &client, organization);
        let common_name = Err("subject common name does not begin with system:node:");
        check(KUBE_APISERVER_CLIENT_KUBELET, ("admin", "system:nodes"), &[], &client, common_name);
        let server = ["digital signature", "server auth"];
        check(KUBELET_SERVING, node, &["n1", "10.0.0.1"], &server, Ok(()));
        check(KUBELET_SERVING, node, &[], &server, Err("DNS or IP subjectAltName is required"));
        check(KUBE_APISERVER_CLIENT, ("jane", "dev"), &[], &client, Ok(()));
        let foreign = Err("invalid usages for client certificate: server auth");
        check(KUBE_APISERVER_CLIENT, ("jane", "dev"), &[], &server, foreign);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let nonsense = CertificateSigningRequestSpec {
            request: ByteString(b"hello".to_vec()),
            ..CertificateSigningRequestSpec::default()
        };
        assert!(Request::parse(&nonsense).is_err());
    }
}
