//! Who may come in and what they may do, put together from the configuration.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;

use super::Error;
use super::reload::Reloading;
use crate::admission::{self, OwnObjects, Plugin, Settings, Tools};
use crate::authn::Authenticator;
use crate::authn::anonymous::AnonymousAccess;
use crate::authn::certificate::ClientCertificates;
use crate::authn::jwt::settings::Anonymous;
use crate::authn::jwt::{JwtIssuers, settings};
use crate::authn::request_header::RequestHeaders;
use crate::authn::service_account::{ServiceAccountTokens, TokenIssuer};
use crate::authn::signer::{Signer, VerifyingKey};
use crate::authn::webhook::TokenWebhook;
use crate::authz::chain::{Chain, Link};
use crate::authz::escalation::NoEscalation;
use crate::authz::modes::{AlwaysAllow, AlwaysDeny, Masters};
use crate::authz::node::NodeAuthorizer;
use crate::authz::rbac::Rbac;
use crate::authz::webhook::WebhookAuthorizer;
use crate::authz::{self, Authorizer, Decision};
use crate::bootstrap;
use crate::config::Config;
use crate::lister::Lister;
use crate::outbound::kubeconfig::Remote;
use crate::service_alloc::ServiceAddresses;

/// How long the webhook of the mode `Webhook` may take.
const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(30);
/// The modes without settings of their own.
const MODES: [&str; 4] = ["Node", "RBAC", "AlwaysAllow", "AlwaysDeny"];

/// The parts of a server that decide about requests.
pub(crate) struct Security {
    pub authenticators: Vec<Arc<dyn Authenticator>>,
    pub anonymous: Arc<AnonymousAccess>,
    /// What a token must be meant for that names nobody else.
    pub api_audiences: Vec<String>,
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
    /// The authorizers that the configuration names.
    pub chain: Arc<Chain>,
}

impl Security {
    /// Also gives the files that are to be followed.
    pub(crate) fn new(config: &Config, lister: &Arc<dyn Lister>) -> Result<(Self, Vec<Reloading>), Error> {
        let keys = Arc::new(verifying_keys(config)?);
        let accounts = &config.service_accounts;
        let issuer_url = accounts.issuers.first().cloned().unwrap_or_default();
        let audiences = config.authentication.api_audiences.clone();
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
                audiences: audiences.clone(),
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
        let makers = AuthorizerMakers { lister: Arc::clone(lister), rbac: Arc::clone(&rbac) };
        let mut reloading = Vec::new();
        let chain = authorizers(config, makers, &mut reloading)?;
        let authorizers: Vec<Arc<dyn Authorizer>> = vec![Arc::new(Masters), Arc::clone(&chain) as Arc<dyn Authorizer>];
        let anonymous = Arc::new(AnonymousAccess::new(config.authentication.anonymous));
        let authenticators = authenticators(config, tokens.as_ref(), &anonymous, &mut reloading)?;
        let own = Arc::new(OwnObjects::default());
        let tools = Tools { lister: Arc::clone(lister), authorizers: authorizers.clone(), own: Arc::clone(&own) };
        let mut plugins = admission_plugins(config, &tools)?;
        plugins.push(Arc::new(NoEscalation { rbac: Arc::clone(&rbac), authorizers: authorizers.clone() }));
        plugins.push(Arc::clone(&addresses) as Arc<dyn Plugin>);
        let security = Security {
            authenticators,
            anonymous,
            api_audiences: audiences,
            authorizers,
            plugins,
            rbac,
            addresses,
            own,
            tokens,
            issuer,
            documents,
            chain,
        };
        Ok((security, reloading))
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
    anonymous: &Arc<AnonymousAccess>,
    reloading: &mut Vec<Reloading>,
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
    let authentication = &config.authentication;
    if authentication.oidc.is_some() || authentication.config_file.is_some() {
        let issuers = Arc::new(JwtIssuers::default());
        if let Some(oidc) = &authentication.oidc {
            issuers.set(vec![settings::issuer_of_flags(oidc).map_err(Error::Config)?]);
        }
        if let Some(path) = &authentication.config_file {
            let (issuers, anonymous) = (Arc::clone(&issuers), Arc::clone(anonymous));
            let own = config.service_accounts.issuers.clone();
            let flag = authentication.anonymous;
            let apply = move |text: &str| {
                let settings = settings::issuers_of(text, &own)?;
                issuers.set(settings.issuers);
                anonymous.set(settings.anonymous.unwrap_or_else(|| Anonymous::by_flag(flag)));
                Ok(())
            };
            reloading.push(first_read(path, "authentication", apply)?);
        }
        all.push(issuers);
    }
    if let Some(webhook) = &authentication.webhook {
        let audiences = authentication.api_audiences.clone();
        all.push(Arc::new(TokenWebhook::new(webhook, audiences).map_err(Error::Config)?));
    }
    Ok(all)
}

/// Reads a file of configuration for the first time, when mistakes are fatal.
fn first_read(
    path: &Path,
    what: &'static str,
    apply: impl Fn(&str) -> Result<(), String> + Send + Sync + 'static,
) -> Result<Reloading, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
    apply(&text).map_err(|why| Error::Config(format!("{}: {why}", path.display())))?;
    Ok(Reloading::new(path.to_owned(), what, apply))
}

/// What the authorizers of a configuration are made with.
struct AuthorizerMakers {
    lister: Arc<dyn Lister>,
    rbac: Arc<Rbac>,
}

impl AuthorizerMakers {
    /// An authorizer that needs nothing but its mode.
    fn plain(&self, mode: &str) -> Result<Arc<dyn Authorizer>, String> {
        Ok(match mode {
            "Node" => Arc::new(NodeAuthorizer::new(Arc::clone(&self.lister), bootstrap::node_rules())),
            "RBAC" => Arc::clone(&self.rbac) as Arc<dyn Authorizer>,
            "AlwaysAllow" => Arc::new(AlwaysAllow),
            "AlwaysDeny" => Arc::new(AlwaysDeny),
            other => return Err(format!("unknown authorization mode {other} specified")),
        })
    }

    /// Those of an `AuthorizationConfiguration`.
    fn configured(&self, text: &str) -> Result<Vec<Link>, String> {
        let made = authz::config::authorizers_of(text)?.into_iter().map(|configured| {
            let authorizer: Arc<dyn Authorizer> = match configured.webhook {
                Some(webhook) => Arc::new(WebhookAuthorizer::new(Remote::load(&webhook.kubeconfig)?, webhook.settings)),
                None => self.plain(configured.kind)?,
            };
            Ok(Link { kind: configured.kind, name: configured.name, authorizer })
        });
        made.collect()
    }
}

fn authorizers(config: &Config, makers: AuthorizerMakers, reloading: &mut Vec<Reloading>) -> Result<Arc<Chain>, Error> {
    let chain = Arc::new(Chain::default());
    if let Some(path) = &config.authorization.config_file {
        let links = Arc::clone(&chain);
        let apply = move |text: &str| {
            links.set(makers.configured(text)?);
            Ok(())
        };
        reloading.push(first_read(path, "authorization", apply)?);
        return Ok(chain);
    }
    let mut links = Vec::new();
    for mode in &config.authorization.modes {
        let (kind, authorizer) = match (mode.as_str(), &config.authorization.webhook) {
            ("Webhook", Some(webhook)) => {
                let remote = Remote::load(&webhook.config_file).map_err(Error::Config)?;
                let settings = authz::webhook::Settings {
                    version: webhook.version.clone(),
                    timeout: WEBHOOK_TIMEOUT,
                    authorized_ttl: webhook.authorized_ttl,
                    unauthorized_ttl: webhook.unauthorized_ttl,
                    on_failure: Decision::NoOpinion,
                    conditions: Vec::new(),
                };
                ("Webhook", Arc::new(WebhookAuthorizer::new(remote, settings)) as Arc<dyn Authorizer>)
            }
            (mode, _) => {
                let kind = MODES.iter().find(|known| **known == mode).copied().unwrap_or_default();
                (kind, makers.plain(mode).map_err(Error::Config)?)
            }
        };
        links.push(Link { kind, name: kind.to_lowercase(), authorizer });
    }
    chain.set(links);
    Ok(chain)
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
