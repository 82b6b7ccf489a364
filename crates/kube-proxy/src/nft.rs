//! Writing rules: the difference between what is wanted and what was written, as one transaction of `nft -f -`.

use std::fmt::Write;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::rules::{Chain, Family, RuleSet, Table};

#[derive(Debug, thiserror::Error)]
pub(crate) enum NftError {
    #[error("cannot run nft")]
    Run(#[from] std::io::Error),
    #[error("nft refused the rules: {0}")]
    Refused(String),
}

/// Knows what is in the kernel, as far as it was written from here.
pub(crate) struct Writer {
    /// `None`: unknown, everything is written.
    written: Option<RuleSet>,
}

impl Writer {
    pub(crate) fn new() -> Self {
        Writer { written: None }
    }

    /// Everything is written again next time.
    pub(crate) fn forget(&mut self) {
        self.written = None;
    }

    /// Makes the kernel's tables equal to `wanted`. Gives the number of commands that took.
    pub(crate) async fn write(&mut self, wanted: &RuleSet) -> Result<usize, NftError> {
        let script = match &self.written {
            Some(written) => difference(written, wanted),
            None => whole(wanted),
        };
        if script.is_empty() {
            return Ok(0);
        }
        let done = run(&script).await;
        self.written = done.is_ok().then(|| wanted.clone());
        done.map(|()| script.lines().count())
    }
}

async fn run(script: &str) -> Result<(), NftError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).await?;
    }
    let done = child.wait_with_output().await?;
    if done.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&done.stderr);
    Err(NftError::Refused(complaint.lines().take(4).collect::<Vec<_>>().join("; ")))
}

/// The tables anew: whatever was in them goes in the same transaction.
fn whole(wanted: &RuleSet) -> String {
    let mut script = String::new();
    for (family, table) in wanted {
        let name = family.table();
        line(&mut script, format_args!("add table {name}"));
        line(&mut script, format_args!("delete table {name}"));
        line(&mut script, format_args!("add table {name}"));
        changes(&mut script, *family, &Table::default(), table);
    }
    script
}

fn difference(written: &RuleSet, wanted: &RuleSet) -> String {
    let mut script = String::new();
    for (family, table) in wanted {
        changes(&mut script, *family, written.get(family).unwrap_or(&Table::default()), table);
    }
    script
}

/// In an order in which nothing is used before it is there, and nothing is removed while it is used.
fn changes(out: &mut String, family: Family, old: &Table, new: &Table) {
    let name = family.table();
    let short = |set: &str| set.split_once(" {").map_or(set.to_owned(), |(head, _)| head.to_owned());
    for (set, declared) in &new.sets {
        if old.sets.get(set) != Some(declared) {
            if let Some(before) = old.sets.get(set) {
                // A set's type or timeout cannot be changed; it is emptied of users below and made again by a full write.
                tracing::debug!(set, before, "a set changes its declaration");
            }
            let (kind, rest) = declared.split_once(' ').unwrap_or((declared, ""));
            line(out, format_args!("add {kind} {name} {rest}"));
        }
    }
    let changed: Vec<(&String, &Chain)> = new.chains.iter().filter(|(n, c)| old.chains.get(*n) != Some(*c)).collect();
    for (chain, content) in &changed {
        if old.chains.contains_key(*chain) {
            line(out, format_args!("flush chain {name} {chain}"));
        } else if content.base.is_empty() {
            line(out, format_args!("add chain {name} {chain}"));
        } else {
            line(out, format_args!("add chain {name} {chain} {{ {} }}", content.base));
        }
    }
    for (chain, content) in &changed {
        for rule in &content.rules {
            line(out, format_args!("add rule {name} {chain} {rule}"));
        }
    }
    for (map, elements) in &new.elements {
        let before = old.elements.get(map);
        for (key, verdict) in before.into_iter().flatten() {
            if elements.get(key) != Some(verdict) {
                line(out, format_args!("delete element {name} {map} {{ {key} }}"));
            }
        }
        for (key, verdict) in elements {
            if before.and_then(|b| b.get(key)) != Some(verdict) {
                line(out, format_args!("add element {name} {map} {{ {key} : {verdict} }}"));
            }
        }
    }
    let gone: Vec<&String> = old.chains.keys().filter(|c| !new.chains.contains_key(*c)).collect();
    for chain in &gone {
        line(out, format_args!("flush chain {name} {chain}"));
    }
    for chain in &gone {
        line(out, format_args!("delete chain {name} {chain}"));
    }
    for (set, declared) in old.sets.iter().filter(|(s, _)| !new.sets.contains_key(*s)) {
        let head = short(declared);
        let kind = head.split(' ').next().unwrap_or("set");
        line(out, format_args!("delete {kind} {name} {set}"));
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::model::fixture::model;
    use crate::rules::render;
    use serde_json::json;

    fn rules(endpoints: serde_json::Value) -> RuleSet {
        render(&model(json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}), endpoints), &Config::new("n1"))
    }

    #[test]
    fn only_the_difference_is_written() {
        let one = rules(json!([{"addresses": ["10.244.0.2"]}]));
        assert_eq!(difference(&one, &one), "");
        let two = rules(json!([{"addresses": ["10.244.0.2"]}, {"addresses": ["10.244.0.3"]}]));
        let added = difference(&one, &two);
        assert_eq!(added.lines().filter(|l| l.contains("dnat to")).count(), 1, "{added}");
        assert!(!added.contains("delete table"));
        let none = difference(&two, &rules(json!([])));
        assert!(none.contains("delete element ip kube-proxy service-ips { 10.96.0.9 . tcp . 80 }"), "{none}");
        assert!(
            none.contains(
                "add element ip kube-proxy no-endpoint-services { 10.96.0.9 . tcp . 80 : goto reject-chain }"
            )
        );
        assert_eq!(none.lines().filter(|l| l.starts_with("delete chain")).count(), 3);
    }

    #[test]
    fn a_whole_write_replaces_what_was_there() {
        let script = whole(&rules(json!([{"addresses": ["10.244.0.2"]}])));
        let lines: Vec<&str> = script.lines().collect();
        assert_eq!(&lines[..3], ["add table ip kube-proxy", "delete table ip kube-proxy", "add table ip kube-proxy"]);
    }
}
