//! Where the servers are installed.

use std::{
    cmp::Ordering,
    path::{Path, PathBuf},
    process::Command,
};

use crate::Error;

/// The folder with another Debian, if the servers run in there.
fn root() -> Option<PathBuf> {
    std::env::var_os("TRIXIE").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// A command that runs where the servers are installed.
pub(crate) fn command(program: impl AsRef<Path>) -> Command {
    let program = program.as_ref();
    match root() {
        None => Command::new(program),
        Some(root) => {
            let mut command = Command::new("chroot");
            command.arg(root).arg(program);
            command
        }
    }
}

/// Whether both servers are installed.
pub fn are_servers_installed() -> bool {
    postgres().is_ok() && rabbitmq().is_ok()
}

/// The folder of PostgreSQL's programs.
pub fn postgres() -> Result<PathBuf, Error> {
    let bin = |folder: PathBuf| folder.join("bin");
    let places =
        [("usr/lib/postgresql", ""), ("usr", "pgsql-"), ("opt/homebrew/opt", "postgresql")];
    let found = places.iter().find_map(|(folder, prefix)| newest(folder, prefix, bin));
    found.ok_or(Error::NotInstalled("PostgreSQL"))
}

/// The folder of RabbitMQ's scripts. Debian's own `/usr/sbin/rabbitmq-server` changes the user and
/// the folder; these do not.
pub(crate) fn rabbitmq() -> Result<PathBuf, Error> {
    let sbin = |folder: PathBuf| folder.join("sbin");
    let places = [("usr/lib/rabbitmq/lib", "rabbitmq_server-"), ("opt/homebrew/opt", "rabbitmq")];
    let found = places.iter().find_map(|(folder, prefix)| newest(folder, prefix, sbin));
    found.ok_or(Error::NotInstalled("RabbitMQ"))
}

/// The folder of programs below the entry of `folder` that starts with `prefix` and has the highest
/// version, as seen from the servers' root.
fn newest(folder: &str, prefix: &str, programs: impl Fn(PathBuf) -> PathBuf) -> Option<PathBuf> {
    let outside = root().unwrap_or_else(|| PathBuf::from("/")).join(folder);
    let names = std::fs::read_dir(&outside).ok()?.filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        let is_complete = programs(outside.join(&name)).is_dir();
        (name.starts_with(prefix) && is_complete).then_some(name)
    });
    let name = names.max_by(|a, b| by_version(a, b))?;
    Some(programs(Path::new("/").join(folder).join(name)))
}

/// Compares the numbers in two names, so that 15 comes after 9.
fn by_version(a: &str, b: &str) -> Ordering {
    let numbers = |name: &str| -> Vec<u64> {
        let parts = name.split(|c: char| !c.is_ascii_digit());
        parts.filter_map(|part| part.parse().ok()).collect()
    };
    numbers(a).cmp(&numbers(b)).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(by_version("rabbitmq_server-3.9.1", "rabbitmq_server-3.10.8"), Ordering::Less);
        assert_eq!(by_version("15", "9"), Ordering::Greater);
    }
}
