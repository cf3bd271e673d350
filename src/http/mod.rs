//! The HTTP endpoint: it turns requests into messages to the routers, and their replies into responses. It
//! knows neither models nor how votes are fused.

mod auth;
mod body;
mod body_budget;
mod classify;
mod connection;
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

use actix_server::Server;
use actix_web::middleware::from_fn;
use actix_web::{App, web};
use concord_actors::Engine;
use socket2::{Domain, Socket, Type};

pub use keys::{ApiKeys, ApiKeysError};
pub use worker::{Draining, EndpointOptions};

use crate::config::ServerSection;
use body_budget::BodyBudget;
use connection::{Listener, close_if_body_is_unread};
use worker::Worker;

/// The connections that may wait to be accepted, as far as the system allows. The standard library has 128; with
/// more at once, clients wait a second to try again.
const BACKLOG: i32 = 4096;

/// Binds the socket of `[server] listen`.
///
/// # Errors
/// Returns an error if the address cannot be bound, for instance because another process uses it.
pub fn bind(section: &ServerSection) -> io::Result<TcpListener> {
    let mut addresses = section.listen.to_socket_addrs()?;
    let address = addresses.next().ok_or_else(|| io::Error::other("the name has no address"))?;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
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
    let section = options.section.clone();
    let listener = Listener { section: &section, draining, tls, socket };
    let bodies = BodyBudget::new(section.max_body_bytes_in_flight);
    let (engine, options, draining) = (Arc::clone(engine), Arc::new(options), draining.clone());
    connection::listen(listener, move || {
        let worker = Worker {
            engine: Arc::clone(&engine),
            router: engine.router(),
            options: Arc::clone(&options),
            bodies: bodies.clone(),
            draining: draining.clone(),
        };
        App::new().app_data(web::Data::new(worker)).wrap(from_fn(close_if_body_is_unread)).configure(routes)
    })
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
