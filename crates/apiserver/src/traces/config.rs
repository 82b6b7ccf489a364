//! `TracingConfiguration`: whom to tell, and of how much.

use std::path::{Path, PathBuf};

use http::Uri;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tonic::transport::{Channel, Endpoint};

const VERSIONS: &[&str] =
    &["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1", "apiserver.config.k8s.io/v1alpha1"];
const KIND: &str = "TracingConfiguration";
const ENDPOINT: &str = "localhost:4317";
const MILLION: i64 = 1_000_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    endpoint: Where,
    /// Of a million requests, so many are followed.
    pub rate: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Where {
    Host(String),
    Socket(PathBuf),
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct File {
    endpoint: Option<String>,
    sampling_rate_per_million: Option<i64>,
}

impl Settings {
    /// # Errors
    /// All that is wrong with it, in upstream's words.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let file: File = component_base::config_file::parse(text, Path::new(KIND), VERSIONS, KIND)
            .map_err(|error| error.to_string())?;
        let mut wrong = Vec::new();
        let rate = file.sampling_rate_per_million.unwrap_or_default();
        if rate < 0 {
            let why = "sampling rate must be positive";
            wrong.push(format!("tracing.samplingRatePerMillion: Invalid value: {rate}: {why}"));
        } else if rate > MILLION {
            let why = "sampling rate per million must be less than or equal to one million";
            wrong.push(format!("tracing.samplingRatePerMillion: Invalid value: {rate}: {why}"));
        }
        let text = file.endpoint.as_deref().unwrap_or(ENDPOINT);
        let endpoint = where_of(text).unwrap_or_else(|why| {
            wrong.push(format!("tracing.endpoint: Invalid value: {text:?}: {why}"));
            Where::Host(String::new())
        });
        if wrong.is_empty() {
            Ok(Settings { endpoint, rate: u32::try_from(rate).unwrap_or_default() })
        } else {
            Err(wrong.join(", "))
        }
    }

    /// Connects when there is something to tell.
    pub(super) fn channel(&self) -> Result<Channel, String> {
        match &self.endpoint {
            Where::Host(host) => {
                let endpoint = Endpoint::from_shared(format!("http://{host}")).map_err(|error| error.to_string())?;
                Ok(endpoint.connect_lazy())
            }
            Where::Socket(socket) => {
                let socket = socket.clone();
                let connect = tower::service_fn(move |_: Uri| {
                    let socket = socket.clone();
                    async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(socket).await?)) }
                });
                Ok(Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect))
            }
        }
    }
}

fn where_of(text: &str) -> Result<Where, String> {
    match text.split_once("://") {
        None => Ok(Where::Host(text.to_owned())),
        Some(("dns", rest)) => Ok(Where::Host(rest.rsplit('/').next().unwrap_or_default().to_owned())),
        Some(("unix", path)) => Ok(Where::Socket(path.into())),
        Some((scheme, _)) => Err(format!("unsupported scheme: {scheme}.  Options are none, dns, or unix")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rest: &str, want: Result<(&str, u32), &str>) {
        let text = format!("apiVersion: apiserver.config.k8s.io/v1\nkind: TracingConfiguration\n{rest}");
        let got = Settings::parse(&text).map(|settings| match settings.endpoint {
            Where::Host(host) => (host, settings.rate),
            Where::Socket(path) => (path.display().to_string(), settings.rate),
        });
        assert_eq!(got, want.map(|(to, rate)| (to.to_owned(), rate)).map_err(str::to_owned));
    }

    #[test]
    fn configurations_are_read() {
        check("", Ok(("localhost:4317", 0)));
        check("endpoint: collector:4317\nsamplingRatePerMillion: 100", Ok(("collector:4317", 100)));
        check("endpoint: dns:///collector:4317", Ok(("collector:4317", 0)));
        check("endpoint: unix:///run/otel.sock", Ok(("/run/otel.sock", 0)));
        check(
            "endpoint: https://x\nsamplingRatePerMillion: 1000001",
            Err(
                "tracing.samplingRatePerMillion: Invalid value: 1000001: sampling rate per million must be less than or equal to one million, tracing.endpoint: Invalid value: \"https://x\": unsupported scheme: https.  Options are none, dns, or unix",
            ),
        );
    }
}
