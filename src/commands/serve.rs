//! `concord serve`: runs the HTTP endpoint until the process is asked to shut down.

use std::process::ExitCode;
use std::sync::Arc;

use concord_models::load_model;
use tokio::sync::Notify;

use super::{EXIT_UNUSABLE, EnsembleArgs, print_line, warn};
use crate::config::Ensemble;
use crate::serve::{ServeError, ServeOptions, serve};
use crate::telemetry::Telemetry;

/// Serve the tasks over HTTP.
#[derive(Debug, clap::Args)]
#[command(after_help = "POST an image to /v1/tasks/TASK/classify; /openapi.json describes the rest.\n\
    Changes of the configuration are followed: policies, prompts, calibration and heads apply as soon as they are saved.\n\
    SIGTERM and SIGINT shut it down after the requests in flight have been answered.\n\
    Exit status: 0 after a shutdown, 1 when it could not go on, 2 when it could not start.")]
pub struct ServeArgs {
    #[command(flatten)]
    ensemble: EnsembleArgs,
    /// The address to listen on, instead of the one in the configuration; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Ignore changes of the configuration
    #[arg(long)]
    no_reload: bool,
}

/// Serves until the process is asked to shut down.
pub fn run(args: &ServeArgs) -> ExitCode {
    let unusable = |message: String| {
        warn(&message);
        ExitCode::from(EXIT_UNUSABLE)
    };
    let ensemble = match args.ensemble.read() {
        Ok(ensemble) => ensemble,
        Err(message) => return unusable(message),
    };
    let telemetry = match Telemetry::start(ensemble.telemetry()) {
        Ok(telemetry) => telemetry,
        Err(error) => return unusable(format!("traces: {error}")),
    };
    let served = actix::System::new().block_on(answer(args, ensemble, &telemetry));
    if let Err(ServeError::Fatal(message)) = &served {
        tracing::error!(message, "the server could not go on");
    }
    telemetry.shutdown();
    match served {
        Ok(()) => ExitCode::SUCCESS,
        // The log says why. Printing could wait for ever where nobody reads standard error.
        Err(ServeError::Fatal(_)) => ExitCode::FAILURE,
        Err(error) => unusable(error.to_string()),
    }
}

async fn answer(args: &ServeArgs, ensemble: Ensemble, telemetry: &Telemetry) -> Result<(), ServeError> {
    let scheme = if ensemble.server().tls_certificate.is_some() { "https" } else { "http" };
    let tasks = ensemble.tasks().keys().cloned().collect::<Vec<_>>().join(", ");
    let options = ServeOptions {
        ensemble,
        listen: args.listen.clone(),
        file: (!args.no_reload).then(|| args.ensemble.ensemble.clone()),
        sampling: telemetry.sampling(),
        log_counters: telemetry.counters(),
        loader: Arc::new(|_: &str, options: &_, base: &_| load_model(options, base)),
        stop: Arc::new(Notify::new()),
    };
    serve(options, |address, engine| {
        let models = engine.models().len();
        print_line(&format!("ready at {scheme}://{address} ({models} models; tasks: {tasks})"));
    })
    .await
}
