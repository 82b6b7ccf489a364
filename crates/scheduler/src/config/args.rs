//! Plugins' arguments: each has a kind of its own, and fields that it does not have are mistakes.

use serde::de::DeserializeOwned;

const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";

/// Reads arguments of a kind. `null` means the defaults; `apiVersion` and `kind` may be left out.
///
/// # Errors
/// Everything that is wrong, in one text.
pub fn decode<A: DeserializeOwned + Default>(args: &serde_json::Value, kind: &str) -> Result<A, String> {
    if args.is_null() {
        return Ok(A::default());
    }
    let mut args = args.clone();
    let mut mistakes = Vec::new();
    if let Some(fields) = args.as_object_mut() {
        for (field, expected) in [("apiVersion", API_VERSION), ("kind", kind)] {
            match fields.remove(field) {
                Some(found) if found != expected => {
                    mistakes.push(format!("{field}: Invalid value: {found}: must be {expected:?}"));
                }
                _ => {}
            }
        }
    }
    let parsed = serde_ignored::deserialize(args, |field| mistakes.push(format!("unknown field \"{field}\"")));
    match parsed {
        Ok(parsed) if mistakes.is_empty() => Ok(parsed),
        Ok(_) => Err(format!("decoding args of kind {kind}: {}", mistakes.join(", "))),
        Err(err) => {
            mistakes.push(err.to_string());
            Err(format!("decoding args of kind {kind}: {}", mistakes.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Args {
        how_many: u32,
    }

    #[test]
    fn arguments_are_read_strictly() {
        let decode = |args| decode::<Args>(&args, "ThingArgs");
        assert_eq!(decode(json!(null)), Ok(Args { how_many: 0 }));
        let whole = json!({"apiVersion": API_VERSION, "kind": "ThingArgs", "howMany": 3});
        assert_eq!(decode(whole), Ok(Args { how_many: 3 }));
        assert_eq!(
            decode(json!({"kind": "OtherArgs", "howmany": 3})),
            Err("decoding args of kind ThingArgs: kind: Invalid value: \"OtherArgs\": must be \"ThingArgs\", \
                 unknown field \"howmany\""
                .to_owned())
        );
        assert!(decode(json!({"howMany": "x"})).is_err());
    }
}
