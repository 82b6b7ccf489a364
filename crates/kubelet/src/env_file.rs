//! Files of variables that an earlier container of the pod has left in a volume (KEP-3721).

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, FileKeySelector};

use crate::pod::sub_path;
use crate::volumes::{Source, Volumes};

/// How much of a file is read: no list of variables is longer.
const LIMIT: u64 = 1 << 20;

/// By volume and path: the variables of a file, or why it has none.
pub(crate) type EnvFiles = BTreeMap<(String, String), Result<BTreeMap<String, String>, String>>;

/// Reads the files that a container's variables come from.
pub(crate) fn read(container: &Container, volumes: &Volumes) -> EnvFiles {
    let sources = container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()?.file_key_ref.as_ref());
    sources.map(|s| ((s.volume_name.clone(), s.path.clone()), read_one(s, volumes))).collect()
}

fn read_one(selector: &FileKeySelector, volumes: &Volumes) -> Result<BTreeMap<String, String>, String> {
    let Some(Source::Path(volume)) = volumes.get(&selector.volume_name) else {
        return Err(format!("volume \"{}\" is not mounted", selector.volume_name));
    };
    let text = read_beneath(volume, &selector.path).map_err(|e| format!("couldn't read env file: {e}"))?;
    parse(&text).map_err(|line| format!("couldn't parse env file: line {line}"))
}

/// What containers wrote there is theirs to choose: a link does not lead out of the volume.
fn read_beneath(volume: &Path, path: &str) -> std::io::Result<String> {
    let opened = sub_path::open_file(volume, path)?;
    let mut text = String::new();
    opened.take(LIMIT).read_to_string(&mut text)?;
    Ok(text)
}

/// `NAME='value'` or `NAME=value` on each line; a quoted value may go over several. `Err` is the number of a bad line.
fn parse(text: &str) -> Result<BTreeMap<String, String>, usize> {
    let mut vars = BTreeMap::new();
    let mut lines = text.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line.split_once('=').ok_or(at + 1)?;
        let Some(quoted) = value.strip_prefix('\'') else {
            vars.insert(name.trim_end().to_owned(), value.trim().to_owned());
            continue;
        };
        let mut value = String::new();
        let mut rest = quoted;
        loop {
            match rest.split_once('\'') {
                Some((end, after)) if after.trim().is_empty() => {
                    value.push_str(end);
                    break;
                }
                Some(_) => return Err(at + 1),
                None => {
                    value.push_str(rest);
                    value.push('\n');
                    rest = lines.next().ok_or(at + 1)?.1;
                }
            }
        }
        vars.insert(name.trim_end().to_owned(), value);
    }
    Ok(vars)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_plain_or_quoted() {
        let vars = parse("# comment\n\nA=1\nB='two words'\nC='first\nsecond'\n  D = x # not a comment\n").unwrap();
        let check = |name: &str, want: &str| assert_eq!(vars.get(name).map(String::as_str), Some(want));
        check("A", "1");
        check("B", "two words");
        check("C", "first\nsecond");
        check("D", "x # not a comment");
        assert_eq!(parse("A=1\nnonsense"), Err(2));
        assert_eq!(parse("A='open"), Err(1));
        assert_eq!(parse("A='x' y"), Err(1));
    }

    #[test]
    fn a_file_is_read_beneath_its_volume() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "A=1").unwrap();
        let volume = dir.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(volume.join("env"), "B=2").unwrap();
        std::os::unix::fs::symlink("../secret", volume.join("out")).unwrap();
        let volumes = Volumes::from([("v".to_owned(), Source::Path(volume))]);
        let read = |path: &str| {
            let selector = FileKeySelector { volume_name: "v".into(), path: path.into(), ..FileKeySelector::default() };
            read_one(&selector, &volumes)
        };
        assert_eq!(read("env").unwrap()["B"], "2");
        assert!(read("out").is_err());
        assert!(read("../secret").is_err());
    }
}
