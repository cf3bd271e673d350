//! Clients that stop in the middle: of a head, of a body, or of reading their responses.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::harness::server::{Endpoint, Server, photograph};
use super::harness::two_models;

/// The time after which a connection that is not closed is one that is never closed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts a server with a short time for requests, whose shutdown waits for connections for ever.
fn server(more: &[(&str, &str)]) -> Server {
    let times =
        [("CONCORD__SERVER__REQUEST_TIMEOUT_MS", "2000"), ("CONCORD__SERVER__SHUTDOWN_TIMEOUT_S", "3600")];
    Server::start_with(&two_models(), &[&times[..], more].concat())
}

fn connect(client: &Endpoint) -> TcpStream {
    let stream = TcpStream::connect(client.address.strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends `bytes`, and returns everything that comes until the server closes the connection.
fn sent_until_closed(client: &Endpoint, bytes: &[u8]) -> String {
    let mut stream = connect(client);
    stream.write_all(bytes).unwrap();
    until_closed(&mut stream)
}

fn until_closed(stream: &mut TcpStream) -> String {
    let mut received = Vec::new();
    match stream.read_to_end(&mut received) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "not closed: {error}"),
    }
    String::from_utf8_lossy(&received).into_owned()
}

#[test]
fn a_connection_whose_request_does_not_end_is_closed() {
    let server = server(&[]);
    let chunked = "host: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let classify = "POST /v1/tasks/roadwork/classify HTTP/1.1\r\n";
    for (what, request, statuses) in [
        ("a GET", format!("GET /healthz HTTP/1.1\r\n{chunked}"), &["200"][..]),
        ("an unknown path", format!("POST /nothing HTTP/1.1\r\n{chunked}"), &["404"]),
        ("a wrong method", format!("PUT /healthz HTTP/1.1\r\n{chunked}"), &["405"]),
        ("a wrong type", format!("{classify}content-type: text/html\r\n{chunked}"), &["415"]),
        ("closing asked for", format!("GET /readyz HTTP/1.1\r\nconnection: close\r\n{chunked}"), &["200"]),
        ("an image in chunks", format!("{classify}{chunked}"), &["408"]),
        (
            "a form in chunks",
            format!("{classify}content-type: multipart/form-data; boundary=b\r\n{chunked}"),
            &["408"],
        ),
        ("a declared length", format!("{classify}host: x\r\ncontent-length: 1000\r\n\r\nhello"), &["408"]),
        (
            "too large a length",
            format!("{classify}host: x\r\ncontent-length: 99999999\r\n\r\nhello"),
            &["413"],
        ),
        (
            "a second request's body",
            format!("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /healthz HTTP/1.1\r\n{chunked}"),
            &["200", "200"],
        ),
    ] {
        let received = sent_until_closed(&server.client, request.as_bytes());
        let found: Vec<&str> = received
            .match_indices("HTTP/1.1 ")
            .map(|(at, start)| &received[at + start.len()..][..3])
            .collect();
        assert_eq!(found, statuses, "{what}: {received}");
    }
    let mut stream = connect(&server.client);
    let mut answer = [0; 12];
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    stream.write_all(b"GET /healthz HTT").unwrap();
    until_closed(&mut stream);
    assert_eq!(server.client.classify("roadwork", &photograph(0)).status, 200);
}

#[test]
fn requests_that_are_whole_keep_their_connection() {
    let server = server(&[]);
    let mut stream = connect(&server.client);
    let whole = "host: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let requests = format!(
        "GET /healthz HTTP/1.1\r\n{whole}POST /v1/tasks/roadwork/classify HTTP/1.1\r\n{whole}GET /nothing HTTP/1.1\r\nconnection: close\r\n{whole}"
    );
    stream.write_all(requests.as_bytes()).unwrap();
    let mut received = String::new();
    stream.read_to_string(&mut received).unwrap();
    let statuses: Vec<&str> = received.split("HTTP/1.1 ").skip(1).map(|response| &response[..3]).collect();
    assert_eq!(statuses, ["200", "400", "404"], "{received}");
}

#[test]
fn responses_that_nobody_reads_are_bounded_and_their_connection_is_closed() {
    const CLIENTS: usize = 40;
    const MEMORY_MB: f64 = 100.0;
    let server = server(&[]);
    assert_eq!(server.client.classify("roadwork", &photograph(0)).status, 200);
    let (before, connections) = (server.peak_megabytes(), server.open_files());
    let pages = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(5_000);
    let classify = format!(
        "POST /v1/tasks/roadwork/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello{pages}"
    );
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let mut stream = connect(&server.client);
        stream.set_nonblocking(true).unwrap();
        // As much as the server and the buffers take.
        let _taken = stream.write(if number % 2 == 0 { pages.as_bytes() } else { classify.as_bytes() });
        clients.push(stream);
    }
    server.client.wait_until("their connections are closed", |_| server.open_files() <= connections);
    let more = server.peak_megabytes() - before;
    assert!(more < MEMORY_MB, "{CLIENTS} clients that read nothing took {more:.0} MB");
    assert_eq!(server.client.classify("roadwork", &photograph(1)).status, 200);
}

#[test]
fn bodies_that_arrive_slowly_leave_room_for_others() {
    const LARGE: usize = 1_900_000;
    let server = server(&[
        ("CONCORD__SERVER__MAX_BODY_BYTES", "2000000"),
        ("CONCORD__SERVER__MAX_BODY_BYTES_IN_FLIGHT", "12000000"),
        // No body is given up while the test runs.
        ("CONCORD__SERVER__REQUEST_TIMEOUT_MS", "3600000"),
    ]);
    let head = |length: usize| {
        format!("POST /v1/tasks/roadwork/classify HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n")
    };
    // What is only promised holds nothing.
    let silent: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = connect(&server.client);
            stream.write_all(head(1_000_000).as_bytes()).unwrap();
            stream
        })
        .collect();
    // 9 MB are for large bodies: four of these, whichever of all that come.
    let mut slow = Vec::new();
    let large = [photograph(1), vec![0; LARGE - 10_000]].concat();
    server.client.wait_until("slow ones hold what is for large bodies", |client| {
        let mut stream = connect(client);
        // The server may refuse it before it has read it all.
        let _refused =
            stream.write_all(head(LARGE).as_bytes()).and_then(|()| stream.write_all(&vec![0; LARGE - 1]));
        slow.push(stream);
        let answer = client.classify("roadwork", &large);
        answer.status == 429 && answer.body["detail"].as_str().unwrap().contains("max_body_bytes_in_flight")
    });
    assert_eq!(
        server.client.classify("roadwork", &photograph(0)).status,
        200,
        "small bodies have their own part"
    );
    drop((slow, silent));
    server
        .client
        .wait_until("there is room again", |client| client.classify("roadwork", &large).status == 200);
}

#[test]
fn a_server_ends_although_its_clients_do_not() {
    // No request ends by itself while the test runs.
    let mut server = server(&[("CONCORD__SERVER__REQUEST_TIMEOUT_MS", "3600000")]);
    let classify = "POST /v1/tasks/roadwork/classify HTTP/1.1\r\nhost: x\r\n";
    let pages = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(5_000);
    let mut clients = Vec::new();
    for request in [
        format!("{classify}content-length: 1000\r\n\r\nhello"),
        format!("{classify}transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"),
        "GET /healthz HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".to_owned(),
        "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /heal".to_owned(),
        pages,
    ] {
        let mut stream = connect(&server.client);
        stream.set_nonblocking(true).unwrap();
        let _taken = stream.write(request.as_bytes()).unwrap();
        clients.push(stream);
    }
    assert_eq!(server.client.classify("roadwork", &photograph(0)).status, 200);
    server.signal("TERM");
    assert_eq!(server.wait(), 0);
    drop(clients);
}
