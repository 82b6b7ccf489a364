//! The nftables back end: one table a family, written through `nft -f -`, each time only what changed and in one
//! transaction.

mod claims;
mod render;
mod syntax;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use component_base::program::{self, Failed};
use serde_json::Value as Json;

use crate::local::Surroundings;
use crate::model::ServiceRules;
use crate::proxier::Change;
use claims::{Changed, Claims};
use render::{Fragment, HOOKS};
pub(crate) use syntax::Mark;
use syntax::{Key, Rule, Value, Writer};

/// The tables of both families, as far as they were written from here.
pub(crate) struct Nftables {
    tables: Vec<Table>,
    /// Whether the kernel has what the tables here say.
    written: bool,
}

/// One family's table. Several Services may ask for the same thing: chains they share, an endpoint of both, or an external
/// address that only one of them can have.
struct Table {
    writer: Writer,
    around: Surroundings,
    chains: Claims<String, Arc<Vec<Rule>>>,
    /// Sets of clients, with their timeout in seconds.
    sets: Claims<String, u64>,
    elements: Claims<Key, Value>,
}

/// What the kernel has of a table.
#[derive(Debug, Default, PartialEq, Eq)]
struct Present {
    /// Chains with how many rules they have.
    chains: BTreeMap<String, usize>,
    /// `set` or `map`, by name.
    sets: BTreeMap<String, &'static str>,
}

impl Nftables {
    pub(crate) fn new(mark: Mark, surroundings: [Surroundings; 2]) -> Self {
        let tables = surroundings.into_iter().map(|around| Table::new(mark, around)).collect();
        Nftables { tables, written: false }
    }

    /// Writes the changes. After a failure everything is written next time; then `all` are all Services.
    pub(crate) async fn sync<'a>(
        &mut self,
        changes: &[Change<'a>],
        all: impl Fn() -> Vec<Change<'a>>,
    ) -> Result<usize, Failed> {
        if !self.written {
            return self.write_all(&all()).await;
        }
        let script: String = self.tables.iter_mut().map(|table| table.update(changes)).collect();
        if script.is_empty() {
            return Ok(0);
        }
        self.written = false;
        program::run("nft", &["-f", "-"], &script).await?;
        self.written = true;
        Ok(script.lines().count())
    }

    /// Writes everything. What the kernel knows of clients and their endpoints stays, if the tables there let it.
    async fn write_all(&mut self, all: &[Change<'_>]) -> Result<usize, Failed> {
        let mut present = Vec::new();
        for table in &self.tables {
            present.push(table.present().await?);
        }
        let mut script = String::new();
        for (table, present) in self.tables.iter_mut().zip(&present) {
            script.push_str(&table.start(Some(present), all));
        }
        if let Err(error) = program::run("nft", &["-f", "-"], &script).await {
            tracing::debug!(%error, "the tables cannot be changed into ours and are made anew");
            script = self.tables.iter_mut().map(|table| table.start(None, all)).collect();
            program::run("nft", &["-f", "-"], &script).await?;
        }
        self.written = true;
        Ok(script.lines().count())
    }

    /// Looks whether the kernel still has the rules; if somebody removed them, the next sync writes everything.
    pub(crate) async fn check(&mut self) {
        for table in &self.tables {
            let whole = table.present().await.is_ok_and(|present| present.chains == table.expected());
            if !whole {
                tracing::warn!(
                    table = table.writer.table(),
                    "the rules were changed by somebody else and are restored"
                );
                self.written = false;
            }
        }
    }

    /// The surroundings changed: everything is written next time.
    pub(crate) fn surround(&mut self, surroundings: [Surroundings; 2]) {
        for (table, around) in self.tables.iter_mut().zip(surroundings) {
            if table.around != around {
                table.around = around;
                self.written = false;
            }
        }
    }
}

/// Removes the tables.
pub(crate) async fn clean_up() -> Result<(), Failed> {
    let mut script = String::new();
    for ip in ["ip", "ip6"] {
        line(&mut script, format_args!("add table {ip} kube-proxy\ndelete table {ip} kube-proxy"));
    }
    program::run("nft", &["-f", "-"], &script).await.map(drop)
}

impl Table {
    fn new(mark: Mark, around: Surroundings) -> Self {
        let writer = Writer { family: around.family, mark };
        Table { writer, around, chains: Claims::default(), sets: Claims::default(), elements: Claims::default() }
    }

    fn fragment(&self, key: &str, rules: Option<&ServiceRules>) -> Fragment {
        rules.map(|rules| render::fragment(key, rules, &self.around)).unwrap_or_default()
    }

    /// The table with these Services and nothing else. `present` is changed into it; without, the table is made anew.
    fn start(&mut self, present: Option<&Present>, all: &[Change<'_>]) -> String {
        *self = Table::new(self.writer.mark, self.around.clone());
        let table = self.writer.table();
        let nothing = Present::default();
        let mut script = format!("add table {table}\n");
        match present {
            Some(_) => line(&mut script, format_args!("flush table {table}")),
            None => line(&mut script, format_args!("delete table {table}\nadd table {table}")),
        }
        let present = present.unwrap_or(&nothing);
        let declared: Vec<(String, String)> = self.writer.declarations();
        for (name, declaration) in &declared {
            line(&mut script, format_args!("add {declaration}"));
            if let Some(kind) = present.sets.get(name) {
                line(&mut script, format_args!("flush {kind} {table} {name}"));
            }
        }
        let skeleton = render::skeleton(&self.around);
        for (name, _) in &skeleton {
            let hook = HOOKS
                .iter()
                .find(|hook| hook.chain == name)
                .map(|hook| format!(" {{ type {} hook {} priority {} ; }}", hook.kind, hook.hook, hook.priority));
            line(&mut script, format_args!("add chain {table} {name}{}", hook.unwrap_or_default()));
        }
        for (name, rules) in &skeleton {
            self.add_rules(&mut script, name, rules);
        }
        script.push_str(&self.update(all));
        let node_port_ips = self.around.node_port_ips.iter().flatten();
        let elements: Vec<Changed<Key, Value>> = node_port_ips
            .map(|ip| Changed { key: Key::NodePortIp(*ip), before: None, now: Some(Value::Present) })
            .collect();
        self.write_elements(&mut script, &elements);
        // What was there before and no longer is: chains first, because they use sets.
        let wanted = self.expected();
        for name in present.chains.keys().filter(|name| !wanted.contains_key(*name)) {
            line(&mut script, format_args!("delete chain {table} {name}"));
        }
        let is_wanted =
            |name: &String| self.sets.now(name).is_some() || declared.iter().any(|(known, _)| known == name);
        for (name, kind) in present.sets.iter().filter(|(name, _)| !is_wanted(name)) {
            line(&mut script, format_args!("delete {kind} {table} {name}"));
        }
        script
    }

    /// The chains that the kernel must have, with how many rules they have.
    fn expected(&self) -> BTreeMap<String, usize> {
        let skeleton = render::skeleton(&self.around).into_iter().map(|(name, rules)| (name, rules.len()));
        skeleton.chain(self.chains.iter().map(|(name, rules)| (name.clone(), rules.len()))).collect()
    }

    /// Takes the changes in. Gives the commands that make the kernel's table follow, in an order in which nothing is used
    /// before it is there, and nothing is removed while it is used.
    fn update(&mut self, changes: &[Change<'_>]) -> String {
        for change in changes {
            let (old, new) = (self.fragment(change.key, change.old), self.fragment(change.key, change.new));
            self.chains.replace(change.id, old.chains, new.chains);
            self.sets.replace(change.id, old.sets, new.sets);
            self.elements.replace(change.id, old.elements, new.elements);
        }
        let (chains, sets, elements) = (self.chains.changes(), self.sets.changes(), self.elements.changes());
        let table = self.writer.table();
        let mut script = String::new();
        for set in sets.iter().filter(|set| set.before.is_none()) {
            let (name, address) = (&set.key, self.writer.address_type());
            let seconds = set.now.unwrap_or_default();
            line(
                &mut script,
                format_args!(
                    "add set {table} {name} {{ type {address} ; flags dynamic,timeout ; timeout {seconds}s ; }}"
                ),
            );
        }
        for chain in &chains {
            match (&chain.before, &chain.now) {
                (None, Some(_)) => line(&mut script, format_args!("add chain {table} {}", chain.key)),
                (Some(_), _) => line(&mut script, format_args!("flush chain {table} {}", chain.key)),
                (None, None) => {}
            }
        }
        for chain in &chains {
            self.add_rules(&mut script, &chain.key, chain.now.as_deref().map_or(&[], Vec::as_slice));
        }
        self.write_elements(&mut script, &elements);
        for chain in chains.iter().filter(|chain| chain.now.is_none()) {
            line(&mut script, format_args!("delete chain {table} {}", chain.key));
        }
        for set in sets.iter().filter(|set| set.now.is_none()) {
            line(&mut script, format_args!("delete set {table} {}", set.key));
        }
        script
    }

    fn add_rules(&self, script: &mut String, chain: &str, rules: &[Rule]) {
        let table = self.writer.table();
        for rule in rules {
            line(script, format_args!("add rule {table} {chain} {}", self.writer.rule(rule)));
        }
    }

    /// What goes, then what comes, with one command for each set or map.
    fn write_elements(&self, script: &mut String, changes: &[Changed<Key, Value>]) {
        let table = self.writer.table();
        let mut deleted: BTreeMap<String, String> = BTreeMap::new();
        let mut added: BTreeMap<String, String> = BTreeMap::new();
        for Changed { key, before, now } in changes {
            let holder = self.writer.holder(key);
            if before.is_some() {
                // Writing to a String cannot fail.
                let _ = write!(deleted.entry(holder.clone()).or_default(), "{key}, ");
            }
            if let Some(value) = now {
                let _ = write!(added.entry(holder).or_default(), "{key}{value}, ");
            }
        }
        for (verb, lists) in [("delete", &deleted), ("add", &added)] {
            for (holder, list) in lists {
                line(script, format_args!("{verb} element {table} {holder} {{ {} }}", list.trim_end_matches(", ")));
            }
        }
    }

    /// What the kernel has; nothing if there is no such table.
    async fn present(&self) -> Result<Present, Failed> {
        let table = self.writer.table();
        let words: Vec<&str> = ["--json", "--terse", "list", "table"].into_iter().chain(table.split(' ')).collect();
        match program::run("nft", &words, "").await {
            Ok(out) => Ok(Present::parse(&out)),
            Err(Failed::Refused { said, .. }) if said.contains("No such file or directory") => Ok(Present::default()),
            Err(error) => Err(error),
        }
    }
}

impl Present {
    /// From what `nft --json list table` says.
    fn parse(text: &str) -> Self {
        let mut present = Present::default();
        let all: Json = serde_json::from_str(text).unwrap_or_default();
        for item in all["nftables"].as_array().into_iter().flatten() {
            let name = |kind: &str, field: &str| item[kind][field].as_str().map(str::to_owned);
            if let Some(chain) = name("chain", "name") {
                present.chains.entry(chain).or_default();
            } else if let Some(chain) = name("rule", "chain") {
                *present.chains.entry(chain).or_default() += 1;
            } else if let Some(set) = name("set", "name") {
                present.sets.insert(set, "set");
            } else if let Some(map) = name("map", "name") {
                present.sets.insert(map, "map");
            }
        }
        present
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{text}");
}
