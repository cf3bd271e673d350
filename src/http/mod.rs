//! The endpoint: HTTP in front of the routers.

mod auth;
mod body;
mod classify;
#[cfg(fuzzing)]
pub mod fuzzing;
mod generate;
mod openapi;
mod pages;
mod respond;
mod tls;

use std::io;
use std::net::{TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix::Addr;
use actix_web::dev::Server;
use actix_web::http::KeepAlive;
use actix_web::{App, HttpRequest, HttpServer, web};
use concord_actors::{Engine, Router};

pub use auth::{ApiKeys, ApiKeysError};

use crate::config::ServerSection;
use crate::telemetry::{RequestContext, Sampling, TRACEPARENT};

/// Headers that have not arrived after this long end the connection.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle connection is closed after this long.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// What the endpoint needs beside the configuration.
#[derive(Debug, Clone)]
pub struct EndpointOptions {
    /// `[server]`.
    pub section: ServerSection,
    /// Who may ask; `None`: everyone.
    pub keys: Option<Arc<ApiKeys>>,
    /// Which requests have their trace exported.
    pub sampling: Sampling,
}

/// What one HTTP worker has: its own router, and what all workers share.
#[derive(Clone)]
struct Worker {
    engine: Arc<Engine>,
    router: Addr<Router>,
    options: Arc<EndpointOptions>,
    draining: Draining,
}

impl Worker {
    /// The context of a request that has arrived, under a span of this name.
    fn context(&self, request: &HttpRequest, span: &'static str) -> RequestContext {
        let traceparent = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok());
        self.options.sampling.request(span, traceparent)
    }
}

/// How far a process that is told to end has come.
#[derive(Debug, Clone, Default)]
pub struct Draining(Arc<DrainingSteps>);

#[derive(Debug, Default)]
struct DrainingSteps {
    begun: AtomicBool,
    closing: AtomicBool,
}

impl Draining {
    /// From now on the process is not ready.
    pub fn begin(&self) {
        self.0.begun.store(true, Ordering::Release);
    }

    /// From now on every answer ends its connection.
    pub fn close_connections(&self) {
        self.0.closing.store(true, Ordering::Release);
    }

    fn has_begun(&self) -> bool {
        self.0.begun.load(Ordering::Acquire)
    }

    fn closes_connections(&self) -> bool {
        self.0.closing.load(Ordering::Acquire)
    }
}

/// The socket of `[server] listen`.
///
/// # Errors
/// When the address cannot be had, for instance because another process has it.
pub fn bind(section: &ServerSection) -> io::Result<TcpListener> {
    let mut addresses = section.listen.to_socket_addrs()?;
    let address = addresses.next().ok_or_else(|| io::Error::other("the name has no address"))?;
    TcpListener::bind(address)
}

/// The server on that socket, to be awaited. Must be called where an actix system runs.
///
/// # Errors
/// When the certificate or its key cannot be used.
pub fn server(
    engine: &Arc<Engine>,
    options: EndpointOptions,
    draining: &Draining,
    socket: TcpListener,
) -> io::Result<Server> {
    let tls = tls::config(&options.section)?;
    let (engine, options, draining) = (Arc::clone(engine), Arc::new(options), draining.clone());
    let section = options.section.clone();
    let app = move || {
        let worker = Worker {
            engine: Arc::clone(&engine),
            router: engine.router(),
            options: Arc::clone(&options),
            draining: draining.clone(),
        };
        App::new().app_data(web::Data::new(worker)).configure(routes)
    };
    let mut server = HttpServer::new(app)
        .keep_alive(KeepAlive::Timeout(KEEP_ALIVE))
        .client_request_timeout(HEADERS_TIMEOUT)
        // A client that has gone wants no answer: its request is given up.
        .h1_allow_half_closed(false)
        .max_connections(usize::try_from(section.max_connections).unwrap_or(usize::MAX))
        .shutdown_timeout(section.shutdown_timeout_s)
        .disable_signals();
    if section.workers > 0 {
        server = server.workers(section.workers);
    }
    let server = match tls {
        Some(tls) => server.listen_rustls_0_23(socket, tls)?,
        None => server.listen(socket)?,
    };
    Ok(server.run())
}

fn routes(app: &mut web::ServiceConfig) {
    let only = |resource: actix_web::Resource| resource.default_service(web::to(pages::method_not_allowed));
    app.service(only(web::resource(classify::PATH)).route(web::post().to(classify::classify)))
        .service(only(web::resource(generate::PATH)).route(web::post().to(generate::generate)))
        .service(only(web::resource("/v1/tasks")).route(web::get().to(pages::tasks)))
        .service(only(web::resource("/v1/models")).route(web::get().to(pages::models)))
        .service(only(web::resource("/healthz")).route(web::get().to(pages::healthz)))
        .service(only(web::resource("/readyz")).route(web::get().to(pages::readyz)))
        .service(only(web::resource("/metrics")).route(web::get().to(pages::metrics)))
        .service(only(web::resource("/openapi.json")).route(web::get().to(openapi::page)))
        .default_service(web::to(pages::not_found));
}
