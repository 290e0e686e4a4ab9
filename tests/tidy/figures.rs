//! Figures about the code, to compare two checkouts:
//! `TIDY_ROOT=/other/checkout cargo test --test tidy -- --ignored --nocapture figures`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use syn::{spanned::Spanned, visit::Visit};

use crate::{REPEATED_TYPE_NAMES, files_in, long_lines, source, wording};

#[test]
#[ignore = "prints figures and asserts nothing"]
fn figures() {
    let root =
        std::env::var_os("TIDY_ROOT").map_or_else(|| crate::root().to_owned(), PathBuf::from);
    let rust = files_in(&root, &["src", "tests", "fuzz/fuzz_targets"], &["rs"]);
    let src = files_in(&root, &["src"], &["rs"]);
    let lines: usize = rust.iter().map(|(_, text)| text.lines().count()).sum();
    let long: usize = rust.iter().map(|(_, text)| long_lines(text).len()).sum();
    let share = 100.0 * long as f64 / lines as f64;
    println!("type names used twice      {}", repeated_type_names(&src));
    println!("lines over 100 columns     {long} of {lines} ({share:.1} %)");
    println!("avoided phrases            {}", avoided_phrases(&root, &rust));
    println!("lines of bash              {}", bash_lines(&root));
    println!("import cycles in src       {}", import_cycles(&src));
    println!("modules directly in src    {}", modules(&src).len());
    println!("longest function in src    {} lines", longest_function(&src));
}

fn repeated_type_names(src: &[(PathBuf, String)]) -> usize {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for name in src.iter().flat_map(|(_, text)| source::type_names(text)) {
        *counts.entry(name).or_default() += 1;
    }
    let is_allowed = |name: &str| REPEATED_TYPE_NAMES.contains(&name);
    counts.iter().filter(|(name, count)| **count > 1 && !is_allowed(name)).count()
}

fn avoided_phrases(root: &Path, rust: &[(PathBuf, String)]) -> usize {
    let documents = files_in(root, &["docs", "README.md"], &["md"]);
    let in_rust = rust.iter().filter(|(path, _)| !path.starts_with("tests/tidy"));
    let in_rust = in_rust.map(|(path, text)| wording::violations(path, &source::prose(text)).len());
    let in_documents = documents.iter().map(|(path, text)| wording::violations(path, text).len());
    in_rust.sum::<usize>() + in_documents.sum::<usize>()
}

/// The lines of `dev`.
fn bash_lines(root: &Path) -> usize {
    std::fs::read_to_string(root.join("dev")).map_or(0, |text| text.lines().count())
}

/// The modules directly in `src`.
fn modules(src: &[(PathBuf, String)]) -> BTreeSet<String> {
    let module = |path: &Path| {
        let first = path.strip_prefix("src").ok()?.components().next()?;
        Some(Path::new(&first).file_stem()?.to_string_lossy().into_owned())
    };
    let found = src.iter().filter_map(|(path, _)| module(path));
    found.filter(|name| name != "lib" && name != "main").collect()
}

/// The modules directly in `src` that reach themselves by the paths that they name.
fn import_cycles(src: &[(PathBuf, String)]) -> usize {
    let names = modules(src);
    let mut reached: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for name in &names {
        let (file, folder) = (format!("src/{name}.rs"), format!("src/{name}"));
        let own =
            src.iter().filter(|(path, _)| path == Path::new(&file) || path.starts_with(&folder));
        let used = own.flat_map(|(_, text)| text.split("crate::").skip(1));
        let used = used.filter_map(|rest| {
            let module = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
            names.get(module)
        });
        let others = used.filter(|other| *other != name).map(String::as_str);
        reached.insert(name, others.collect());
    }
    for _ in 0..names.len() {
        let before = reached.clone();
        for targets in reached.values_mut() {
            let further = targets.iter().flat_map(|target| before[target].clone());
            *targets = further.chain(targets.iter().copied()).collect();
        }
    }
    reached.iter().filter(|(name, targets)| targets.contains(*name)).count()
}

fn longest_function(src: &[(PathBuf, String)]) -> usize {
    let mut longest = Longest(0);
    for (_, text) in src {
        longest.visit_file(&syn::parse_file(text).expect("the file is Rust"));
    }
    longest.0
}

struct Longest(usize);

impl<'ast> Visit<'ast> for Longest {
    fn visit_block(&mut self, block: &'ast syn::Block) {
        let span = block.span();
        self.0 = self.0.max(span.end().line - span.start().line);
        syn::visit::visit_block(self, block);
    }
}
