//! Log output: one event a line on standard error, as text or JSON; `--v` chooses how much, `RUST_LOG` overrides it.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// Sends events to standard error. A second call in one process changes nothing.
pub fn init(verbosity: u8, format: Format) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level_of(verbosity)));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let done = match format {
        Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        Format::Json => builder.json().try_init(),
    };
    // The only failure is that somebody has set a subscriber already, which then stays.
    drop(done);
}

/// Upstream's `--v`: 0 is for operators, 4 and above for developers.
fn level_of(verbosity: u8) -> &'static str {
    match verbosity {
        0..=3 => "info,h2=warn,hickory_server=warn,hyper=warn,rustls=warn,tower=warn",
        4..=5 => "debug,h2=info,hickory_proto=info,hyper=info,rustls=info,tower=info",
        _ => "trace,h2=info,hyper=info,rustls=info",
    }
}
