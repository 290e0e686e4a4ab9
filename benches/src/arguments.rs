//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// `./dev` handles this option.
const AGAINST: &str = "--against COMMIT measures the program of that commit in turn with this one.";

/// Measures the released program.
#[derive(Debug, Parser)]
#[command(name = "./dev bench", after_help = AGAINST)]
pub(crate) struct Arguments {
    /// Parts to measure; default: floor, drain and steady.
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Events per drain.
    #[arg(long, default_value_t = 20_000)]
    pub(crate) events: usize,
    /// Runs of each measurement, of which the median counts.
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// Duration of the steady rate and of an idle replica, in seconds.
    #[arg(long, default_value_t = 60)]
    pub(crate) seconds: usize,
    /// Jobs in the tables when growth and migration are measured, each once.
    #[arg(long, value_delimiter = ',', default_value = "0,1000000,10000000")]
    pub(crate) jobs: Vec<u64>,
    /// Measures only these scenarios of the drain, by the start of their name.
    #[arg(long)]
    pub(crate) only: Option<String>,
    /// The program.
    #[arg(long, hide = true)]
    pub(crate) program: PathBuf,
    /// A program of another commit, measured in turn with the first.
    #[arg(long, hide = true)]
    pub(crate) baseline: Option<PathBuf>,
    /// The program of the pure parts.
    #[arg(long, hide = true)]
    pub(crate) pure: PathBuf,
    /// Folder with the peers.
    #[arg(long, hide = true)]
    pub(crate) peers: PathBuf,
    /// Folder for the results.
    #[arg(long, hide = true)]
    pub(crate) output: PathBuf,
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// The same work of broker and database without the service.
    Floor,
    /// Closed loop: waiting events are drained.
    Drain,
    /// Open loop: events arrive at a fixed rate.
    Steady,
    /// Other programs that do the same work.
    Peers,
    /// Drain and reads of operators with many jobs in the tables.
    Growth,
    /// Peak memory with bodies of 1, 20 and 200 KB.
    Memory,
    /// The migration of many jobs under load; requires --against.
    Migration,
    /// The cost of an idle replica.
    Idle,
    /// Instructions and allocations of the parts without broker, database and network.
    Pure,
}

impl Arguments {
    pub(crate) fn parts(&self) -> Vec<Part> {
        match &self.parts[..] {
            [] => vec![Part::Floor, Part::Drain, Part::Steady],
            parts => parts.to_vec(),
        }
    }

    /// The programs with their names, in the order of a round: every second round in reverse, so
    /// that slow changes of the machine affect both alike.
    pub(crate) fn programs(&self, round: usize) -> Vec<(&'static str, &PathBuf)> {
        let mut programs = vec![("this", &self.program)];
        programs.extend(self.baseline.iter().map(|baseline| ("baseline", baseline)));
        if round % 2 == 1 {
            programs.reverse();
        }
        programs
    }
}
