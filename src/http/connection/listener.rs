//! The listener: it accepts connections, limits them, and hands them to actix's HTTP/1 service.

use std::future::ready;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::time::Duration;

use actix_http::error::DispatchError;
use actix_http::{HttpService, HttpServiceBuilder, KeepAlive, Request, Response};
use actix_server::{GracefulShutdownSignal, Server};
use actix_service::{IntoServiceFactory, ServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_tls::accept::TlsError;
use actix_tls::accept::rustls_0_23::{Acceptor, TlsStream};
use actix_web::body::MessageBody;
use actix_web::dev::AppConfig;
use actix_web::rt::net::TcpStream;
use rustls::ServerConfig;
use socket2::SockRef;

use super::activity::Activity;
use super::stream::LimitedStream;
use crate::config::ServerSection;
use crate::http::worker::Draining;

/// The time after which a connection whose first head has not arrived is closed. Later heads of a connection
/// have the limit of its [`Activity`].
const HEADERS_TIMEOUT: Duration = Duration::from_secs(5);
/// The time after which an idle connection is closed.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// The time for which the rest of a body that nobody reads is thrown away, so that the client gets to read the
/// response before the connection is closed.
const LINGER: Duration = Duration::from_secs(1);
/// The time for which sent bytes may stay unacknowledged, the window shut included: what the kernel holds for a
/// connection that Concord has closed ends by this.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(10);
/// The bytes that the kernel holds for a client that does not read; it takes twice as much. Many times the
/// largest response, where its own choice would grow to megabytes.
const SEND_BUFFER_BYTES: usize = 128 << 10;

/// The parts of a listener.
pub(in crate::http) struct Listener<'a> {
    pub(in crate::http) section: &'a ServerSection,
    pub(in crate::http) draining: &'a Draining,
    pub(in crate::http) tls: Option<ServerConfig>,
    pub(in crate::http) socket: TcpListener,
}

/// Serves `app` on the listener's socket; the returned server is to be awaited.
///
/// # Errors
/// Returns an error if the socket cannot be used.
pub(in crate::http) fn listen<F, I, S, B>(listener: Listener<'_>, app: F) -> io::Result<Server>
where
    F: Fn() -> I + Send + Clone + 'static,
    I: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig, Error = actix_web::Error> + 'static,
    S::InitError: std::fmt::Debug,
    S::Response: Into<Response<B>> + 'static,
    S::Service: 'static,
    B: MessageBody + 'static,
{
    const NAME: &str = "concord";
    let Listener { section, draining, tls, socket } = listener;
    let mut server = Server::build()
        .max_concurrent_connections(usize::try_from(section.max_connections).unwrap_or(usize::MAX))
        .shutdown_timeout(section.shutdown_timeout_s)
        .disable_signals();
    if section.workers > 0 {
        server = server.workers(section.workers);
    }
    let (signal, draining) = (server.graceful_shutdown_signal(), draining.clone());
    let server = match tls {
        None => server.listen(NAME, socket, move || {
            let http1 = http1(app(), signal.clone(), LimitedStream::activity);
            accept(&draining).map(|stream| (stream, None)).and_then(http1)
        })?,
        Some(mut tls) => {
            tls.alpn_protocols = vec![b"http/1.1".to_vec()];
            server.listen(NAME, socket, move || {
                let http1 = http1(app(), signal.clone(), |stream: &TlsStream<LimitedStream<TcpStream>>| {
                    stream.get_ref().0.activity()
                });
                let tls = Acceptor::new(tls.clone()).map_err(TlsError::into_service_error);
                accept(&draining)
                    .map_err(TlsError::Service)
                    .and_then(tls)
                    .map(|stream| (stream, None))
                    .and_then(http1.map_err(TlsError::Service))
            })?
        }
    };
    Ok(server.run())
}

/// Returns the service that limits an accepted connection.
fn accept(
    draining: &Draining,
) -> impl ServiceFactory<
    TcpStream,
    Config = (),
    Response = LimitedStream<TcpStream>,
    Error = DispatchError,
    InitError = (),
> + use<> {
    let draining = draining.clone();
    fn_service(move |stream: TcpStream| {
        let socket = SockRef::from(&stream);
        let limited = socket
            .set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT))
            .and_then(|()| socket.set_send_buffer_size(SEND_BUFFER_BYTES));
        if let Err(error) = limited {
            tracing::debug!(%error, "the socket of a connection takes no limits");
        }
        ready(Ok(LimitedStream::new(stream, draining.clone())))
    })
}

/// Returns the service that speaks HTTP/1 on streams whose activity `activity_of` returns.
fn http1<T, I, S, B>(
    app: I,
    signal: GracefulShutdownSignal,
    activity_of: fn(&T) -> &Rc<Activity>,
) -> impl ServiceFactory<(T, Option<SocketAddr>), Config = (), Response = (), Error = DispatchError, InitError = ()>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
    I: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig, Error = actix_web::Error> + 'static,
    S::InitError: std::fmt::Debug,
    S::Response: Into<Response<B>> + 'static,
    S::Service: 'static,
    B: MessageBody + 'static,
{
    let builder: HttpServiceBuilder<T, _> = HttpService::build();
    builder
        .graceful_shutdown_signal(move || {
            let signal = signal.clone();
            async move { signal.notified().await }
        })
        .keep_alive(KeepAlive::Timeout(KEEP_ALIVE))
        .client_request_timeout(HEADERS_TIMEOUT)
        .client_disconnect_timeout(LINGER)
        // A client that has disconnected wants no response: its request is cancelled.
        .h1_allow_half_closed(false)
        .on_connect_ext(move |stream, data| _ = data.insert(Rc::clone(activity_of(stream))))
        .h1(map_config(app.into_factory().map_err(|error| error.error_response()), |()| AppConfig::default()))
}
