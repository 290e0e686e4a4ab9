//! Sentences about the service's behaviour, each shown on real RabbitMQ and PostgreSQL with a
//! database and a virtual host of its own. `./dev test` starts the servers and runs them.

mod access;
mod bad_actors;
mod bad_input;
mod budget;
mod bulk;
mod calls;
mod clients;
mod command_line;
mod contracts;
mod crashes;
mod failures;
mod feed;
mod integrity;
mod ladder;
mod ledger;
mod migrations;
mod outage;
mod page;
mod probes;
mod recovery;
mod scale;
mod support;
mod sync;
mod topology;
