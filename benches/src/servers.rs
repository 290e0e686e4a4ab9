//! The servers of a benchmark, and what their processes use.

use std::{path::PathBuf, process::Command};

use tempfile::TempDir;
use test_servers::{Postgres, RabbitMq, Server, make_reachable};

/// A private RabbitMQ and PostgreSQL, which stop when this is dropped.
pub(crate) struct Servers {
    pub(crate) postgres: Postgres,
    pub(crate) rabbitmq: RabbitMq,
    folder: TempDir,
    ticks_per_second: f64,
}

/// CPU time so far, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct CpuTimes {
    pub(crate) postgres: f64,
    pub(crate) rabbitmq: f64,
}

impl Servers {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        make_reachable(folder.path()).expect("the folder is ours");
        let postgres = Postgres::new(folder.path().join("postgres"));
        let rabbitmq = RabbitMq::new(folder.path().join("rabbitmq"));
        postgres.start().expect("PostgreSQL starts");
        rabbitmq.start().expect("RabbitMQ starts");
        let ticks = output(Command::new("getconf").arg("CLK_TCK"));
        let ticks_per_second = ticks.trim().parse().expect("a number");
        Self { postgres, rabbitmq, folder, ticks_per_second }
    }

    pub(crate) fn cpu_times(&self) -> CpuTimes {
        CpuTimes {
            postgres: self.cpu_of_group(self.postmaster()),
            rabbitmq: self.cpu(self.rabbitmq_process()),
        }
    }

    /// CPU time of a process and of its children that have ended, in seconds.
    pub(crate) fn cpu(&self, pid: u32) -> f64 {
        stat(pid).map_or(0.0, |fields| {
            // The name is left out: utime, stime, cutime and cstime are the fields 14 to 17.
            let ticks = fields[11..15].iter().filter_map(|field| field.parse::<u64>().ok());
            ticks.sum::<u64>() as f64 / self.ticks_per_second
        })
    }

    /// The same, with the children that run.
    pub(crate) fn cpu_of_group(&self, parent: u32) -> f64 {
        let processes = std::fs::read_dir("/proc").expect("Linux");
        let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let children = ids
            .filter(|pid: &u32| stat(*pid).is_some_and(|fields| fields[1].parse() == Ok(parent)));
        self.cpu(parent) + children.map(|pid| self.cpu(pid)).sum::<f64>()
    }

    fn postmaster(&self) -> u32 {
        let file: PathBuf = self.folder.path().join("postgres/data/postmaster.pid");
        let text = std::fs::read_to_string(file).expect("PostgreSQL runs");
        text.lines().next().and_then(|line| line.parse().ok()).expect("a process id")
    }

    fn rabbitmq_process(&self) -> u32 {
        let pid = self.rabbitmq.control(&["eval", "list_to_integer(os:getpid())."]);
        pid.expect("RabbitMQ answers").trim().parse().expect("a process id")
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for stopped in [self.rabbitmq.stop(), self.postgres.stop()] {
            if let Err(error) = stopped {
                eprintln!("a server was not stopped: {error}");
            }
        }
    }
}

/// The fields of `/proc/PID/stat` after the name of the process: state, parent, and so on
/// (<https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html>).
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(") ")?;
    Some(fields.split(' ').map(ToOwned::to_owned).collect())
}

/// Peak resident memory of a process, in MiB.
pub(crate) fn peak_memory(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|text| text.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}

/// The standard output of a command that must succeed.
pub(crate) fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
