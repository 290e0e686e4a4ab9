//! Command line of the servers, for `./dev`:
//!
//! ```text
//! test-servers installed       whether both servers are installed, as the exit status
//! test-servers running FOLDER  whether both run, as the exit status
//! test-servers start FOLDER    starts both, and prints their URLs as shell assignments
//! test-servers stop FOLDER     stops both; their data stays
//! test-servers remove FOLDER   stops both and removes their data
//! test-servers free-port       prints a free port
//! test-servers previous ROOT FOLDER
//!                              builds the release before that of the checkout ROOT, unless FOLDER
//!                              has it, and prints its path
//! test-servers in-trixie FOLDER PROGRAM ARGUMENTS...
//!                              runs a program that finds the servers of Debian trixie
//! ```

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use test_servers::{
    Error, Postgres, RabbitMq, Server, are_servers_installed, free_port, make_reachable,
    postgres_programs, previous_release, run_in_trixie, temporary_folder,
};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["installed"] => Ok(are_servers_installed()),
        ["running", folder] => data_folder(folder.as_ref()).map(|folder| are_running(&folder)),
        ["start", folder] => start(folder.as_ref()).map(|()| true),
        ["stop", folder] => stop(folder.as_ref()).map(|_| true),
        ["remove", folder] => remove(folder.as_ref()).map(|()| true),
        ["free-port"] => {
            println!("{}", free_port());
            Ok(true)
        }
        ["previous", root, folder] => {
            previous_release(root.as_ref(), folder.as_ref()).map(|path| {
                println!("{}", path.unwrap_or_default().display());
                true
            })
        }
        ["in-trixie", folder, ref program @ ..] if !program.is_empty() => {
            Err(run_in_trixie(folder.as_ref(), program))
        }
        _ => {
            eprintln!(
                "usage: test-servers \
                    installed|running|start|stop|remove|free-port|previous|in-trixie ..."
            );
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("test-servers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn servers(folder: &Path) -> (Postgres, RabbitMq) {
    (Server::new(folder.join("postgres")), Server::new(folder.join("rabbitmq")))
}

fn are_running(folder: &Path) -> bool {
    let (postgres, rabbitmq) = servers(folder);
    postgres.is_running() && rabbitmq.is_running()
}

fn start(folder: &Path) -> Result<(), Error> {
    let folder = data_folder(folder)?;
    let (postgres, rabbitmq) = servers(&folder);
    if !are_running(&folder) {
        std::thread::scope(|scope| {
            let starting = scope.spawn(|| postgres.start());
            rabbitmq.start()?;
            starting.join().expect("starting PostgreSQL does not panic")
        })?;
    }
    println!("PATH=$PATH:{}", postgres_programs()?.display());
    println!("DATABASE_URL={}", postgres.url()?);
    println!("AMQP_URL={}", rabbitmq.url()?);
    println!("RABBITMQ_MANAGEMENT_URL={}", rabbitmq.management_url()?);
    Ok(())
}

/// Stops both, and returns the folder with their data.
fn stop(folder: &Path) -> Result<PathBuf, Error> {
    let folder = data_folder(folder)?;
    let (postgres, rabbitmq) = servers(&folder);
    rabbitmq.stop()?;
    postgres.stop()?;
    Ok(folder)
}

fn remove(folder: &Path) -> Result<(), Error> {
    let data = stop(folder)?;
    for folder in [&data, folder] {
        if folder.exists() {
            std::fs::remove_dir_all(folder).map_err(|error| Error::Io(folder.to_owned(), error))?;
        }
    }
    Ok(())
}

/// The folder itself, or one below `/tmp` if the user that PostgreSQL runs as can't reach the
/// folder. The file `data-folder` remembers which.
fn data_folder(folder: &Path) -> Result<PathBuf, Error> {
    let failed = |error| Error::Io(folder.to_owned(), error);
    let note = folder.join("data-folder");
    if let Ok(path) = std::fs::read_to_string(&note)
        && Path::new(path.trim()).exists()
    {
        return Ok(PathBuf::from(path.trim()));
    }
    let mut data = folder.join("servers");
    if !make_reachable(&data)? {
        data = temporary_folder()?;
    }
    std::fs::write(&note, data.display().to_string()).map_err(failed)?;
    Ok(data)
}
