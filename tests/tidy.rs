//! Rules of style that neither rustfmt nor clippy checks: the length of lines, the wording of
//! everything that people read, literals that have one place, unique type names, links, and
//! migrations that the release before can work with.
//!
//! Each rule is a function from text to violations, and is tested with planted faults.

#[path = "tidy/figures.rs"]
mod figures;
#[path = "tidy/links.rs"]
mod links;
#[path = "tidy/literals.rs"]
mod literals;
#[path = "tidy/migrations.rs"]
mod migrations;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/wording.rs"]
mod wording;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Maximum columns of a line of Rust. rustfmt has the same limit, but leaves comments, strings and
/// macros alone.
const COLUMNS_MAX: usize = 100;
/// Names that several modules may give to a type of their own.
const REPEATED_TYPE_NAMES: [&str; 4] = ["Config", "Error", "Args", "Problem"];
/// The folders and files that contain the documents.
const DOCUMENTS: [&str; 5] =
    ["docs", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folders: &[&str], extensions: &[&str]) -> Vec<(PathBuf, String)> {
    files_in(root(), folders, extensions)
}

/// The files below some folders with some extensions: path below the root, and content.
fn files_in(root: &Path, folders: &[&str], extensions: &[&str]) -> Vec<(PathBuf, String)> {
    let mut pending: Vec<_> = folders.iter().map(|folder| root.join(folder)).collect();
    let mut found = Vec::new();
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("the folder can be read");
            pending.extend(entries.map(|entry| entry.expect("readable").path()));
        } else if path.extension().is_some_and(|one| extensions.iter().any(|e| one == *e)) {
            let content = fs::read_to_string(&path).expect("the file is UTF-8");
            found.push((path.strip_prefix(root).expect("below the root").to_owned(), content));
        }
    }
    assert!(!found.is_empty(), "{folders:?} contain files");
    found
}

fn rust_files() -> Vec<(PathBuf, String)> {
    files(&["src", "tests", "fuzz/fuzz_targets", "benches/src", "benches/pure/src"], &["rs"])
}

fn assert_none(violations: &[String]) {
    assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), violations.join("\n"));
}

fn long_lines(text: &str) -> Vec<usize> {
    let lines = text.lines().enumerate();
    let long = lines.filter(|(_, line)| line.chars().count() > COLUMNS_MAX);
    long.map(|(index, _)| index + 1).collect()
}

#[test]
fn no_line_of_rust_is_longer_than_100_columns() {
    let violations: Vec<_> = rust_files()
        .iter()
        .flat_map(|(path, text)| {
            long_lines(text).into_iter().map(move |line| format!("{}:{line}", path.display()))
        })
        .collect();
    assert_none(&violations);
    assert_eq!(long_lines(&format!("{}\n{}", "ä".repeat(100), "ä".repeat(101))), [2]);
}

#[test]
fn no_text_uses_an_avoided_phrase() {
    let mut violations = Vec::new();
    for (path, text) in rust_files() {
        // The phrases themselves.
        if path != Path::new("tests/tidy/wording.rs") {
            violations.extend(wording::violations(&path, &source::prose(&text)));
        }
    }
    let others = [
        files(&DOCUMENTS, &["md"]),
        files(&["config", "Cargo.toml", "deny.toml", "clippy.toml"], &["toml"]),
        files(&["src/admin/page", "tests/page", "tests/clients"], &["js", "mjs", "cjs", "html"]),
        files(&["src", "tests", "migrations"], &["sql"]),
        files(&["benches/floor.sql", "benches/growth.sql", "benches/peers/python"], &["sql", "py"]),
    ];
    for (path, text) in others.into_iter().flatten() {
        // An applied migration never changes.
        let is_immutable = path.starts_with("migrations")
            && path.file_name().is_some_and(|name| name.to_string_lossy().as_ref() < "0009");
        if !is_immutable {
            violations.extend(wording::violations(&path, &text));
        }
    }
    assert_none(&violations);
}

#[test]
fn names_of_the_broker_and_statuses_have_one_place() {
    let sources = files(&["src"], &["rs"]);
    let values = literals::Values::of(&sources);
    let mut violations = Vec::new();
    for (path, text) in &sources {
        violations.extend(values.misplaced_in(path, text));
    }
    assert_none(&violations);
}

#[test]
fn no_type_name_is_used_twice() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, text) in files(&["src"], &["rs"]) {
        for name in source::type_names(&text) {
            places.entry(name).or_default().push(path.display().to_string());
        }
    }
    let repeated = places
        .iter()
        .filter(|(name, places)| places.len() > 1 && !REPEATED_TYPE_NAMES.contains(&name.as_str()));
    let violations: Vec<_> =
        repeated.map(|(name, places)| format!("{name}: {}", places.join(", "))).collect();
    assert_none(&violations);
}

#[test]
fn every_migration_works_with_the_release_before() {
    let migrations = files(&["migrations"], &["sql"]);
    let new = migrations.iter().filter(|(path, _)| migrations::applies_to(path));
    let violations: Vec<_> =
        new.flat_map(|(path, text)| migrations::violations(path, text)).collect();
    assert_none(&violations);
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let documents = files(&DOCUMENTS, &["md"]);
    let violations: Vec<_> =
        documents.iter().flat_map(|(path, text)| links::broken(root(), path, text)).collect();
    assert_none(&violations);
}
