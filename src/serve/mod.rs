//! The life of a server from start to end: it binds, loads, answers, follows the configuration, and drains.
//! It knows neither what a request is nor how it is answered.

mod reload;

use std::collections::BTreeMap;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use concord_actors::{Engine, LoadError, Loader, StartError};
use concord_policy::Policy;
use socket2::SockRef;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, oneshot};
use tokio::time::sleep;

use crate::config::Ensemble;
use crate::http::{self, ApiKeys, ApiKeysError, Draining, EndpointOptions};
use crate::telemetry::{LogCounters, Sampling};
use reload::Reloader;

/// The time for which a process that shuts down, and says so at `/readyz`, still accepts connections.
const LAST_CONNECTIONS: Duration = Duration::from_millis(200);
/// The time for which it then answers requests on open connections, closing each connection with the
/// response. Closing a connection while its client is sending the next request would lose that request; a
/// client that has been quiet for this long is not sending one.
const LAST_ANSWERS: Duration = Duration::from_millis(300);

/// The options of a server.
pub struct ServeOptions {
    /// The configuration.
    pub ensemble: Ensemble,
    /// The address to listen on, instead of the configured one.
    pub listen: Option<String>,
    /// The file of the configuration, to be followed; `None` if changes are to be ignored.
    pub file: Option<PathBuf>,
    /// The choice of requests whose trace is exported.
    pub sampling: Sampling,
    /// The counters of what the log leaves out.
    pub log_counters: LogCounters,
    /// The function that loads a model.
    pub loader: Arc<Loader>,
    /// Shuts the server down when it is notified, as SIGTERM does.
    pub stop: Arc<Notify>,
}

/// The reason why a server could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be bound, or the certificate cannot be used.
    #[error("{listen}: {source}")]
    Listen {
        /// The configured address.
        listen: String,
        /// The error of the operating system.
        source: io::Error,
    },
    /// API keys are required and none are set.
    #[error(transparent)]
    Keys(#[from] ApiKeysError),
    /// Threads could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The metrics are not valid.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// A model does not load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A failure that this process cannot recover from, such as a lost GPU.
    #[error("{0}")]
    Fatal(String),
}

/// Serves until the process is asked to shut down, and then until the requests in flight have been answered.
/// `on_ready` is called with the address once the models are loaded. Must be called inside an actix system.
///
/// # Errors
/// Returns an error if it cannot start, or cannot go on.
pub async fn serve(
    options: ServeOptions,
    on_ready: impl FnOnce(SocketAddr, &Arc<Engine>),
) -> Result<(), ServeError> {
    let mut section = options.ensemble.server().clone();
    if let Some(listen) = options.listen {
        section.listen = listen;
    }
    let keys = section.api_keys_env.as_deref().map(ApiKeys::from_env).transpose()?.map(Arc::new);
    let engine = Engine::new(options.ensemble.engine_options())?;
    options.log_counters.register(engine.metrics())?;
    let draining = Draining::default();
    let endpoint = EndpointOptions { section: section.clone(), keys, sampling: options.sampling };
    let listen_error = |source| ServeError::Listen { listen: section.listen.clone(), source };
    let socket = http::bind(&section).map_err(listen_error)?;
    let address = socket.local_addr().map_err(listen_error)?;
    let listener = socket.try_clone().map_err(listen_error)?;
    let server = http::server(&engine, endpoint, &draining, socket).map_err(listen_error)?;
    let handle = server.handle();
    let mut serving = actix::spawn(server);

    let loading = load(&engine, options.ensemble.tasks().clone(), Arc::clone(&options.loader));
    // One future for the whole time, so that no signal is lost between two of them.
    let stop = Arc::clone(&options.stop);
    let mut end = std::pin::pin!(end_of(&engine, &stop));
    let ended = tokio::select! {
        loaded = loading => {
            loaded.map_err(|_| ServeError::Fatal("loading the models panicked".to_owned()))??;
            // Before anybody learns that it is ready, and edits the file because of that.
            let _reloader = options.file.map(|file| Reloader::start(file, options.ensemble, &engine));
            on_ready(address, &engine);
            end.as_mut().await
        }
        ended = &mut end => ended,
        _ = &mut serving => Ended::ShutDown("the endpoint ended"),
    };
    match &ended {
        Ended::ShutDown(reason) => {
            tracing::info!(reason, "shutting down: requests in flight are answered first");
        }
        Ended::Failed(message) => tracing::error!(message, "shutting down"),
    }
    draining.begin();
    if matches!(ended, Ended::ShutDown(_)) {
        sleep(LAST_CONNECTIONS).await;
        // New connections are refused from now on, rather than accepted and lost: actix would stop listening
        // only together with everything else.
        if let Err(error) = SockRef::from(&listener).shutdown(Shutdown::Read) {
            tracing::warn!(%error, "the socket still listens: connections made now may be lost");
        }
        draining.close_connections();
        sleep(LAST_ANSWERS).await;
    }
    handle.stop(true).await;
    tracing::info!("shut down");
    match ended {
        Ended::ShutDown(_) => Ok(()),
        Ended::Failed(message) => Err(ServeError::Fatal(message)),
    }
}

/// Loads the models on a thread of its own, which a process that is shut down meanwhile does not wait for.
fn load(
    engine: &Arc<Engine>,
    tasks: BTreeMap<String, Policy>,
    loader: Arc<Loader>,
) -> oneshot::Receiver<Result<(), LoadError>> {
    let (loaded, loading) = oneshot::channel();
    let engine = Arc::clone(engine);
    std::thread::spawn(move || {
        let log = |name: &str, took: Duration| tracing::info!(model = name, ?took, "loaded");
        // Nobody receives it if the process is shut down meanwhile.
        let _ending = loaded.send(engine.load(&tasks, &*loader, log));
    });
    loading
}

/// The reason why a server ends.
enum Ended {
    ShutDown(&'static str),
    Failed(String),
}

/// Resolves when the server has to end.
async fn end_of(engine: &Engine, stop: &Notify) -> Ended {
    let terminate = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signals) => signals.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = terminate => Ended::ShutDown("SIGTERM"),
        _ = tokio::signal::ctrl_c() => Ended::ShutDown("SIGINT"),
        () = stop.notified() => Ended::ShutDown("stop requested"),
        message = engine.fatal().raised() => Ended::Failed(message),
    }
}
