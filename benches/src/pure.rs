//! Instructions and allocations per job of the pure parts: benches/pure.

use std::{path::Path, process::Command};

use crate::{report::Report, servers::output};

/// Jobs of the two runs in callgrind. Their difference leaves out the start of the program.
const JOBS: [u32; 2] = [2_000, 4_000];

pub(crate) fn measure(program: &Path, report: &mut Report) {
    let allocations = output(Command::new(program).arg(JOBS[0].to_string()));
    let mut allocations = allocations.split_whitespace().map(|number| number.parse::<f64>());
    for (resource, unit) in [("allocations", "per job"), ("allocated", "bytes/job")] {
        let value = allocations.next().and_then(Result::ok).expect("a number");
        report.add(&format!("pure parts: {resource}"), "this", unit, value);
    }
    let [fewer, more] = JOBS.map(|jobs| instructions(program, jobs));
    let per_job = (more - fewer) / f64::from(JOBS[1] - JOBS[0]);
    report.add("pure parts: instructions", "this", "per job", per_job);
}

/// The instructions that callgrind counts
/// (<https://valgrind.org/docs/manual/cl-manual.html>).
fn instructions(program: &Path, jobs: u32) -> f64 {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    let ran = command.arg(program).arg(jobs.to_string()).output().expect("valgrind is installed");
    let log = String::from_utf8_lossy(&ran.stderr);
    let collected = log.lines().find_map(|line| line.split_once("Collected : "));
    let count = collected.and_then(|(_, count)| count.trim().parse().ok());
    count.unwrap_or_else(|| panic!("callgrind counted nothing:\n{log}"))
}
