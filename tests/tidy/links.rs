//! Links between documents, and the paths of sources that documents mention.

use std::{fs, path::Path, sync::LazyLock};

use regex::Regex;

/// The links of a document that lead nowhere, and the paths in code font that do not exist.
pub(crate) fn broken(root: &Path, path: &Path, text: &str) -> Vec<String> {
    static LINK: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\]\(([^)\s]+)\)").expect("a valid pattern"));
    static MENTIONED: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"`((?:src|tests|docs|migrations|config|fuzz|benches|helm)/[\w./-]+)`")
            .expect("a valid pattern")
    });
    let folder = root.join(path).parent().expect("a folder").to_owned();
    let links = LINK.captures_iter(text).map(|found| found[1].to_owned());
    let links = links.filter(|link| !link.contains("://") && !link.starts_with("mailto:"));
    let broken_links = links.filter(|link| {
        let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
        let target = if file.is_empty() { root.join(path) } else { folder.join(file) };
        !target.exists() || !anchor.is_empty() && !anchors(&target).contains(&anchor.to_owned())
    });
    let mentioned = MENTIONED.captures_iter(text).map(|found| found[1].to_owned());
    let missing = mentioned.filter(|mentioned| !root.join(mentioned).exists());
    let report = |what: String| format!("{}: {what} does not exist", path.display());
    broken_links.chain(missing).map(report).collect()
}

/// The anchors of the headings of a Markdown file.
fn anchors(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let title = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn planted_links_are_found() {
    let root = crate::root();
    let broken = |text| broken(root, Path::new("docs/reliability.md"), text).len();
    assert_eq!(broken("[x](nowhere.md)"), 1);
    assert_eq!(broken("[x](reliability.md#no-such-heading)"), 1);
    assert_eq!(broken("see `src/nowhere.rs`"), 1);
    assert_eq!(broken("[x](../README.md) [y](https://example.com/z) `src/lib.rs`"), 0);
}
