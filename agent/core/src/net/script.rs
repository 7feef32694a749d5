//! Turns a [`Ruleset`], or the difference of two, into a script for `nft -f -`. A script is one
//! transaction: it applies whole or not at all.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::ruleset::{Chain, Ruleset, Set};

impl Ruleset {
    /// The script that makes `table` this ruleset, whatever it was before.
    pub fn full_script(&self, table: &str) -> String {
        let mut script =
            format!("add table ip {table}\ndelete table ip {table}\nadd table ip {table}\n");
        script.push_str(&self.script_from(&Self::default(), table));
        script
    }

    /// The script that leads `table` from `programmed` to this ruleset, touching only what
    /// differs; empty when nothing does.
    pub fn script_from(&self, programmed: &Self, table: &str) -> String {
        let mut script = Script { table, text: String::new() };
        script.add_missing(programmed, self);
        script.delete_elements(programmed, self);
        script.rewrite_chains(programmed, self);
        script.add_elements(programmed, self);
        script.delete_surplus(programmed, self);
        script.text
    }

    /// The script that removes `table`, also when it is not there.
    pub fn removal_script(table: &str) -> String {
        format!("add table ip {table}\ndelete table ip {table}\n")
    }
}

struct Script<'a> {
    table: &'a str,
    text: String,
}

impl Script<'_> {
    fn line(&mut self, verb: &str, object: &str, rest: std::fmt::Arguments<'_>) {
        let table = self.table;
        writeln!(self.text, "{verb} {object} ip {table} {rest}").expect("a String takes any text");
    }

    /// Sets and chains first: rules and elements refer to them.
    fn add_missing(&mut self, from: &Ruleset, to: &Ruleset) {
        for (name, set) in missing(&to.sets, &from.sets) {
            self.line("add", set.kind, format_args!("{name} {{ type {}; }}", set.key));
        }
        for (name, chain) in missing(&to.chains, &from.chains) {
            match chain.hook {
                Some(hook) => {
                    self.line("add", "chain", format_args!("{name} {{ {hook}; policy accept; }}"))
                }
                None => self.line("add", "chain", format_args!("{name}")),
            }
        }
    }

    /// Elements that go, and those whose value changes, which are added again later.
    fn delete_elements(&mut self, from: &Ruleset, to: &Ruleset) {
        for (name, set) in &from.sets {
            let wanted = to.sets.get(name);
            let gone: Vec<&str> = set
                .elements
                .iter()
                .filter(|(key, value)| {
                    wanted.is_none_or(|wanted| wanted.elements.get(*key) != Some(value))
                })
                .map(|(key, _)| key.as_str())
                .collect();
            if !gone.is_empty() {
                self.line("delete", "element", format_args!("{name} {{ {} }}", gone.join(", ")));
            }
        }
    }

    fn rewrite_chains(&mut self, from: &Ruleset, to: &Ruleset) {
        for (name, chain) in &from.chains {
            if to.chains.get(name).is_none_or(|wanted| wanted.rules != chain.rules) {
                self.line("flush", "chain", format_args!("{name}"));
            }
        }
        for (name, chain) in &to.chains {
            if from.chains.get(name).is_none_or(|old| old.rules != chain.rules) {
                for rule in &chain.rules {
                    self.line("add", "rule", format_args!("{name} {rule}"));
                }
            }
        }
    }

    fn add_elements(&mut self, from: &Ruleset, to: &Ruleset) {
        for (name, set) in &to.sets {
            let present = from.sets.get(name);
            let new: Vec<String> = set
                .elements
                .iter()
                .filter(|(key, value)| {
                    present.is_none_or(|present| present.elements.get(*key) != Some(value))
                })
                .map(|(key, value)| match value {
                    Some(value) => format!("{key} : {value}"),
                    None => key.clone(),
                })
                .collect();
            if !new.is_empty() {
                self.line("add", "element", format_args!("{name} {{ {} }}", new.join(", ")));
            }
        }
    }

    /// Chains and sets that nothing refers to any more.
    fn delete_surplus(&mut self, from: &Ruleset, to: &Ruleset) {
        for (name, _) in missing::<Chain>(&from.chains, &to.chains) {
            self.line("delete", "chain", format_args!("{name}"));
        }
        for (name, set) in missing::<Set>(&from.sets, &to.sets) {
            self.line("delete", set.kind, format_args!("{name}"));
        }
    }
}

/// What is in `all` and not in `some`, by name.
fn missing<'a, T>(
    all: &'a BTreeMap<String, T>,
    some: &'a BTreeMap<String, T>,
) -> impl Iterator<Item = (&'a String, &'a T)> {
    all.iter().filter(|(name, _)| !some.contains_key(*name))
}

#[cfg(test)]
mod tests;
