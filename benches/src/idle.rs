//! The cost of an idle replica: its timers, checks and leases.

use std::time::{Duration, Instant};

use crate::{arguments::Arguments, report::Report, servers::Servers, stage::Stage};

/// Time after which servers and replica have made their connections and first checks.
const WARM_UP: Duration = Duration::from_secs(10);

pub(crate) async fn measure(servers: &Servers, arguments: &Arguments, report: &mut Report) {
    let duration = Duration::from_secs(arguments.seconds as u64);
    for round in 0..arguments.rounds {
        for (name, program) in arguments.programs(round) {
            let stage = Stage::new(servers, program, &arguments.program).await;
            tokio::time::sleep(WARM_UP).await;
            let before = servers.cpu_times();
            tokio::time::sleep(duration).await;
            let without = servers.cpu_times();
            let (replica, url) = stage.serve(program);
            stage.wait_until_ready(&url).await;
            tokio::time::sleep(WARM_UP).await;
            let (commits, counted) = (stage.commits().await, Instant::now());
            let (began, service) = (servers.cpu_times(), servers.cpu(replica.0.id()));
            tokio::time::sleep(duration).await;
            let (ended, service_ended) = (servers.cpu_times(), servers.cpu(replica.0.id()));
            let commits = (stage.commits().await - commits) / counted.elapsed().as_secs_f64();
            let ms = |seconds: f64| seconds / duration.as_secs_f64() * 1000.0;
            let rabbitmq = (ended.rabbitmq - began.rabbitmq) - (without.rabbitmq - before.rabbitmq);
            for (resource, unit, value) in [
                ("CPU of the service", "ms/s", ms(service_ended - service)),
                ("CPU of PostgreSQL", "ms/s", ms(ended.postgres - began.postgres)),
                ("CPU of RabbitMQ, more than without it", "ms/s", ms(rabbitmq)),
                ("commits", "per s", commits),
            ] {
                report.add(&format!("idle replica: {resource}"), name, unit, value);
            }
            drop(replica);
            stage.remove().await;
        }
    }
}
