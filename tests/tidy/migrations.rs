//! Migrations that the release before could not work with, as far as their text shows.
//!
//! Whether a new CHECK admits what the release before writes does not show in its text. The chaos
//! test of upgrades runs both releases on the new schema.

use std::{path::Path, sync::LazyLock};

use regex::Regex;

/// The first migration that the rule applies to. Earlier ones are released and never change.
const FIRST: &str = "0011";

/// Whether the rule applies to a migration.
pub(crate) fn applies_to(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().as_ref() >= FIRST)
}

/// The statements of a migration that the release before could not work with.
pub(crate) fn violations(path: &Path, text: &str) -> Vec<String> {
    let text = normalized(text);
    let statements = text.split(';').map(str::trim).filter(|statement| !statement.is_empty());
    let found = statements.filter_map(|statement| Some((statement, problem(statement, &text)?)));
    found.map(|(statement, why)| format!("{}: {why}: {statement}", path.display())).collect()
}

/// The statements in lower case, with single spaces, without comments, texts and bodies of
/// functions.
fn normalized(text: &str) -> String {
    static IGNORED: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?s)--[^\n]*|/\*.*?\*/|\$\$.*?\$\$|'[^']*'").expect("a valid pattern")
    });
    let text = IGNORED.replace_all(text, " ").to_lowercase();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn problem(statement: &str, migration: &str) -> Option<&'static str> {
    static ALTERED: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"^alter table (?:if exists )?(?:only )?([\w.]+) (.*)$").expect("a pattern")
    });
    static INDEXED: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"^create unique index .*? on (?:only )?([\w.]+)").expect("a pattern")
    });
    let is_new = |table: &str| {
        let created = Regex::new(&format!(r"create table (if not exists )?{table}\b"));
        created.expect("a table's name is a pattern").is_match(migration)
    };
    if let Some(altered) = ALTERED.captures(statement) {
        let actions = if is_new(&altered[1]) { Vec::new() } else { split(&altered[2]) };
        return actions.into_iter().find_map(problem_of_action);
    }
    if INDEXED.captures(statement).is_some_and(|indexed| !is_new(&indexed[1])) {
        return Some("the release before may write what a new unique index refuses");
    }
    let is_renamed = statement.starts_with("alter ") && statement.contains(" rename ");
    if is_renamed && !statement.starts_with("alter index ") {
        return Some("the release before uses the old name");
    }
    let is_harmless = ["drop index ", "drop trigger "].iter().any(|it| statement.starts_with(it));
    if statement.starts_with("drop ") && !is_harmless {
        return Some("the release before may use what is dropped");
    }
    statement.starts_with("truncate").then_some("the release before still reads these rows")
}

/// The actions of an `ALTER TABLE`, which commas separate outside of parentheses.
fn split(actions: &str) -> Vec<&str> {
    let mut depth = 0_i32;
    let parts = actions.split(|character| {
        depth += i32::from(character == '(') - i32::from(character == ')');
        character == ',' && depth == 0
    });
    parts.map(str::trim).collect()
}

fn problem_of_action(action: &str) -> Option<&'static str> {
    let has = |part: &str| action.contains(part);
    let starts_with = |start: &str| action.starts_with(start);
    if starts_with("rename ") {
        return Some("the release before uses the old name");
    }
    if starts_with("drop ") && !starts_with("drop constraint ") {
        return Some("the release before may use what is dropped");
    }
    if starts_with("alter ") {
        let is_stricter = has(" type ") || has(" set not null") || has(" drop default");
        return is_stricter.then_some("the release before expects the column as it was");
    }
    let is_constraint = ["constraint ", "check ", "check(", "foreign key", "unique", "primary key"];
    let added = action.strip_prefix("add ")?;
    if is_constraint.iter().any(|start| added.starts_with(start)) {
        if has("unique") || has("primary key") || has(" exclude ") {
            return Some("the release before may write what a new constraint refuses");
        }
        return (!has("not valid"))
            .then_some("a new constraint is NOT VALID first, and checked in a later migration");
    }
    let is_required = has(" not null") && !has(" default ") && !has(" generated ");
    is_required.then_some("the release before does not write a new column; give it a default")
}

#[test]
fn planted_migrations_are_found() {
    for sql in [
        "ALTER TABLE signups DROP COLUMN phone;",
        "ALTER TABLE signups DROP phone;",
        "ALTER TABLE signups\n    RENAME COLUMN phone TO telephone;",
        "ALTER TABLE signups RENAME TO people;",
        "ALTER TABLE signups ALTER COLUMN bet_amount TYPE numeric(10, 2);",
        "ALTER TABLE signups ADD COLUMN x text, ALTER COLUMN phone SET NOT NULL;",
        "ALTER TABLE signups ADD COLUMN x text NOT NULL;",
        "ALTER TABLE signups ADD CONSTRAINT c CHECK (phone <> '');",
        "ALTER TABLE signups ADD CONSTRAINT c UNIQUE (phone) NOT VALID;",
        "ALTER TABLE signups ADD FOREIGN KEY (id) REFERENCES people (id);",
        "CREATE UNIQUE INDEX one_phone ON signups (phone);",
        "CREATE TABLE t (a int); ALTER TABLE signups ALTER phone DROP DEFAULT;",
        "DROP TABLE call_hold;",
        "DROP FUNCTION renew_call_share;",
        "ALTER VIEW people RENAME TO persons;",
        "TRUNCATE sync_attempts;",
    ] {
        assert_eq!(violations(Path::new("x"), sql).len(), 1, "{sql}");
    }
    for sql in [
        "-- DROP TABLE signups;\nALTER TABLE signups ADD COLUMN x text CHECK (x IN ('a', 'b'));",
        "ALTER TABLE signups ADD COLUMN x boolean NOT NULL DEFAULT false, ADD COLUMN y int;",
        "ALTER TABLE signups DROP CONSTRAINT c, ADD CONSTRAINT c CHECK (x > 0) NOT VALID;",
        "ALTER TABLE signups VALIDATE CONSTRAINT c;",
        "CREATE TABLE t (a int NOT NULL); CREATE UNIQUE INDEX i ON t (a);",
        "CREATE TABLE t (a int); ALTER TABLE t ADD UNIQUE (a);",
        "DROP INDEX jobs_open; CREATE INDEX jobs_open ON signup_customerio_sync_jobs (status);",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN DROP TABLE t; END $$;",
        "INSERT INTO signups (id) VALUES ('; DROP TABLE signups;');",
    ] {
        assert_eq!(violations(Path::new("x"), sql), Vec::<String>::new());
    }
    assert!(applies_to(Path::new("migrations/0011_x.sql")));
    assert!(!applies_to(Path::new("migrations/0010_x.sql")));
}
