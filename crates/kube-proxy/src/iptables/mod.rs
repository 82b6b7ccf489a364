//! The iptables back end, for hosts that need it: upstream's chains, written through `iptables-restore`, each time only the
//! chains that changed.

mod render;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use component_base::program::{self, Failed};

use crate::local::Surroundings;
use crate::model::Family;
use crate::proxier::Change;
pub(crate) use render::Balancer;
use render::{ChainId, Chains, Fragment, JUMPS, LOCALHOST_GUARD, is_ours, needs};

/// Another program that holds the lock is waited for.
const WAIT: &str = "--wait=5";

pub(crate) struct Iptables {
    families: Vec<Rules>,
}

struct Rules {
    around: Surroundings,
    mark: u32,
    balancer: Balancer,
    services: BTreeMap<String, Fragment>,
    /// What the kernel has, as far as it was written from here.
    written: Option<Chains>,
    counted: BTreeMap<&'static str, Counted>,
}

/// Rules of one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub total: usize,
    pub written: usize,
}

fn count(old: &Chains, new: &Chains) -> BTreeMap<&'static str, Counted> {
    let mut tables: BTreeMap<&'static str, Counted> = BTreeMap::new();
    for (id @ (table, _), rules) in new {
        let counted = tables.entry(table).or_default();
        counted.total += rules.len();
        counted.written += if old.get(id) == Some(rules) { 0 } else { rules.len() };
    }
    tables
}

/// The program's name begins with this.
fn program(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

impl Iptables {
    pub(crate) fn new(mark: u32, surroundings: [Surroundings; 2], balancer: Balancer) -> Self {
        let rules = |around| Rules {
            around,
            mark,
            balancer,
            services: BTreeMap::new(),
            written: None,
            counted: BTreeMap::new(),
        };
        Iptables { families: surroundings.into_iter().map(rules).collect() }
    }

    /// From now on leaves out a family that the host has no rules for, unless it has none for either.
    pub(crate) async fn leave_out_unusable(&mut self) {
        let mut found = Vec::new();
        for rules in &self.families {
            found.push(present(rules.around.family).await);
        }
        self.keep_usable(&found);
    }

    fn keep_usable<T>(&mut self, found: &[Result<T, Failed>]) {
        if found.iter().all(Result::is_err) {
            return; // writing says why
        }
        let mut found = found.iter();
        self.families.retain(|rules| match found.next() {
            Some(Err(error)) => {
                tracing::warn!(%error, "no rules are written for {}", rules.around.family.name());
                false
            }
            _ => true,
        });
    }

    /// Whether rules are written for the family.
    pub(crate) fn has(&self, family: Family) -> bool {
        self.families.iter().any(|rules| rules.around.family == family)
    }

    /// Writes the changes; what one family's program refuses does not keep the other's from being written. After a failure
    /// everything of the family is written next time.
    pub(crate) async fn sync(&mut self, changes: &[Change<'_>]) -> Result<usize, Failed> {
        let mut lines = Ok(0);
        for rules in &mut self.families {
            rules.take(changes);
            lines = match (lines, rules.write().await) {
                (Ok(lines), Ok(more)) => Ok(lines + more),
                (Err(first), _) => Err(first),
                (Ok(_), Err(error)) => Err(error),
            };
        }
        lines
    }

    /// How many rules there are, and how many were written last.
    pub(crate) fn counts(&self) -> Vec<(Family, &'static str, Counted)> {
        let of = |rules: &Rules| {
            let family = rules.around.family;
            rules.counted.iter().map(|(table, counted)| (family, *table, *counted)).collect::<Vec<_>>()
        };
        self.families.iter().flat_map(of).collect()
    }

    /// Looks whether the kernel still has the rules; if somebody removed them, the next sync writes everything.
    pub(crate) async fn check(&mut self) {
        for rules in &mut self.families {
            let Some(written) = &rules.written else { continue };
            let present = present(rules.around.family).await.unwrap_or_default();
            let is_there = |(id, wanted): (&ChainId, &Vec<String>)| present.rules.get(id) == Some(&wanted.len());
            let leads = |jump: usize| !needs(&rules.around, jump) || present.jumps.contains(&jump);
            if !written.iter().all(is_there) || !(0..JUMPS.len()).all(leads) {
                tracing::warn!(
                    program = program(rules.around.family),
                    "the rules were changed by somebody else and are restored"
                );
                rules.written = None;
            }
        }
    }

    /// The surroundings changed: all Services come again as `all`.
    pub(crate) fn surround(&mut self, surroundings: [Surroundings; 2], all: &[Change<'_>]) {
        for around in surroundings {
            let own = self.families.iter_mut().find(|rules| rules.around.family == around.family);
            if let Some(rules) = own.filter(|rules| rules.around != around) {
                rules.around = around;
                rules.services.clear();
                rules.take(all);
            }
        }
    }
}

impl Rules {
    fn take(&mut self, changes: &[Change<'_>]) {
        for change in changes {
            match change.new {
                Some(rules) => {
                    let fragment = render::fragment(change.key, rules, &self.around, self.balancer);
                    self.services.insert(change.key.to_owned(), fragment);
                }
                None => drop(self.services.remove(change.key)),
            }
        }
    }

    fn wanted(&self) -> Chains {
        let skeleton = render::skeleton(&self.around, self.mark);
        let mut chains = skeleton.chains;
        for fragment in self.services.values() {
            chains.extend(fragment.own.iter().map(|(id, rules)| (id.clone(), rules.clone())));
            for (id, rules) in &fragment.shared {
                chains.entry(id.clone()).or_default().extend(rules.iter().cloned());
            }
        }
        for (id, rules) in skeleton.last {
            chains.entry(id).or_default().extend(rules);
        }
        chains
    }

    async fn write(&mut self) -> Result<usize, Failed> {
        let family = self.around.family;
        let wanted = self.wanted();
        let (written, jumps) = match self.written.take() {
            Some(written) => (written, None),
            None => {
                let mut present = present(family).await?;
                if !self.around.localhost {
                    present = present.without_kubelets();
                }
                // A chain that is jumped to cannot go.
                for jump in present.jumps.iter().filter(|jump| !needs(&self.around, **jump)) {
                    change_jump(family, *jump, "-D").await?;
                }
                // What is in the chains is not known, so that each differs from what is wanted.
                let unknown = |id: &ChainId| (id.clone(), vec![String::new()]);
                (present.rules.keys().map(unknown).collect(), Some(present.jumps))
            }
        };
        let script = difference(&written, &wanted);
        if !script.is_empty() {
            let restore = format!("{}-restore", program(family));
            program::run(&restore, &[WAIT, "--noflush"], &script).await?;
        }
        if let Some(present) = jumps {
            for jump in (0..JUMPS.len()).rev().filter(|i| needs(&self.around, *i) && !present.contains(i)) {
                change_jump(family, jump, "-I").await?;
            }
        }
        self.counted = count(&written, &wanted);
        self.written = Some(wanted);
        Ok(script.lines().count())
    }
}

/// What `iptables-restore --noflush` makes one set of chains of the other with: a chain that is declared is emptied.
fn difference(old: &Chains, new: &Chains) -> String {
    let mut script = String::new();
    let tables: BTreeSet<&str> = old.keys().chain(new.keys()).map(|(table, _)| *table).collect();
    for table in tables {
        let of = |chains: &Chains| -> BTreeMap<String, Vec<String>> {
            chains.iter().filter(|((t, _), _)| *t == table).map(|((_, c), rules)| (c.clone(), rules.clone())).collect()
        };
        let (old, new) = (of(old), of(new));
        let changed: Vec<_> = new.iter().filter(|(chain, rules)| old.get(*chain) != Some(*rules)).collect();
        let gone: Vec<&String> = old.keys().filter(|chain| !new.contains_key(*chain)).collect();
        if changed.is_empty() && gone.is_empty() {
            continue;
        }
        // Writing to a String cannot fail.
        let _ = writeln!(script, "*{table}");
        for chain in changed.iter().map(|(chain, _)| *chain).chain(gone.iter().copied()) {
            let _ = writeln!(script, ":{chain} - [0:0]");
        }
        for (chain, rules) in &changed {
            for rule in *rules {
                let _ = writeln!(script, "-A {chain} {rule}");
            }
        }
        for chain in &gone {
            let _ = writeln!(script, "-X {chain}");
        }
        let _ = writeln!(script, "COMMIT");
    }
    script
}

/// The words of a jump from one of the kernel's chains.
fn jump_words(jump: usize, verb: &str) -> Vec<String> {
    let (table, from, to, is_new, comment) = JUMPS[jump];
    let mut words = vec![WAIT, "-t", table, verb, from];
    if is_new {
        words.extend(["-m", "conntrack", "--ctstate", "NEW"]);
    }
    if !comment.is_empty() {
        words.extend(["-m", "comment", "--comment", comment]);
    }
    words.extend(["-j", to]);
    words.into_iter().map(str::to_owned).collect()
}

async fn change_jump(family: Family, jump: usize, verb: &str) -> Result<(), Failed> {
    let words = jump_words(jump, verb);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    program::run(program(family), &words, "").await.map(drop)
}

/// Lets the kernel lead packets of 127.0.0.1 elsewhere, and answers back to it.
pub(crate) fn let_localhost_be_routed() -> std::io::Result<()> {
    std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1")
}

/// What the kernel has of ours.
#[derive(Debug, Default, PartialEq, Eq)]
struct Present {
    /// Our chains, with how many rules they have.
    rules: BTreeMap<ChainId, usize>,
    /// Which of [`JUMPS`] are there.
    jumps: BTreeSet<usize>,
    /// Whether upstream's kubelet lives here.
    has_kubelet: bool,
}

async fn present(family: Family) -> Result<Present, Failed> {
    let mut present = Present::default();
    for table in ["filter", "nat"] {
        let said = program::run(&format!("{}-save", program(family)), &["-t", table], "").await?;
        present.read(table, &said);
    }
    Ok(present)
}

impl Present {
    /// From what `iptables-save` says of a table.
    fn read(&mut self, table: &'static str, said: &str) {
        self.has_kubelet |= said.contains(":KUBE-KUBELET-CANARY ");
        for line in said.lines() {
            if let Some(chain) = line.strip_prefix(':').and_then(|rest| rest.split(' ').next()) {
                if is_ours(chain) {
                    self.rules.entry((table, chain.to_owned())).or_default();
                }
                continue;
            }
            let mut words = line.split(' ');
            let (Some("-A"), Some(chain)) = (words.next(), words.next()) else { continue };
            if let Some(count) = self.rules.get_mut(&(table, chain.to_owned())) {
                *count += 1;
            }
            let to = line.rsplit_once("-j ").map(|(_, to)| to);
            let found =
                JUMPS.iter().position(|(t, from, target, ..)| *t == table && *from == chain && to == Some(*target));
            self.jumps.extend(found);
        }
    }

    /// What may be removed: the chain that upstream's kubelet shares with its proxy is left to it.
    fn without_kubelets(mut self) -> Self {
        if self.has_kubelet {
            self.rules.retain(|(_, chain), _| chain != LOCALHOST_GUARD);
            self.jumps.retain(|jump| JUMPS[*jump].2 != LOCALHOST_GUARD);
        }
        self
    }
}

/// Removes our chains and what leads to them, if there are any.
pub(crate) async fn clean_up() -> Result<(), Failed> {
    for family in Family::BOTH {
        let Ok(found) = present(family).await else { continue }; // the host has no such program
        let found = found.without_kubelets();
        for jump in found.jumps {
            change_jump(family, jump, "-D").await?;
        }
        let chains = found.rules.into_keys().map(|id| (id, vec![String::new()])).collect();
        let script = difference(&chains, &Chains::new());
        if !script.is_empty() {
            let restore = format!("{}-restore", program(family));
            program::run(&restore, &[WAIT, "--noflush"], &script).await?;
        }
    }
    Ok(())
}
