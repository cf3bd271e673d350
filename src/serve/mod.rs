//! `concord serve` from start to end: bind, load, answer, follow the configuration, drain.

mod reload;

use std::collections::BTreeMap;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use concord_actors::policy::Policy;
use concord_actors::{Engine, LoadError, Loader, StartError};
use socket2::SockRef;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, oneshot};
use tokio::time::sleep;

use crate::config::Ensemble;
use crate::http::{self, ApiKeys, ApiKeysError, Draining, EndpointOptions};
use crate::telemetry::Sampling;
use reload::Reloader;

/// How long a process that is told to end, and says so at `/readyz`, goes on as before.
const LAST_CONNECTIONS: Duration = Duration::from_millis(200);
/// How long it then answers what comes over the connections that there are, each answer with the end of its connection. A
/// connection that is closed while its client is just sending the next request would lose that one; a client that has
/// been quiet for this long is not just sending.
const LAST_ANSWERS: Duration = Duration::from_millis(300);

/// What a server is started with.
pub struct ServeOptions {
    /// The configuration.
    pub ensemble: Ensemble,
    /// Where to listen, instead of where the configuration says.
    pub listen: Option<String>,
    /// The file that it came from, to be followed; `None`: it stays as it is.
    pub file: Option<PathBuf>,
    /// Which requests have their trace exported.
    pub sampling: Sampling,
    /// How models are loaded.
    pub loader: Arc<Loader>,
    /// Ends the server when it is notified, as SIGTERM does.
    pub stop: Arc<Notify>,
}

/// Why a server could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be had, or the certificate cannot be used.
    #[error("{listen}: {source}")]
    Listen {
        /// As it is configured.
        listen: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// No API keys where some are asked for.
    #[error(transparent)]
    Keys(#[from] ApiKeysError),
    /// No threads.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Models that do not load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Something that this process cannot go on after, such as a lost GPU.
    #[error("{0}")]
    Fatal(String),
}

/// Serves until the process is told to end, and then until what is in flight has been answered. `on_ready` is told the
/// address once the models are loaded. Must be called where an actix system runs.
///
/// # Errors
/// When it cannot start, or cannot go on.
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
    // One future for the whole time, so that no signal falls between two of them.
    let stop = Arc::clone(&options.stop);
    let mut end = std::pin::pin!(end_of(&engine, &stop));
    let ended = tokio::select! {
        loaded = loading => {
            loaded.map_err(|_| ServeError::Fatal("loading the models panicked".to_owned()))??;
            // Before anybody is told that it is ready, and may edit the file because of it.
            let _reloader = options.file.map(|file| Reloader::start(file, options.ensemble, &engine));
            on_ready(address, &engine);
            end.as_mut().await
        }
        ended = &mut end => ended,
        _ = &mut serving => Ended::Asked("the endpoint ended"),
    };
    match &ended {
        Ended::Asked(why) => tracing::info!(why, "ending: what is in flight is answered first"),
        Ended::Failed(message) => tracing::error!(message, "ending"),
    }
    draining.begin();
    if matches!(ended, Ended::Asked(_)) {
        sleep(LAST_CONNECTIONS).await;
        // What connects from now on is refused, rather than accepted and lost: actix would stop listening only
        // together with everything else.
        if let Err(error) = SockRef::from(&listener).shutdown(Shutdown::Read) {
            tracing::warn!(%error, "the socket still listens");
        }
        draining.close_connections();
        sleep(LAST_ANSWERS).await;
    }
    handle.stop(true).await;
    tracing::info!("ended");
    match ended {
        Ended::Asked(_) => Ok(()),
        Ended::Failed(message) => Err(ServeError::Fatal(message)),
    }
}

/// Loads the models on a thread of its own, which a process that is told to end meanwhile does not wait for.
fn load(
    engine: &Arc<Engine>,
    tasks: BTreeMap<String, Policy>,
    loader: Arc<Loader>,
) -> oneshot::Receiver<Result<(), LoadError>> {
    let (loaded, loading) = oneshot::channel();
    let engine = Arc::clone(engine);
    std::thread::spawn(move || {
        let log = |name: &str, took: Duration| tracing::info!(model = name, ?took, "loaded");
        // Nobody waits where the process ends meanwhile.
        let _ending = loaded.send(engine.load(&tasks, &*loader, log));
    });
    loading
}

/// Why a server ends.
enum Ended {
    Asked(&'static str),
    Failed(String),
}

/// Resolves when the server is to end.
async fn end_of(engine: &Engine, stop: &Notify) -> Ended {
    let terminate = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signals) => signals.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = terminate => Ended::Asked("SIGTERM"),
        _ = tokio::signal::ctrl_c() => Ended::Asked("SIGINT"),
        () = stop.notified() => Ended::Asked("told to"),
        message = engine.fatal().raised() => Ended::Failed(message),
    }
}
