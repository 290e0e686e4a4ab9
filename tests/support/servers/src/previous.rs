//! The program of the previous release, for the test of upgrades.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    Error,
    process::{io, output, read},
};

/// Builds the release that `tests/previous-release` names, from the history of the checkout `root`,
/// unless `folder` has it. Returns the path of the program, or nothing if the checkout does not
/// have that commit, as a shallow clone or an archive.
pub fn previous_release(root: &Path, folder: &Path) -> Result<Option<PathBuf>, Error> {
    let commit = read(&root.join("tests/previous-release"))?;
    let program = folder.join(&commit).join("customerio-sync");
    if program.exists() {
        return Ok(Some(program));
    }
    let object = format!("{commit}^{{commit}}");
    if output(git(root).args(["cat-file", "-e", &object])).is_err() {
        eprintln!(
            "The previous release, {commit}, is not in the history of this checkout; the test of \
                upgrades does nothing. `git fetch --unshallow` gets it."
        );
        return Ok(None);
    }
    eprintln!("Building the previous release, {commit}");
    let (source, target) = (folder.join("source"), folder.join("target"));
    for path in [&source, &target] {
        let _ = std::fs::remove_dir_all(path);
    }
    std::fs::create_dir_all(&source).map_err(|error| io(&source, error))?;
    let archive = source.join("source.tar");
    output(git(root).arg("archive").arg("--output").arg(&archive).arg(&commit))?;
    output(Command::new("tar").arg("-C").arg(&source).arg("-xf").arg(&archive))?;
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--locked", "--bin", "customerio-sync", "--target-dir"]).arg(&target);
    output(cargo.current_dir(&source).env("SQLX_OFFLINE", "true").env_remove("DATABASE_URL"))?;
    let kept = folder.join(&commit);
    std::fs::create_dir_all(&kept).map_err(|error| io(&kept, error))?;
    // Moved last, so it marks a complete build.
    std::fs::rename(target.join("debug/customerio-sync"), &program)
        .map_err(|error| io(&program, error))?;
    for path in [&source, &target] {
        let _ = std::fs::remove_dir_all(path);
    }
    Ok(Some(program))
}

fn git(root: &Path) -> Command {
    let mut command = Command::new("git");
    command.arg("-C").arg(root);
    command
}

/// The program of the previous release, if the environment variable `PREVIOUS_BINARY` names it, as
/// `./dev test` and `./dev ops` do.
pub fn previous_program() -> Option<PathBuf> {
    std::env::var_os("PREVIOUS_BINARY").filter(|path| !path.is_empty()).map(PathBuf::from)
}
