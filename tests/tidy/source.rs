//! Reading Rust: its prose, its string literals and the names of its types.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::{Item, visit::Visit};

/// The comments and string literals of a Rust file, each in its line, without the code.
pub(crate) fn prose(text: &str) -> String {
    let mut prose = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (length, is_prose) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), true)
        } else if rest.starts_with("/*") {
            (rest.find("*/").map_or(rest.len(), |end| end + 2), true)
        } else if first == 'r' && (rest.starts_with("r\"") || rest.starts_with("r#")) {
            (raw_string_length(rest), true)
        } else if first == '"' {
            (string_length(rest), true)
        } else if first == '\'' {
            (char_length(rest), false)
        } else {
            (first.len_utf8(), false)
        };
        let piece = &rest[..length];
        if is_prose {
            prose.push_str(piece);
        } else {
            prose.extend(piece.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        }
        rest = &rest[length..];
    }
    prose
}

fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

fn raw_string_length(text: &str) -> usize {
    let hashes = text[1..].chars().take_while(|character| *character == '#').count();
    if !text[1 + hashes..].starts_with('"') {
        return 1;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let start = 2 + hashes;
    text[start..].find(&end).map_or(text.len(), |at| start + at + end.len())
}

/// A character literal, or the apostrophe of a lifetime.
fn char_length(text: &str) -> usize {
    let content = &text[1..];
    let length = match content.chars().next() {
        Some('\\') => content[1..].find('\'').map(|end| end + 3),
        Some(one) => content[one.len_utf8()..].starts_with('\'').then_some(2 + one.len_utf8()),
        None => None,
    };
    length.unwrap_or(1)
}

/// The names of the types that a file defines, including those of `text_enum!`.
pub(crate) fn type_names(text: &str) -> Vec<String> {
    let mut names = TypeNames::default();
    names.visit_file(&syn::parse_file(text).expect("the file is Rust"));
    names.0
}

#[derive(Default)]
struct TypeNames(Vec<String>);

impl<'ast> Visit<'ast> for TypeNames {
    fn visit_item(&mut self, item: &'ast Item) {
        match item {
            Item::Struct(item) => self.0.push(item.ident.to_string()),
            Item::Enum(item) => self.0.push(item.ident.to_string()),
            Item::Trait(item) => self.0.push(item.ident.to_string()),
            Item::Type(item) => self.0.push(item.ident.to_string()),
            Item::Union(item) => self.0.push(item.ident.to_string()),
            Item::Macro(item) if item.mac.path.is_ident("text_enum") => {
                self.0.push(text_enum(item.mac.tokens.clone()).0);
            }
            _ => {}
        }
        syn::visit::visit_item(self, item);
    }
}

/// The name of an enum and the texts of its variants, from the tokens in `text_enum!`.
fn text_enum(tokens: TokenStream) -> (String, Vec<String>) {
    let (mut name, mut texts) = (String::new(), Vec::new());
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => name = ident.to_string(),
            TokenTree::Group(variants) if variants.delimiter() == Delimiter::Brace => {
                let mut found = Vec::new();
                collect_literals(variants.stream(), &mut found);
                texts = found.into_iter().map(|(_, text)| text).collect();
            }
            _ => {}
        }
    }
    (name, texts)
}

/// The enums that `text_enum!` defines in a file, with the texts of their variants.
pub(crate) fn text_enums(text: &str) -> Vec<(String, Vec<String>)> {
    let items = syn::parse_file(text).expect("the file is Rust").items.into_iter();
    let enums = items.filter_map(|item| match item {
        Item::Macro(item) if item.mac.path.is_ident("text_enum") => Some(item.mac.tokens),
        _ => None,
    });
    enums.map(text_enum).collect()
}

/// The string literals of a file with their lines, except those of attributes and of `text_enum!`.
pub(crate) fn string_literals(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let tokens = text.parse().expect("the file is Rust");
    collect_literals(tokens, &mut found);
    found
}

fn collect_literals(tokens: TokenStream, found: &mut Vec<(usize, String)>) {
    let tokens: Vec<_> = tokens.into_iter().collect();
    for (index, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Literal(literal) => {
                if let Ok(text) = syn::parse_str::<syn::LitStr>(&literal.to_string()) {
                    found.push((literal.span().start().line, text.value()));
                }
            }
            TokenTree::Group(group) => {
                let before =
                    |distance| index.checked_sub(distance).map(|at| tokens[at].to_string());
                let is_attribute = before(1).as_deref() == Some("#");
                if !is_attribute && before(2).as_deref() != Some("text_enum") {
                    collect_literals(group.stream(), found);
                }
            }
            _ => {}
        }
    }
}

#[test]
fn prose_is_comments_and_strings_alone() {
    let text =
        "let code = 'a'; // one\nlet x: &'a str = \"two\"; /// three\nr#\"four\"#; '\\''; \"5\"";
    let prose = prose(text);
    let words: Vec<_> = prose.split_whitespace().collect();
    assert_eq!(words, ["//", "one", "\"two\"", "///", "three", "r#\"four\"#", "\"5\""]);
    assert_eq!(prose.lines().count(), 3);
}

#[test]
fn type_names_include_text_enums_and_leave_out_associated_types() {
    let text =
        "struct A; enum B {} trait C { } type D = u8; text_enum! { /// Doc.\n E { F = \"f\", } }
        impl Iterator for A { type Item = u8; } mod m { struct G; } fn f() { struct H; }";
    assert_eq!(type_names(text), ["A", "B", "C", "D", "E", "G", "H"]);
}
