//! An identity per controller: a service account in `kube-system`, created when it is first needed, and short tokens for
//! it, asked for with the controller manager's own rights.

use std::{sync::Arc, time::Duration};

use client::{
    config::{self, ClientOptions, ConfigError, TokenSource, user_agent},
    error::ApiError,
};
use futures::{FutureExt, future::BoxFuture};
use http::HeaderValue;
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, Client, api::PostParams, core::ObjectMeta};
use tokio::{sync::Mutex, time::Instant};

const NAMESPACE: &str = "kube-system";
/// How long a token is asked to live; it is replaced after four fifths of that.
const LIFETIME: Duration = Duration::from_secs(3600);

/// Makes each controller's client.
pub(crate) enum ClientBuilder {
    /// Everybody gets the same.
    Same(Client),
    Tokens {
        root: Client,
        anonymous: Client,
        qps: f64,
        burst: u32,
    },
    Provided(Arc<dyn Fn(&str) -> Client + Send + Sync>),
}

impl ClientBuilder {
    pub(crate) async fn new(credentials: &crate::Credentials, root: &Client) -> Result<Self, ConfigError> {
        Ok(match credentials {
            crate::Credentials::Own => Self::Same(root.clone()),
            crate::Credentials::Provided(provide) => Self::Provided(provide.clone()),
            crate::Credentials::ServiceAccounts { kubeconfig, qps, burst } => {
                let options = ClientOptions::unlimited("kube-controller-manager");
                let anonymous = config::without_identity(kubeconfig, &options).await?;
                Self::Tokens { root: root.clone(), anonymous, qps: *qps, burst: *burst }
            }
        })
    }

    pub(crate) fn client(&self, account: &str) -> Result<Client, ConfigError> {
        match self {
            Self::Same(client) => Ok(client.clone()),
            Self::Provided(provide) => Ok(provide(account)),
            Self::Tokens { root, anonymous, qps, burst } => {
                let options = ClientOptions {
                    user_agent: user_agent("kube-controller-manager", Some(account)),
                    qps: *qps,
                    burst: *burst,
                };
                let source = AccountTokens {
                    accounts: Api::namespaced(root.clone(), NAMESPACE),
                    account: account.to_owned(),
                    current: Mutex::default(),
                };
                config::with_token(anonymous, Arc::new(source), &options)
            }
        }
    }
}

struct AccountTokens {
    accounts: Api<ServiceAccount>,
    account: String,
    current: Mutex<Option<Token>>,
}

struct Token {
    header: HeaderValue,
    refresh_at: Instant,
}

impl TokenSource for AccountTokens {
    fn authorization(&self) -> BoxFuture<'_, Result<HeaderValue, tower::BoxError>> {
        async {
            // Held while a token is asked for: everybody who needs it waits for this one.
            let mut current = self.current.lock().await;
            if let Some(token) = current.as_ref().filter(|token| Instant::now() < token.refresh_at) {
                return Ok(token.header.clone());
            }
            let token = self.request().await?;
            let header = token.header.clone();
            *current = Some(token);
            Ok(header)
        }
        .boxed()
    }
}

impl AccountTokens {
    async fn request(&self) -> Result<Token, tower::BoxError> {
        let wanted = TokenRequest {
            spec: Some(TokenRequestSpec {
                expiration_seconds: Some(i64::try_from(LIFETIME.as_secs())?),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let params = PostParams::default();
        let asked = Instant::now();
        let answer = match self.accounts.create_token_request(&self.account, &params, &wanted).await {
            Err(err) if err.is_not_found() => {
                self.create_account().await?;
                self.accounts.create_token_request(&self.account, &params, &wanted).await?
            }
            answer => answer?,
        };
        let token = answer.status.and_then(|status| status.token).unwrap_or_default();
        let mut header = HeaderValue::from_str(&format!("Bearer {token}"))?;
        header.set_sensitive(true);
        Ok(Token { header, refresh_at: asked + LIFETIME.mul_f64(0.8) })
    }

    async fn create_account(&self) -> Result<(), kube::Error> {
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(self.account.clone()),
                namespace: Some(NAMESPACE.to_owned()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        match self.accounts.create(&PostParams::default(), &account).await {
            Err(err) if err.is_already_exists() => Ok(()),
            outcome => outcome.map(|_| ()),
        }
    }
}
