//! Sentences about the service's behaviour, each shown on real RabbitMQ and PostgreSQL with a database and a virtual
//! host of its own. `./dev test` starts the servers and runs them.

mod bad_input;
mod calls;
mod clients;
mod command_line;
mod crashes;
mod ladder;
mod ledger;
mod migrations;
mod probes;
mod support;
mod sync;
mod topology;
