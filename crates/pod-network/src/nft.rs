//! A table of the kernel's packet filter as text, and writing what changed of it with `nft -f -` in one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use component_base::program::{self, Failed};

/// A set or a map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Set {
    pub is_map: bool,
    /// What stands between the braces of its declaration.
    pub declaration: String,
    pub elements: BTreeSet<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Where the kernel calls it; empty: only other chains do.
    pub hook: String,
    pub rules: Vec<String>,
}

/// What a table is to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    pub sets: BTreeMap<String, Set>,
    pub chains: BTreeMap<String, Chain>,
}

/// A table in the kernel, as far as it was written from here.
pub(crate) struct Writer {
    /// `inet name`
    name: &'static str,
    written: Option<Table>,
}

impl Writer {
    pub(crate) fn new(name: &'static str) -> Self {
        Writer { name, written: None }
    }

    /// Makes the kernel's table equal to `wanted`; without any content it is removed.
    pub(crate) async fn write(&mut self, wanted: Table) -> Result<(), Failed> {
        let (name, nothing) = (self.name, Table::default());
        let script = match &self.written {
            Some(written) if *written == wanted => String::new(),
            _ if wanted == nothing => format!("add table {name}\ndelete table {name}\n"),
            Some(written) if *written != nothing => difference(name, written, &wanted),
            _ => whole(name, &wanted),
        };
        self.written = None;
        if !script.is_empty() {
            program::run("nft", &["-f", "-"], &script).await?;
        }
        self.written = Some(wanted);
        Ok(())
    }

    /// Looks whether the kernel still has the chains with their rules. If somebody removed some, everything is written next
    /// time.
    pub(crate) async fn is_whole(&mut self) -> bool {
        let Some(written) = &self.written else { return true }; // it is written next time anyway
        if *written == Table::default() {
            return true;
        }
        let words: Vec<&str> = ["--json", "--terse", "list", "table"].into_iter().chain(self.name.split(' ')).collect();
        let wanted = written.chains.iter().map(|(name, chain)| (name.clone(), chain.rules.len())).collect();
        let whole = program::run("nft", &words, "").await.is_ok_and(|said| rules_in(&said) == wanted);
        if !whole {
            self.written = None;
        }
        whole
    }
}

/// The table anew: whatever was in it goes in the same transaction.
fn whole(name: &str, wanted: &Table) -> String {
    let head = format!("add table {name}\ndelete table {name}\nadd table {name}\n");
    head + &difference(name, &Table::default(), wanted)
}

/// How many rules each chain has, from what `nft --json list table` says.
fn rules_in(said: &str) -> BTreeMap<String, usize> {
    let mut chains = BTreeMap::new();
    let all: serde_json::Value = serde_json::from_str(said).unwrap_or_default();
    for item in all["nftables"].as_array().into_iter().flatten() {
        if let Some(chain) = item["chain"]["name"].as_str() {
            chains.entry(chain.to_owned()).or_default();
        } else if let Some(chain) = item["rule"]["chain"].as_str() {
            *chains.entry(chain.to_owned()).or_default() += 1;
        }
    }
    chains
}

/// The commands that make one table of the other, in an order in which nothing is used before it is there, and nothing is
/// removed while it is used. A set's declaration does not change: another declaration needs another name.
fn difference(name: &str, old: &Table, new: &Table) -> String {
    let mut script = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        let _ = writeln!(script, "{text}");
    };
    let kind = |set: &Set| if set.is_map { "map" } else { "set" };
    for (set, content) in new.sets.iter().filter(|(set, _)| !old.sets.contains_key(*set)) {
        line(format_args!("add {} {name} {set} {{ {} }}", kind(content), content.declaration));
    }
    let changed: Vec<_> = new.chains.iter().filter(|(chain, now)| old.chains.get(*chain) != Some(*now)).collect();
    for (chain, now) in &changed {
        match (old.chains.contains_key(*chain), now.hook.is_empty()) {
            (true, _) => line(format_args!("flush chain {name} {chain}")),
            (false, true) => line(format_args!("add chain {name} {chain}")),
            (false, false) => line(format_args!("add chain {name} {chain} {{ {} }}", now.hook)),
        }
    }
    for (chain, now) in &changed {
        for rule in &now.rules {
            line(format_args!("add rule {name} {chain} {rule}"));
        }
    }
    let nothing = BTreeSet::new();
    for (verb, from, to) in [("delete", old, new), ("add", new, old)] {
        for (set, content) in &from.sets {
            let other = to.sets.get(set);
            if verb == "delete" && other.is_none() {
                continue; // its elements go with it
            }
            let others = other.map_or(&nothing, |other| &other.elements);
            let elements: Vec<&str> = content.elements.difference(others).map(String::as_str).collect();
            if !elements.is_empty() {
                line(format_args!("{verb} element {name} {set} {{ {} }}", elements.join(", ")));
            }
        }
    }
    // A map that goes may lead to a chain that goes.
    for (set, content) in old.sets.iter().filter(|(set, content)| content.is_map && !new.sets.contains_key(*set)) {
        line(format_args!("delete {} {name} {set}", kind(content)));
    }
    let gone: Vec<&String> = old.chains.keys().filter(|chain| !new.chains.contains_key(*chain)).collect();
    for chain in &gone {
        line(format_args!("flush chain {name} {chain}"));
    }
    for chain in &gone {
        line(format_args!("delete chain {name} {chain}"));
    }
    for (set, content) in old.sets.iter().filter(|(set, content)| !content.is_map && !new.sets.contains_key(*set)) {
        line(format_args!("delete {} {name} {set}", kind(content)));
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(elements: &[&str], chains: &[(&str, &[&str])]) -> Table {
        let elements = elements.iter().map(|e| (*e).to_owned()).collect();
        let set = Set { is_map: false, declaration: "type ipv4_addr ;".into(), elements };
        let chain =
            |rules: &[&str]| Chain { hook: String::new(), rules: rules.iter().map(|r| (*r).to_owned()).collect() };
        Table {
            sets: [("peers".to_owned(), set)].into(),
            chains: chains.iter().map(|(name, rules)| ((*name).to_owned(), chain(rules))).collect(),
        }
    }

    #[test]
    fn only_the_difference_is_written() {
        let before = table(&["10.0.0.1", "10.0.0.2"], &[("a", &["accept"]), ("b", &["drop"])]);
        assert_eq!(difference("inet t", &before, &before), "");
        let after = table(&["10.0.0.2", "10.0.0.3"], &[("a", &["accept"]), ("c", &["drop"])]);
        let lines: Vec<String> = difference("inet t", &before, &after).lines().map(str::to_owned).collect();
        assert_eq!(
            lines,
            [
                "add chain inet t c",
                "add rule inet t c drop",
                "delete element inet t peers { 10.0.0.1 }",
                "add element inet t peers { 10.0.0.3 }",
                "flush chain inet t b",
                "delete chain inet t b",
            ]
        );
        let gone = difference("inet t", &after, &Table::default());
        assert!(gone.ends_with("delete set inet t peers\n") && !gone.contains("element"), "{gone}");
    }

    #[test]
    fn rules_are_counted_by_chain() {
        let said = r#"{"nftables": [{"metainfo": {}}, {"chain": {"name": "a"}}, {"chain": {"name": "b"}}, {"rule": {"chain": "a"}}]}"#;
        assert_eq!(rules_in(said), [("a".to_owned(), 1), ("b".to_owned(), 0)].into());
    }
}
