//! The log of `concord serve`, which no request waits for and nobody can flood.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::harness::server::{Endpoint, Server, photograph};
use crate::harness::{edited_ensemble, replace, two_models};

/// Sends what is not HTTP, and waits until the server has answered it or closed the connection.
fn send_malformed(client: &Endpoint) {
    let mut stream = TcpStream::connect(client.address.strip_prefix("http://").unwrap()).unwrap();
    stream.write_all(b"x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // A connection that is reset has been closed too.
    let _reset = stream.read_to_end(&mut answer);
}

fn malformed(client: &Endpoint) -> f64 {
    client.metric("concord_malformed_requests_total", &[])
}

#[test]
fn a_log_that_nobody_reads_stops_neither_requests_nor_the_end() {
    let mut server = Server::start_unread(&two_models(), &[("RUST_LOG", "debug")]);
    let dropped = |client: &Endpoint| client.metric("concord_log_lines_dropped_total", &[]);
    let mut sent = 0;
    // More than the pipe and the queue hold.
    server.client.wait_until("lines are dropped", |client| {
        (0..500).for_each(|_| send_malformed(client));
        sent += 500;
        dropped(client) > 0.0
    });
    for number in 0..20 {
        assert_eq!(server.client.classify("roadwork", &photograph(number)).status, 200);
        assert_eq!(server.client.get("/no/such/page").status, 404);
    }
    assert_eq!(server.client.get("/healthz").status, 200);
    server.client.wait_until("all are counted", |client| {
        malformed(client) == f64::from(sent) && dropped(client) > 0.0
    });
    server.signal("TERM");
    assert_eq!(server.wait(), 0);
}

#[test]
fn requests_that_are_not_http_and_a_clean_shutdown_are_no_errors_in_the_log() {
    let mut server = Server::start(&two_models());
    (0..1000).for_each(|_| send_malformed(&server.client));
    server.client.wait_until("all are counted", |client| malformed(client) == 1000.0);
    assert_eq!(server.client.metric("concord_log_lines_dropped_total", &[]), 0.0);
    server.signal("TERM");
    assert_eq!(server.wait(), 0, "{}", server.log());
    // The last line, so that the log is whole.
    let log = server.wait_for_log("shut down");
    assert!(!log.contains("ERROR"), "{log}");
    assert!(!log.contains('\u{1b}'), "colours where there is no terminal: {log:?}");
    assert!(log.lines().count() < 100, "{} lines", log.lines().count());
}

#[test]
fn a_warning_that_requests_cause_is_written_a_few_times_a_second_and_then_announced_as_left_out() {
    // Hardly a model is done in so short a time.
    let (_folder, file) =
        edited_ensemble(|text| replace(&text, "request_timeout_ms = 10_000", "request_timeout_ms = 3"));
    let server = Server::start(&file);
    let mut number = 0;
    server.client.wait_until("lines are left out", |client| {
        // One after the other: the server refuses what comes while it is busy, and does not log that.
        for _ in 0..50 {
            number += 1;
            let status = client.classify("roadwork", &photograph(number)).status;
            // 408: the body did not arrive in time either.
            assert!(matches!(status, 200 | 408 | 429 | 504), "{status}");
        }
        server.log().contains("further lines of this kind are left out")
    });
    let log = server.log();
    let written = log.lines().filter(|line| line.contains("refused")).count();
    assert!(log.contains("kind=\"time limit exceeded\""), "{log}");
    assert!((10..number).contains(&written), "{written} of {number}: {log}");
}
