//! The results: a table, a JSON file and a picture.

use std::{fs, path::Path};

use comfy_table::{Table, presets::ASCII_MARKDOWN};
use serde::Serialize;
use sqlx::PgPool;
use test_servers::Server;

use crate::{
    arguments::Arguments,
    picture,
    servers::Servers,
    statistics::{median, percentile},
};

/// All values of a measurement, one per run.
#[derive(Debug, Serialize)]
pub(crate) struct Measurement {
    pub(crate) what: String,
    /// Whose it is: `this`, `baseline`, or a peer.
    pub(crate) program: String,
    pub(crate) unit: &'static str,
    pub(crate) values: Vec<f64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    at: String,
    command: String,
    processors: usize,
    postgresql: String,
    rabbitmq: String,
    pub(crate) measurements: Vec<Measurement>,
}

impl Report {
    pub(crate) async fn new(arguments: &Arguments, servers: &Servers) -> Self {
        let url = servers.postgres.url().expect("PostgreSQL runs");
        let pool = PgPool::connect(&url).await.expect("PostgreSQL answers");
        let postgresql = sqlx::query_scalar("SHOW server_version").fetch_one(&pool).await;
        let rabbitmq = servers.rabbitmq.control(&["version"]).expect("RabbitMQ answers");
        let words = std::env::args().skip(1).filter(|word| !word.contains('/'));
        Self {
            at: chrono::Utc::now().to_rfc3339(),
            command: format!("./dev bench {}", words.collect::<Vec<_>>().join(" ")),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            postgresql: postgresql.expect("PostgreSQL answers"),
            rabbitmq: rabbitmq.trim().to_owned(),
            measurements: Vec::with_capacity(arguments.rounds),
        }
    }

    pub(crate) fn add(&mut self, what: &str, program: &str, unit: &'static str, value: f64) {
        eprintln!("{what}, {program}: {} {unit}", shown(value));
        let same = |one: &&mut Measurement| one.what == what && one.program == program;
        match self.measurements.iter_mut().find(same) {
            Some(measurement) => measurement.values.push(value),
            None => self.measurements.push(Measurement {
                what: what.to_owned(),
                program: program.to_owned(),
                unit,
                values: vec![value],
            }),
        }
    }

    pub(crate) fn median(&self, what: &str, program: &str) -> Option<f64> {
        self.find(what, program).map(|measurement| median(&measurement.values))
    }

    fn find(&self, what: &str, program: &str) -> Option<&Measurement> {
        self.measurements.iter().find(|one| one.what == what && one.program == program)
    }

    /// Writes `results.json` and `results.svg`.
    pub(crate) fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).expect("the folder can be created");
        let json = serde_json::to_string_pretty(self).expect("JSON");
        fs::write(folder.join("results.json"), json).expect("written");
        fs::write(folder.join("results.svg"), picture::rates(self)).expect("written");
    }

    pub(crate) fn print(&self) {
        println!(
            "{} processors, PostgreSQL {}, RabbitMQ {}: {}",
            self.processors, self.postgresql, self.rabbitmq, self.command
        );
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN).set_header([
            "measurement",
            "program",
            "median",
            "unit",
            "least to most",
            "ratio to the baseline",
        ]);
        for one in &self.measurements {
            let (least, most) = (percentile(&one.values, 0.0), percentile(&one.values, 1.0));
            table.add_row([
                one.what.clone(),
                one.program.clone(),
                shown(median(&one.values)),
                one.unit.to_owned(),
                format!("{} to {}", shown(least), shown(most)),
                self.ratio(one).unwrap_or_default(),
            ]);
        }
        println!("{table}");
    }

    /// The median of the ratios of each round, with the least and the greatest.
    fn ratio(&self, one: &Measurement) -> Option<String> {
        let baseline = self.find(&one.what, "baseline").filter(|_| one.program == "this")?;
        let pairs = one.values.iter().zip(&baseline.values);
        let ratios: Vec<_> = pairs.map(|(this, baseline)| this / baseline).collect();
        let (least, most) = (percentile(&ratios, 0.0), percentile(&ratios, 1.0));
        Some(format!("{:.2} ({least:.2} to {most:.2})", median(&ratios)))
    }
}

/// A value with about three digits.
pub(crate) fn shown(value: f64) -> String {
    match value.abs() {
        0.0..1.0 => format!("{value:.4}"),
        1.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
