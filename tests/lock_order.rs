//! The SQL of the ledger takes its locks in the order that `src/ledger/locks.rs` documents.
//!
//! PostgreSQL would detect a deadlock and end one transaction, so no other test fails if a
//! statement takes its locks in another order.

use std::{fs, path::Path};

const JOBS: &str = "signup_customerio_sync_jobs";

/// The files of the ledger: name and content.
fn ledger() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ledger");
    let files = fs::read_dir(folder).expect("src/ledger exists");
    let read = |path: &Path| fs::read_to_string(path).expect("the file is UTF-8");
    files
        .map(|entry| entry.expect("readable").path())
        .map(|path| (path.file_name().expect("a name").display().to_string(), read(&path)))
        .collect()
}

/// The text without comments of SQL and Rust, with single spaces.
fn normalized(text: &str) -> String {
    let code = text.lines().map(|line| line.split("--").next().unwrap_or_default());
    let code = code.filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
}

/// The (sub)query that ends at `end`, without the subqueries in it.
fn enclosing_query(sql: &str, end: usize) -> String {
    let mut depth = 0_usize;
    let mut query = Vec::new();
    for character in sql[..end].chars().rev() {
        match character {
            ')' => depth += 1,
            '(' if depth == 0 => break,
            '(' => depth -= 1,
            // The end of the statement before, or of the Rust code before the SQL.
            ';' | '"' if depth == 0 => break,
            _ if depth == 0 => query.push(character),
            _ => {}
        }
    }
    query.into_iter().rev().collect()
}

/// Locking clauses that neither follow the lock order nor skip locked rows.
fn unordered_locks(sql: &str) -> Vec<String> {
    let sql = normalized(sql);
    let clauses = [" FOR UPDATE", " FOR NO KEY UPDATE", " FOR SHARE", " FOR KEY SHARE"];
    let mut found = Vec::new();
    for clause in clauses {
        for (at, _) in sql.match_indices(clause) {
            let query = enclosing_query(&sql, at);
            let key = if query.contains(JOBS) { "signup_id" } else { "id" };
            let is_ours = query.contains(JOBS) || query.contains("FROM signups");
            let is_ordered = query.rsplit_once("ORDER BY ").is_some_and(|(_, order)| {
                let first = order.split([',', ' ']).next().unwrap_or_default();
                first.rsplit('.').next() == Some(key)
            });
            let rest = &sql[at + clause.len()..];
            let skips = rest.strip_prefix(" OF j").unwrap_or(rest).starts_with(" SKIP LOCKED");
            if is_ours && !is_ordered && !skips {
                let start = query.len().saturating_sub(100);
                let start = query.ceil_char_boundary(start);
                found.push(format!("{}{clause}", &query[start..]));
            }
        }
    }
    found
}

/// A file that updates the flags of signups locks these signups before it changes jobs.
fn locks_jobs_first(file: &str) -> bool {
    let file = normalized(file);
    if !file.contains("flags::update(") {
        return false;
    }
    let jobs = file.find(&format!("UPDATE {JOBS}"));
    let signups = file.find("locks::signups");
    signups.is_none_or(|signups| jobs.is_some_and(|jobs| jobs < signups))
}

#[test]
fn locks_on_several_rows_are_ordered_or_skip_locked_rows() {
    let mut locks = 0;
    for (name, content) in ledger() {
        locks += content.matches("FOR UPDATE").count() + content.matches("FOR NO KEY").count();
        assert_eq!(unordered_locks(&content), Vec::<String>::new(), "{name}");
    }
    assert!(locks > 8, "the ledger's locks were found");
}

#[test]
fn signups_are_locked_before_their_jobs() {
    let files = ledger();
    let with_flags = files.iter().filter(|(_, content)| content.contains("flags::update("));
    assert!(with_flags.count() >= 3, "the ledger's updates of flags were found");
    for (name, content) in &files {
        assert!(!locks_jobs_first(content), "{name} changes jobs before it locks their signups");
    }
}

#[test]
fn flags_of_signups_are_updated_in_one_place() {
    for (name, content) in ledger() {
        let updates = normalized(&content);
        let updates = updates.contains("UPDATE signups ") && updates.contains("customerio_synced");
        assert_eq!(updates, name == "flags.rs", "{name}");
    }
}

/// The completions of a batch lock their signups by the update of the flags, in the lock order,
/// before they change jobs.
fn locks_completed_signups_in_order(flags: &str, settle: &str) -> bool {
    let (flags, settle) = (normalized(flags), normalized(settle));
    let update =
        flags.split("UPDATE signups s").find(|rest| rest.contains("SET customerio_synced = true"));
    let is_ordered = update.is_some_and(|update| {
        update.split("WHERE").next().is_some_and(|from| from.contains("ORDER BY id ) AS e"))
    });
    let locked = settle.find("flags::set_synced(");
    let changed = locked.and_then(|at| settle[..at].rfind("settle_jobs(&mut"));
    let began = locked.and_then(|at| settle[..at].rfind("begin_to_settle()"));
    is_ordered && began.is_some() && changed.is_none_or(|changed| Some(changed) < began)
}

#[test]
fn completed_signups_are_locked_in_order_before_their_jobs() {
    let files = ledger();
    let content = |wanted: &str| {
        let (_, content) = files.iter().find(|(name, _)| name == wanted).expect("a file");
        content.clone()
    };
    let (flags, settle) = (content("flags.rs"), content("settle.rs"));
    assert!(locks_completed_signups_in_order(&flags, &settle));
    let unordered = flags.replacen("ORDER BY id", "", 1);
    assert!(!locks_completed_signups_in_order(&unordered, &settle));
    let late = "begin_to_settle() settle_jobs(&mut transaction) flags::set_synced(";
    assert!(!locks_completed_signups_in_order(&flags, late));
}

#[test]
fn planted_faults_are_found() {
    let unordered = "SELECT id FROM signup_customerio_sync_jobs WHERE claim = $1 FOR UPDATE";
    assert_eq!(unordered_locks(unordered).len(), 1);
    let by_another_key = "UPDATE signup_customerio_sync_jobs SET claim = NULL WHERE id IN (
        SELECT id FROM signup_customerio_sync_jobs
        WHERE id IN (SELECT id FROM failed ORDER BY signup_id)
        ORDER BY created_at
        FOR UPDATE
    )";
    assert_eq!(unordered_locks(by_another_key).len(), 1);
    let signups = "SELECT id FROM signups WHERE id = ANY($1) FOR NO KEY UPDATE";
    assert_eq!(unordered_locks(signups).len(), 1);
    let skipping = "SELECT id FROM signup_customerio_sync_jobs LIMIT 1 FOR UPDATE SKIP LOCKED";
    assert_eq!(unordered_locks(skipping), Vec::<String>::new());
    let ordered = "SELECT j.id FROM signup_customerio_sync_jobs j ORDER BY j.signup_id FOR SHARE";
    assert_eq!(unordered_locks(ordered), Vec::<String>::new());

    let change = "UPDATE signup_customerio_sync_jobs SET status = 'failed'";
    assert!(locks_jobs_first(&format!("{change} locks::signups(&ids) flags::update(&changed)")));
    assert!(locks_jobs_first(&format!("{change} flags::update(&changed)")));
    assert!(!locks_jobs_first(&format!("locks::signups(&ids) {change} flags::update(&changed)")));
}
