//! The HTTP endpoint: it turns requests into messages to the routers, and their replies into responses. It
//! knows neither models nor how votes are fused.

mod auth;
mod body;
mod classify;
#[cfg(fuzzing)]
pub mod fuzzing;
mod generate;
mod incoming;
mod keys;
mod openapi;
mod pages;
mod respond;
mod tls;
mod worker;

use std::io;
use std::net::{TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::http::KeepAlive;
use actix_web::{App, HttpServer, web};
use concord_actors::Engine;

pub use keys::{ApiKeys, ApiKeysError};
pub use worker::{Draining, EndpointOptions};

use crate::config::ServerSection;
use worker::Worker;

/// A connection whose request headers have not arrived after this long is closed.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle connection is closed after this long.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// Binds the socket of `[server] listen`.
///
/// # Errors
/// Returns an error if the address cannot be bound, for instance because another process uses it.
pub fn bind(section: &ServerSection) -> io::Result<TcpListener> {
    let mut addresses = section.listen.to_socket_addrs()?;
    let address = addresses.next().ok_or_else(|| io::Error::other("the name has no address"))?;
    TcpListener::bind(address)
}

/// Starts the server on a bound socket; the returned server is to be awaited. Must be called where an actix
/// system runs.
///
/// # Errors
/// Returns an error if the certificate or its key cannot be used.
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
        // A client that has disconnected wants no response: its request is cancelled.
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
