//! The direction of dependencies: a module names only modules in lower rows of the diagram in
//! `src/lib.rs`.
//!
//! The sources are read, not compiled. Every path that starts with `crate` or leaves its module
//! with `super` is resolved to the module that it names.

use std::{collections::BTreeMap, path::Path};

use syn::visit::Visit;

/// The rows, lowest first. Modules of one row never name each other.
///
/// The folders of `flows` and `admin` count as modules of their own. What is in `admin` and neither
/// in `api` nor in `page` counts as `admin::http`; its root, which builds the router, as `admin`.
const ROWS: [&[&str]; 13] = [
    &["runtime", "simulator"],
    &["event"],
    &["job"],
    &["retry", "diagnosis"],
    &["ledger", "broker", "customerio"],
    &[
        "flows::sync",
        "flows::mirror",
        "flows::outbox",
        "flows::bulk_action",
        "flows::bulk_retry",
        "flows::recovery",
        "flows::integrity",
        "flows::retention",
        "flows::feed",
        "flows::gauges",
        "flows::rate_limit",
    ],
    &["admin::page"],
    &["admin::http"],
    &["admin::api"],
    &["admin"],
    &["config"],
    &["app"],
    &["cli"],
];

/// The only modules that may use a library.
const HOMES: [(&str, &[&str]); 7] = [
    ("sqlx", &["ledger"]),
    ("lapin", &["broker"]),
    // The broker uses it for RabbitMQ's management API, which has no AMQP requests; `runtime` gives
    // the exporter of traces an HTTP client with the configured certificates.
    ("reqwest", &["customerio", "cli", "broker", "runtime"]),
    ("axum", &["admin", "simulator"]),
    ("backoff", &["runtime"]),
    ("prometheus", &["runtime", "broker"]),
    ("clap", &["cli"]),
];

fn row_of(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

/// The module of the rows that a path of segments below `src` belongs to.
fn module_of(segments: &[String]) -> String {
    let segments: Vec<_> = segments.iter().map(String::as_str).collect();
    match segments[..] {
        ["flows", flow, ..] => format!("flows::{flow}"),
        ["admin", folder @ ("api" | "page"), ..] => format!("admin::{folder}"),
        ["admin", "http" | "state" | "health" | "metrics", ..] => "admin::http".to_owned(),
        [module, ..] => module.to_owned(),
        [] => "*".to_owned(),
    }
}

/// The modules and libraries that one source file names.
struct Names<'a> {
    /// The file's module path: `["ledger", "claim"]` for `src/ledger/claim.rs`.
    place: &'a [String],
    /// Number of inline modules around the visitor's position.
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
                let kept = self.place.len().saturating_sub(ups_out_of_file);
                let resolved = [&self.place[..kept], &segments[ups..]].concat();
                if ups_out_of_file > 0 {
                    self.note_ours(&resolved);
                }
            }
            _ => self.found.push(first.clone()),
        }
    }

    fn note_ours(&mut self, segments: &[String]) {
        self.found.push(format!("crate::{}", module_of(segments)));
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
        // The content of a macro is not parsed; its tokens are searched for `crate::`.
        let mut tokens = Vec::new();
        flatten(mac.tokens.clone(), &mut tokens);
        for (start, _) in tokens.iter().enumerate().filter(|(_, token)| *token == "crate") {
            let path = tokens[start + 1..].chunks_exact(3);
            let names = path.map_while(|part| match part {
                [a, b, name] if a == ":" && b == ":" => Some(name.clone()),
                _ => None,
            });
            let names: Vec<_> = names.collect();
            if !names.is_empty() {
                self.note_ours(&names);
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

/// The violations in one file, as sentences.
fn faults(path: &str, source: &str) -> Vec<String> {
    let file = syn::parse_file(source).unwrap_or_else(|error| panic!("{path}: {error}"));
    let place: Vec<String> = path.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    let place: Vec<String> = place.into_iter().filter(|part| part != "mod").collect();
    match path {
        "main.rs" => return Vec::new(),
        "lib.rs" | "flows/mod.rs" => {
            let is_module =
                |item: &syn::Item| matches!(item, syn::Item::Mod(item) if item.content.is_none());
            let others = file.items.iter().filter(|item| !is_module(item));
            return others.map(|_| format!("{path} contains more than modules")).collect();
        }
        _ => {}
    }
    let module = module_of(&place);
    let Some(row) = row_of(&module) else { return vec![format!("{module} is in no row")] };
    let mut names = Names { place: &place, depth: 0, found: Vec::new() };
    names.visit_file(&file);
    names.found.sort();
    names.found.dedup();
    names.found.iter().filter_map(|name| fault(&module, row, name)).collect()
}

fn fault(module: &str, row: usize, name: &str) -> Option<String> {
    if let Some(named) = name.strip_prefix("crate::") {
        if named == module {
            return None;
        }
        return match row_of(named) {
            Some(lower) if lower < row => None,
            Some(_) => Some(format!("{module} names {named}, which is not below it")),
            None => Some(format!("{module} names crate::{named}, which is not a module")),
        };
    }
    let (library, homes) = HOMES.iter().find(|(library, _)| *library == name)?;
    let top = module.split("::").next().unwrap_or(module);
    let is_at_home = homes.contains(&top);
    (!is_at_home).then(|| format!("{module} uses {library}, which only {homes:?} may use"))
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
        ("ledger/claim.rs", "use crate::broker::Connection;", "a sibling import"),
        ("flows/mirror/mod.rs", "use crate::flows::sync::Pipeline;", "a flow that names another"),
        ("flows/mirror/sweep.rs", "use super::super::feed::Feed;", "super to another flow"),
        ("flows/feed.rs", "use super::sync::Pipeline;", "super to another flow from a flat file"),
        ("flows/feed.rs", "use super::super::app::App;", "super out of the folder"),
        ("ledger/claim.rs", "use super::super::app::App;", "super out of an edge"),
        ("retry.rs", "mod tests { use super::super::app::App; }", "super out of an inline module"),
        ("retry.rs", "fn f() { let _ = crate::app::App::start; }", "a path in an expression"),
        (
            "retry.rs",
            "use crate::{job::{Outcome, Reason}, config::Config};",
            "an import in a group",
        ),
        ("retry.rs", "fn f() { println!(\"{}\", crate::config::NAME); }", "a path in a macro"),
        ("flows/feed.rs", "fn f() { vec![crate::flows::sync::X]; }", "a flow in a macro"),
        ("retry.rs", "use crate::Ledger;", "a name of the root"),
        ("retry.rs", "use crate::*;", "everything of the root"),
        ("lib.rs", "pub mod ledger; pub use ledger::Ledger;", "a re-export at the root"),
        ("flows/mod.rs", "pub mod sync; pub use sync::Pipeline;", "a re-export among the flows"),
        ("admin/http/auth.rs", "use crate::admin::api::stats;", "machinery that names an endpoint"),
        ("admin/page/mod.rs", "use super::http::auth::Identity;", "a page that names machinery"),
        ("admin/api/stats.rs", "use crate::admin::router;", "an endpoint that names the router"),
        ("runtime/backoff.rs", "use crate::job::Job;", "a foundation that names a module"),
        ("flows/mirror/mod.rs", "use lapin::Channel;", "a library away from its home"),
        ("flows/mirror/mod.rs", "fn f() { sqlx::query(\"\"); }", "a library in an expression"),
        ("weather.rs", "", "a module in no row"),
        ("flows/weather.rs", "", "a flow in no row"),
    ];
    for (path, source, what) in planted {
        assert!(!faults(path, source).is_empty(), "{what} is not caught: {source}");
    }
    let fine = [
        ("flows/sync/batch.rs", "use crate::ledger::Ledger; use super::inbound::Envelope;"),
        (
            "retry.rs",
            "use crate::job::Outcome; mod tests { use super::*; use crate::job::Reason; }",
        ),
        (
            "admin/api/stats.rs",
            "use crate::{admin::http::problem::Problem, flows::sync::Pipeline};",
        ),
        ("lib.rs", "pub mod ledger;"),
    ];
    for (path, source) in fine {
        assert_eq!(faults(path, source), Vec::<String>::new(), "{source}");
    }
}
