//! Speed and cost of the released program, measured from outside.
//!
//! `./dev bench` builds the program and runs this with private servers: RabbitMQ, PostgreSQL and
//! the simulator of Customer.io, all on this machine. Absolute numbers depend on the machine;
//! ratios are of runs in turn. Nothing fails because a machine was slow.

#![expect(clippy::disallowed_methods, reason = "a benchmark measures time")]

mod arguments;
mod drain;
mod floor;
mod growth;
mod idle;
mod memory;
mod migration;
mod peers;
mod picture;
mod pure;
mod report;
mod servers;
mod stage;
mod statistics;
mod steady;
mod wire;

use arguments::{Arguments, Part};
use clap::Parser;
use report::Report;
use servers::Servers;

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    rustls::crypto::ring::default_provider().install_default().expect("none is installed");
    let servers = Servers::start();
    let mut report = Report::new(&arguments, &servers).await;
    for part in arguments.parts() {
        match part {
            Part::Floor => floor::measure(&servers, &arguments, &mut report).await,
            Part::Drain => drain::measure(&servers, &arguments, &mut report).await,
            Part::Steady => steady::measure(&servers, &arguments, &mut report).await,
            Part::Peers => peers::measure(&servers, &arguments, &mut report).await,
            Part::Growth => growth::measure(&servers, &arguments, &mut report).await,
            Part::Memory => memory::measure(&servers, &arguments, &mut report).await,
            Part::Migration => migration::measure(&servers, &arguments, &mut report).await,
            Part::Idle => idle::measure(&servers, &arguments, &mut report).await,
            Part::Pure => pure::measure(&arguments.pure, &mut report),
        }
        report.write(&arguments.output);
    }
    report.print();
}
