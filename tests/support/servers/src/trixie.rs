//! The servers of Debian trixie, in a folder that they enter by `chroot`.

use std::{os::unix::process::CommandExt, path::Path, process::Command};

use crate::{
    Error,
    process::{io, output},
};

/// Runs a program as it is, except that its servers are those of trixie. `state` is the folder of
/// the servers' data. The mounts are visible to that program alone and end with it. Returns only if
/// it could not be started.
pub fn run_in_trixie(state: &Path, program: &[&str]) -> Error {
    let root = state.join("trixie");
    if let Err(error) = install(&root, state) {
        return error;
    }
    let script = r#"mount -t proc proc "$TRIXIE/proc"; mount --rbind /dev "$TRIXIE/dev"
        for folder in /tmp "$STATE"; do mount --bind "$folder" "$TRIXIE$folder"; done
        exec "$0" "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-euc", script]).args(program);
    for variable in ["DATABASE_URL", "AMQP_URL", "RABBITMQ_MANAGEMENT_URL"] {
        command.env_remove(variable);
    }
    let error = command.env("TRIXIE", &root).env("STATE", state).exec();
    io(Path::new("unshare"), error)
}

fn install(root: &Path, state: &Path) -> Result<(), Error> {
    // Copied last, so it marks a complete installation.
    let hosts = root.join("etc/hosts");
    if !hosts.exists() {
        let _ = std::fs::remove_dir_all(root);
        let mut debootstrap = Command::new("debootstrap");
        debootstrap.args(["--variant=minbase", "--include=postgresql,rabbitmq-server", "trixie"]);
        output(debootstrap.arg(root))?;
        std::fs::copy("/etc/hosts", &hosts).map_err(|error| io(&hosts, error))?;
    }
    let mount_point = root.join(state.strip_prefix("/").unwrap_or(state));
    std::fs::create_dir_all(&mount_point).map_err(|error| io(&mount_point, error))
}
