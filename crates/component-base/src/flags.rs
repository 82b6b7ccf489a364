//! Command lines as upstream's components take them: `--flag=value`, `--flag value`, `--flag` and `--flag=false` for
//! booleans, underscores for dashes, Go's durations.
//!
//! Components declare their flags with clap's derive. A boolean is declared as
//! `#[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]`.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Parses a component's flags (without the program's name). `Err` holds the text to print and the exit code: help and
/// version are 0, mistakes 1, as upstream's.
///
/// # Errors
/// When the command line asks for help or holds a mistake.
pub fn parse<F: clap::Parser>(component: &str, args: impl IntoIterator<Item = String>) -> Result<F, (String, i32)> {
    let args = std::iter::once(component.to_owned()).chain(args.into_iter().map(normalize));
    // Of a flag that is given twice the last one counts; lists grow.
    let mut command = F::command().args_override_self(true);
    let matches = command.try_get_matches_from_mut(args).map_err(|e| describe(&e))?;
    F::from_arg_matches(&matches).map_err(|e| describe(&e.format(&mut command)))
}

/// The flags of a component with their values, given or by default, in the order of their names; those that have neither
/// are empty. None where the command line holds a mistake.
#[must_use]
pub fn shown<F: clap::CommandFactory>(component: &str, args: &[String]) -> Vec<(String, String)> {
    let args = std::iter::once(component.to_owned()).chain(args.iter().cloned().map(normalize));
    let mut command = F::command().args_override_self(true);
    let Ok(matches) = command.try_get_matches_from_mut(args) else { return Vec::new() };
    let value_of = |id: &str| {
        let values = matches.get_raw(id).into_iter().flatten();
        values.map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(",")
    };
    let flags = command.get_arguments().filter_map(|arg| Some((arg.get_long()?, arg.get_id().as_str())));
    let mut shown: Vec<(String, String)> = flags.map(|(flag, id)| (flag.to_owned(), value_of(id))).collect();
    shown.retain(|(flag, _)| flag != "help");
    shown.sort();
    shown
}

/// `--tls_cert_file` means `--tls-cert-file`; what stands behind `=` stays as it is.
fn normalize(arg: String) -> String {
    let Some(flag) = arg.strip_prefix("--") else { return arg };
    match flag.split_once('=') {
        Some((name, value)) => format!("--{}={value}", name.replace('_', "-")),
        None => format!("--{}", flag.replace('_', "-")),
    }
}

fn describe(error: &clap::Error) -> (String, i32) {
    let argument = error.get(ContextKind::InvalidArg).and_then(|v| match v {
        ContextValue::String(s) => Some(s.as_str()),
        ContextValue::Strings(s) => s.first().map(String::as_str),
        _ => None,
    });
    match (error.kind(), argument) {
        (ErrorKind::DisplayHelp | ErrorKind::DisplayVersion, _) => (error.render().to_string(), 0),
        (ErrorKind::UnknownArgument, Some(flag)) if flag.starts_with("--") => {
            (format!("Error: unknown flag: {}\n", flag.split('=').next().unwrap_or(flag)), 1)
        }
        (ErrorKind::UnknownArgument, Some(word)) => (format!("Error: unknown command \"{word}\"\n"), 1),
        _ => (error.render().to_string(), 1),
    }
}

/// Go's `strconv.ParseBool`.
#[must_use]
pub fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Go's `time.ParseDuration` for non-negative durations: `1m30s`, `1.5h`, `300ms`, `0`.
///
/// # Errors
/// A sentence that names the text.
pub fn go_duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration \"{text}\"");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0.0;
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..unit_end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(invalid()),
        };
        total += number * seconds;
        rest = &rest[unit_end..];
    }
    Duration::try_from_secs_f64(total).map_err(|_| invalid())
}

/// How Go prints a duration, for configuration that is shown again: `1m30s`, `300ms`, `0s`.
#[must_use]
pub fn show_go_duration(duration: Duration) -> String {
    let total = duration.as_secs();
    let nanos = duration.subsec_nanos();
    if total == 0 && nanos > 0 {
        return if nanos.is_multiple_of(1_000_000) {
            format!("{}ms", nanos / 1_000_000)
        } else {
            format!("{}µs", nanos / 1000)
        };
    }
    let (hours, minutes, seconds) = (total / 3600, total / 60 % 60, total % 60);
    let fraction = if nanos == 0 { String::new() } else { format!(".{}", format!("{nanos:09}").trim_end_matches('0')) };
    match (hours, minutes) {
        (0, 0) => format!("{seconds}{fraction}s"),
        (0, m) => format!("{m}m{seconds}{fraction}s"),
        (h, m) => format!("{h}h{m}m{seconds}{fraction}s"),
    }
}

/// `a=1,b=2`, as `--node-labels` and `--runtime-config` take it. A key without a value has the empty one.
///
/// # Errors
/// When a key is missing.
pub fn key_values(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut map = BTreeMap::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        if key.is_empty() {
            return Err(format!("{part:?} has no key; expected key=value"));
        }
        map.insert(key.to_owned(), value.to_owned());
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser, Debug)]
    struct Flags {
        #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        leader_elect: bool,
        #[arg(long, value_parser = go_duration, default_value = "15s")]
        lease: Duration,
        #[arg(long, value_delimiter = ',')]
        names: Vec<String>,
    }

    fn parse_all(args: &[&str]) -> Result<Flags, (String, i32)> {
        parse("kube-thing", args.iter().map(ToString::to_string))
    }

    #[test]
    fn flags_are_taken_as_upstream_takes_them() {
        let flags = parse_all(&["--leader_elect=false", "--lease", "1m30s", "--names=a,b", "--names", "c"]).unwrap();
        assert!(!flags.leader_elect);
        assert_eq!(flags.lease, Duration::from_secs(90));
        assert_eq!(flags.names, ["a", "b", "c"]);
        assert!(parse_all(&["--leader-elect"]).unwrap().leader_elect);
        assert_eq!(parse_all(&["--lease=1s", "--lease=2s"]).unwrap().lease, Duration::from_secs(2));
    }

    #[test]
    fn flags_are_shown_with_their_values() {
        let shown = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(ToString::to_string).collect();
            shown::<Flags>("kube-thing", &args).into_iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>()
        };
        assert_eq!(shown(&["--leader_elect=false", "--names=a,b"]), ["leader-elect=false", "lease=15s", "names=a,b"]);
        assert_eq!(shown(&["--no-such"]), Vec::<String>::new());
    }

    #[test]
    fn an_unknown_flag_is_named() {
        assert_eq!(parse_all(&["--no-such=1"]).unwrap_err(), ("Error: unknown flag: --no-such\n".to_owned(), 1));
    }

    #[test]
    fn durations_read_and_print_as_go_does() {
        for (text, ms) in [("1h", 3_600_000), ("1m30s", 90_000), ("1.5s", 1500), ("300ms", 300), ("0", 0)] {
            assert_eq!(go_duration(text).unwrap(), Duration::from_millis(ms), "{text}");
        }
        for text in ["", "5", "5x", "s", "-1s"] {
            assert!(go_duration(text).is_err(), "{text}");
        }
        assert_eq!(show_go_duration(Duration::from_secs(90)), "1m30s");
        assert_eq!(show_go_duration(Duration::from_secs(7200)), "2h0m0s");
        assert_eq!(show_go_duration(Duration::from_millis(61_500)), "1m1.5s");
        assert_eq!(show_go_duration(Duration::ZERO), "0s");
    }
}
