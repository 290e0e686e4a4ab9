//! Which way the code points: a module names only modules in lower rows of the picture in
//! `src/lib.rs`.
//!
//! The sources are read, not compiled: every path that starts with `crate` or leaves its module
//! with `super` is followed to the module that it names.

use std::{collections::BTreeMap, path::Path};

use syn::visit::Visit;

/// The rows, lowest first. Modules of one row never name each other.
const ROWS: [&[&str]; 9] = [
    &["event", "trace", "reconnect", "metrics", "lifecycle"],
    &["job"],
    &["retry", "diagnosis"],
    &["ledger", "broker", "customerio"],
    &["sync", "mirror", "feed", "bulk", "recovery", "budget", "integrity"],
    &["admin", "simulator"],
    &["config"],
    &["app", "telemetry"],
    &["cli"],
];

/// Where a library is used, and nowhere else.
const HOMES: [(&str, &[&str]); 6] = [
    ("sqlx", &["ledger"]),
    ("lapin", &["broker"]),
    ("reqwest", &["customerio", "cli"]),
    ("axum", &["admin", "simulator"]),
    ("backoff", &["reconnect"]),
    ("clap", &["cli"]),
];

fn row_of(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

/// The modules and libraries that one source file names.
struct Names<'a> {
    /// The file's place: `["ledger", "open"]` for `src/ledger/open.rs`.
    place: &'a [String],
    /// How many inline modules the visitor is in.
    depth: usize,
    found: Vec<String>,
}

impl Names<'_> {
    fn note(&mut self, segments: &[String]) {
        let [first, rest @ ..] = segments else { return };
        match first.as_str() {
            "crate" => self.note_ours(rest),
            "super" => {
                let ups = 1 + rest.iter().take_while(|segment| *segment == "super").count();
                // The first steps lead out of inline modules, such as `mod tests`.
                let ups_out_of_file = ups.saturating_sub(self.depth);
                if ups_out_of_file >= self.place.len().max(1) {
                    self.note_ours(&segments[ups..]);
                }
            }
            _ => self.found.push(first.clone()),
        }
    }

    fn note_ours(&mut self, segments: &[String]) {
        match segments.first() {
            Some(module) => self.found.push(format!("crate::{module}")),
            None => self.found.push("crate::*".to_owned()),
        }
    }

    fn note_tree(&mut self, prefix: &mut Vec<String>, tree: &syn::UseTree) {
        match tree {
            syn::UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.note_tree(prefix, &path.tree);
                prefix.pop();
            }
            syn::UseTree::Name(name) => self.note_leaf(prefix, name.ident.to_string()),
            syn::UseTree::Rename(rename) => self.note_leaf(prefix, rename.ident.to_string()),
            syn::UseTree::Glob(_) => self.note(prefix),
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|item| self.note_tree(prefix, item))
            }
        }
    }

    fn note_leaf(&mut self, prefix: &[String], leaf: String) {
        let mut segments = prefix.to_vec();
        segments.push(leaf);
        self.note(&segments);
    }
}

impl<'ast> Visit<'ast> for Names<'_> {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.note_tree(&mut Vec::new(), &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<_> =
            path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if segments.len() > 1 {
            self.note(&segments);
        }
        syn::visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.depth += usize::from(item.content.is_some());
        syn::visit::visit_item_mod(self, item);
        self.depth -= usize::from(item.content.is_some());
    }

    fn visit_macro(&mut self, mac: &'ast syn::Macro) {
        // What stands in a macro is not parsed; `crate::` in it is looked for in its tokens.
        let mut tokens = Vec::new();
        flatten(mac.tokens.clone(), &mut tokens);
        for window in tokens.windows(4) {
            if window[0] == "crate" && window[1] == ":" && window[2] == ":" {
                self.found.push(format!("crate::{}", window[3]));
            }
        }
        syn::visit::visit_macro(self, mac);
    }
}

fn flatten(stream: proc_macro2::TokenStream, tokens: &mut Vec<String>) {
    for tree in stream {
        match tree {
            proc_macro2::TokenTree::Group(group) => flatten(group.stream(), tokens),
            other => tokens.push(other.to_string()),
        }
    }
}

/// What is wrong with one file, in sentences.
fn faults(path: &str, source: &str) -> Vec<String> {
    let file = syn::parse_file(source).unwrap_or_else(|error| panic!("{path}: {error}"));
    let place: Vec<String> = path.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    let place: Vec<String> = place.into_iter().filter(|part| part != "mod").collect();
    let module = place[0].as_str();
    if module == "main" {
        return Vec::new();
    }
    if module == "lib" {
        let is_more =
            |item: &&syn::Item| !matches!(item, syn::Item::Mod(item) if item.content.is_none());
        return file
            .items
            .iter()
            .filter(is_more)
            .map(|_| "lib.rs holds more than modules".to_owned())
            .collect();
    }
    let Some(row) = row_of(module) else { return vec![format!("{module} stands in no row")] };
    let mut names = Names { place: &place, depth: 0, found: Vec::new() };
    names.visit_file(&file);
    names.found.sort();
    names.found.dedup();
    names.found.iter().filter_map(|name| fault(module, row, name)).collect()
}

fn fault(module: &str, row: usize, name: &str) -> Option<String> {
    if let Some(named) = name.strip_prefix("crate::") {
        if named == module {
            return None;
        }
        return match row_of(named) {
            Some(lower) if lower < row => None,
            Some(_) => Some(format!("{module} names {named}, which is not below it")),
            None => Some(format!("{module} names crate::{named}, which is no module")),
        };
    }
    let (library, homes) = HOMES.iter().find(|(library, _)| *library == name)?;
    (!homes.contains(&module))
        .then(|| format!("{module} uses {library}, which is at home in {homes:?}"))
}

/// Every source file, by its path below `src`.
fn sources() -> BTreeMap<String, String> {
    fn collect(folder: &Path, root: &Path, sources: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(folder).expect("the folder can be read") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                collect(&path, root, sources);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).expect("below the root").display().to_string();
                sources.insert(name, std::fs::read_to_string(&path).expect("the file can be read"));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = BTreeMap::new();
    collect(&root, &root, &mut sources);
    sources
}

#[test]
fn every_module_names_only_modules_below_it() {
    let sources = sources();
    assert!(sources.len() > 30, "the sources were found");
    let faults: Vec<_> = sources
        .iter()
        .flat_map(|(path, source)| faults(path, source).into_iter().map(move |one| (path, one)))
        .collect();
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn planted_faults_are_caught() {
    let planted = [
        ("retry.rs", "use crate::ledger::Ledger;", "an upward import"),
        ("ledger/open.rs", "use crate::broker::Link;", "a sibling import"),
        ("mirror.rs", "use super::app::App;", "super out of a flat file"),
        ("ledger/open.rs", "use super::super::sync::Sync;", "super out of a folder"),
        ("retry.rs", "mod tests { use super::super::app::App; }", "super out of an inline module"),
        ("retry.rs", "fn f() { let _ = crate::app::App::start; }", "a path in an expression"),
        (
            "retry.rs",
            "use crate::{job::{Outcome, Reason}, config::Config};",
            "an import in a group",
        ),
        ("retry.rs", "fn f() { println!(\"{}\", crate::config::NAME); }", "a path in a macro"),
        ("retry.rs", "use crate::Ledger;", "a name of the root"),
        ("retry.rs", "use crate::*;", "everything of the root"),
        ("lib.rs", "pub mod ledger; pub use ledger::Ledger;", "a re-export at the root"),
        ("mirror.rs", "use lapin::Channel;", "a library away from its home"),
        ("mirror.rs", "fn f() { sqlx::query(\"\"); }", "a library in an expression"),
        ("weather.rs", "", "a module in no row"),
    ];
    for (path, source, what) in planted {
        assert!(!faults(path, source).is_empty(), "{what} is not caught: {source}");
    }
    let fine = [
        ("sync/batch.rs", "use crate::ledger::Ledger; use super::item::Item;"),
        (
            "retry.rs",
            "use crate::job::Outcome; mod tests { use super::*; use crate::job::Reason; }",
        ),
        ("lib.rs", "pub mod ledger;"),
    ];
    for (path, source) in fine {
        assert_eq!(faults(path, source), Vec::<String>::new(), "{source}");
    }
}
