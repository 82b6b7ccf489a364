//! How the components of this process reach the API server: straight into it, each under its own name and with no more
//! rights than over the network; or by kubeconfig, when the API server is somebody else's.

use std::sync::Arc;

use anyhow::{Context, Result};
use apiserver::ApiServer;
use apiserver::attributes::UserInfo;
use client::config::{ClientOptions, from_kubeconfig, from_service};
use kube::Client;

use super::layout::Layout;

#[derive(Clone)]
pub(crate) enum Connection {
    InProcess(ApiServer),
    Kubeconfigs(Layout),
}

/// Who a component is: its kubeconfig's name, and the user that its certificate names.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub file: &'static str,
    pub user: String,
    pub groups: Vec<String>,
}

impl Identity {
    pub(crate) fn component(file: &'static str, user: &str) -> Self {
        Identity { file, user: user.to_owned(), groups: Vec::new() }
    }

    pub(crate) fn administrator() -> Self {
        Identity { groups: vec!["system:masters".to_owned()], ..Self::component("admin", "kubernetes-admin") }
    }

    pub(crate) fn node(name: &str) -> Self {
        let user = format!("system:node:{name}");
        Identity { groups: vec!["system:nodes".to_owned()], ..Self::component("kubelet", &user) }
    }
}

impl Connection {
    pub(crate) async fn client(&self, identity: &Identity, component: &str) -> Result<Client> {
        let options = ClientOptions::unlimited(component);
        match self {
            Self::InProcess(server) => Ok(in_process(server, &identity.user, &identity.groups, &options)?),
            Self::Kubeconfigs(layout) => {
                let file = layout.kubeconfig(identity.file);
                from_kubeconfig(&file, &options).await.with_context(|| format!("cannot use {}", file.display()))
            }
        }
    }

    /// How the controllers get an identity each.
    pub(crate) fn controllers(&self) -> controller_manager::Credentials {
        match self {
            Self::InProcess(server) => {
                let server = server.clone();
                controller_manager::Credentials::Provided(Arc::new(move |account: &str| {
                    let user = format!("system:serviceaccount:kube-system:{account}");
                    let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system"].map(str::to_owned);
                    let mut options = ClientOptions::unlimited("kube-controller-manager");
                    options.user_agent = client::config::user_agent("kube-controller-manager", Some(account));
                    in_process(&server, &user, &groups, &options)
                        .unwrap_or_else(|error| unreachable!("an account's name is a header value: {error}"))
                }))
            }
            Self::Kubeconfigs(layout) => controller_manager::Credentials::ServiceAccounts {
                kubeconfig: layout.kubeconfig("controller-manager"),
                qps: -1.0,
                burst: 1,
            },
        }
    }
}

fn in_process(
    server: &ApiServer,
    user: &str,
    groups: &[String],
    options: &ClientOptions,
) -> Result<Client, client::config::ConfigError> {
    let mut user = UserInfo { name: user.to_owned(), groups: groups.to_vec(), ..UserInfo::default() };
    user.groups.push("system:authenticated".to_owned());
    from_service(server.service_as(user), options)
}
