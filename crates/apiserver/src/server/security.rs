//! Who may come in and what they may do, put together from the configuration.

use std::sync::Arc;

use apimachinery::Value;

use super::Error;
use crate::admission::{self, OwnObjects, Plugin, Settings, Tools};
use crate::authn::Authenticator;
use crate::authn::certificate::ClientCertificates;
use crate::authn::request_header::RequestHeaders;
use crate::authn::service_account::{ServiceAccountTokens, TokenIssuer};
use crate::authn::signer::{Signer, VerifyingKey};
use crate::authz::Authorizer;
use crate::authz::escalation::NoEscalation;
use crate::authz::modes::{AlwaysAllow, AlwaysDeny, Masters};
use crate::authz::node::NodeAuthorizer;
use crate::authz::rbac::Rbac;
use crate::bootstrap;
use crate::config::Config;
use crate::lister::Lister;
use crate::service_alloc::ServiceAddresses;

/// The parts of a server that decide about requests.
pub(crate) struct Security {
    pub authenticators: Vec<Arc<dyn Authenticator>>,
    pub authorizers: Vec<Arc<dyn Authorizer>>,
    pub plugins: Vec<Arc<dyn Plugin>>,
    pub rbac: Arc<Rbac>,
    pub addresses: Arc<ServiceAddresses>,
    /// What admission plugins write themselves.
    pub own: Arc<OwnObjects>,
    /// Verifies service-account tokens, also for TokenReview.
    pub tokens: Option<Arc<ServiceAccountTokens>>,
    pub issuer: Option<TokenIssuer>,
    /// `/.well-known/openid-configuration` and `/openid/v1/jwks`.
    pub documents: Option<(Value, Value)>,
}

impl Security {
    pub(crate) fn new(config: &Config, lister: &Arc<dyn Lister>) -> Result<Self, Error> {
        let keys = Arc::new(verifying_keys(config)?);
        let accounts = &config.service_accounts;
        let issuer_url = accounts.issuers.first().cloned().unwrap_or_default();
        let audiences = if config.authentication.api_audiences.is_empty() {
            vec![issuer_url.clone()]
        } else {
            config.authentication.api_audiences.clone()
        };
        let tokens = (!keys.is_empty() && !issuer_url.is_empty()).then(|| {
            Arc::new(ServiceAccountTokens {
                issuers: accounts.issuers.clone(),
                audiences: audiences.clone(),
                keys: Arc::clone(&keys),
                lister: Arc::clone(lister),
            })
        });
        let issuer = match &accounts.signing_key_file {
            Some(path) if !issuer_url.is_empty() => Some(TokenIssuer {
                signer: Signer::load(path).map_err(|e| Error::Config(e.to_string()))?,
                issuer: issuer_url.clone(),
                audiences,
                max_seconds: i64::try_from(accounts.max_expiration.as_secs()).ok().filter(|s| *s > 0),
                extend: accounts.extend_expiration,
                lister: Arc::clone(lister),
            }),
            _ => None,
        };
        let documents = tokens.is_some().then(|| {
            let uri = accounts.jwks_uri.clone().unwrap_or_else(|| {
                format!("https://{}:{}/openid/v1/jwks", config.services.advertise_address, config.services.secure_port)
            });
            let discovery = crate::authn::signer::discovery_document(&issuer_url, &uri, &keys);
            (discovery, crate::authn::signer::key_set(&keys))
        });
        let rbac = Arc::new(Rbac::new(Arc::clone(lister)));
        let (first, last) = config.services.node_ports;
        let addresses = Arc::new(ServiceAddresses::new(
            config.services.cluster_ip_ranges.clone(),
            first..=last,
            Arc::clone(lister),
        ));
        let authorizers = authorizers(config, lister, &rbac)?;
        let own = Arc::new(OwnObjects::default());
        let tools = Tools { lister: Arc::clone(lister), authorizers: authorizers.clone(), own: Arc::clone(&own) };
        let mut plugins = admission_plugins(config, &tools)?;
        plugins.push(Arc::new(NoEscalation { rbac: Arc::clone(&rbac), authorizers: authorizers.clone() }));
        plugins.push(Arc::clone(&addresses) as Arc<dyn Plugin>);
        Ok(Security {
            authenticators: authenticators(config, tokens.as_ref())?,
            authorizers,
            plugins,
            rbac,
            addresses,
            own,
            tokens,
            issuer,
            documents,
        })
    }
}

fn verifying_keys(config: &Config) -> Result<Vec<VerifyingKey>, Error> {
    let accounts = &config.service_accounts;
    let files = if accounts.key_files.is_empty() {
        accounts.signing_key_file.iter().collect::<Vec<_>>()
    } else {
        accounts.key_files.iter().collect()
    };
    let mut keys = Vec::new();
    for file in files {
        keys.extend(VerifyingKey::load(file).map_err(|e| Error::Config(e.to_string()))?);
    }
    Ok(keys)
}

fn authenticators(
    config: &Config,
    tokens: Option<&Arc<ServiceAccountTokens>>,
) -> Result<Vec<Arc<dyn Authenticator>>, Error> {
    let mut all: Vec<Arc<dyn Authenticator>> = Vec::new();
    if let Some(headers) = &config.authentication.request_header {
        all.push(Arc::new(RequestHeaders::new(headers.clone())));
    }
    all.push(Arc::new(ClientCertificates));
    if let Some(path) = &config.authentication.token_auth_file {
        let text = std::fs::read_to_string(path).map_err(|source| Error::File { path: path.clone(), source })?;
        all.push(Arc::new(crate::authn::token_file::TokenFile::parse(&text)));
    }
    if let Some(tokens) = tokens {
        all.push(Arc::clone(tokens) as Arc<dyn Authenticator>);
    }
    if config.authentication.bootstrap_tokens
        && let Some(tokens) = tokens
    {
        let lister = Arc::clone(&tokens.lister);
        all.push(Arc::new(crate::authn::bootstrap_token::BootstrapTokens { lister }));
    }
    Ok(all)
}

fn authorizers(config: &Config, lister: &Arc<dyn Lister>, rbac: &Arc<Rbac>) -> Result<Vec<Arc<dyn Authorizer>>, Error> {
    let mut all: Vec<Arc<dyn Authorizer>> = vec![Arc::new(Masters)];
    for mode in &config.authorization.modes {
        all.push(match mode.as_str() {
            "Node" => Arc::new(NodeAuthorizer::new(Arc::clone(lister), bootstrap::node_rules())),
            "RBAC" => Arc::clone(rbac) as Arc<dyn Authorizer>,
            "AlwaysAllow" => Arc::new(AlwaysAllow),
            "AlwaysDeny" => Arc::new(AlwaysDeny),
            other => return Err(Error::Config(format!("unknown authorization mode {other} specified"))),
        });
    }
    Ok(all)
}

fn admission_plugins(config: &Config, tools: &Tools) -> Result<Vec<Arc<dyn Plugin>>, Error> {
    let configs = match &config.admission_config_file {
        Some(path) => admission::load_config(path).map_err(Error::Config)?,
        None => admission::PluginConfigs::new(),
    };
    let settings = Settings {
        enable: config.enable_admission_plugins.clone(),
        disable: config.disable_admission_plugins.clone(),
        not_ready_toleration_seconds: config.default_not_ready_toleration_seconds,
        unreachable_toleration_seconds: config.default_unreachable_toleration_seconds,
        configs,
    };
    admission::plugins(&settings, tools).map_err(|e| Error::Config(e.to_string()))
}

/// What `kube-system/extension-apiserver-authentication` tells aggregated servers.
pub(crate) fn authentication_data(config: &Config) -> Result<Value, Error> {
    let mut data = Value::object();
    let Some(serving) = &config.serving else { return Ok(data) };
    let files = [
        ("client-ca-file", &serving.client_ca_file),
        ("requestheader-client-ca-file", &serving.requestheader_client_ca_file),
    ];
    for (key, file) in files {
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|source| Error::File { path: path.clone(), source })?;
            data.set(&[key], text);
        }
    }
    if let Some(headers) = &config.authentication.request_header {
        let lists = [
            ("requestheader-username-headers", &headers.username_headers),
            ("requestheader-uid-headers", &headers.uid_headers),
            ("requestheader-group-headers", &headers.group_headers),
            ("requestheader-extra-headers-prefix", &headers.extra_headers_prefix),
            ("requestheader-allowed-names", &headers.allowed_names),
        ];
        for (key, list) in lists {
            data.set(&[key], serde_json::to_string(list).unwrap_or_default());
        }
    }
    Ok(data)
}
