//! More requests than can be answered in time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::harness::fault_injection::FaultyServer;
use super::harness::server::{Endpoint, Load, Server, photograph};
use super::harness::{edited_ensemble, replace, two_models};

#[test]
fn what_is_admitted_under_overload_is_answered_in_time() {
    const CLIENTS: usize = 64;
    let server = Server::start_with(&two_models(), &[("CONCORD__SERVER__REQUEST_TIMEOUT_MS", "1000")]);
    let answered = |client: &Endpoint| {
        client.metric("concord_requests_total", &["outcome=\"accepted\""])
            + client.metric("concord_requests_total", &["outcome=\"exhausted\""])
    };
    let load = Load::start(&server.client, CLIENTS);
    server.client.wait_until("the server knows what it can do", |client| answered(client) >= 200.0);
    server.client.wait_until("it has been overloaded for a while", |client| answered(client) >= 600.0);
    let outcomes = load.finish();
    let count = |status: u16| {
        outcomes.iter().filter(|outcome| matches!(outcome, Ok((found, _)) if *found == status)).count()
    };
    let (answered, late, refused) = (count(200), count(504), count(429));
    assert_eq!(answered + late + refused, outcomes.len(), "nothing else, and every request is answered");
    assert!(refused > 0, "{CLIENTS} clients that ask again at once are too many: {answered} answered");
    // The machine may be busy with other tests, so that some of them are late all the same: without admission most
    // were. `make bench` measures it.
    assert!(late < answered, "{late} of {} admitted requests were not answered in time", answered + late);
    server
        .client
        .wait_until("the queues are empty", |client| client.metric("concord_queue_depth", &[]) == 0.0);
}

fn busy(client: &Endpoint) -> f64 {
    client.metric("concord_requests_total", &["task=\"roadwork\"", "outcome=\"busy\""])
}

/// The models are held, so that nothing is completed and the first requests take all that is admitted.
#[test]
fn a_server_that_could_not_answer_a_large_body_does_not_wait_for_it() {
    // More than are admitted while nothing is known.
    const CLIENTS: usize = 40;
    let (_folder, file) =
        edited_ensemble(|text| replace(&text, "request_timeout_ms = 10_000", "request_timeout_ms = 3_000"));
    let server = FaultyServer::start(&file);
    server.faults.hold();
    let ask = |number: usize| {
        let client = server.client.clone();
        std::thread::spawn(move || client.classify("roadwork", &photograph(number)))
    };
    let admitted: Vec<_> = (0..CLIENTS).map(ask).collect();
    // From the first refusal on everything is refused, until something ends.
    server.client.wait_until("one is refused", |client| busy(client) >= 1.0);
    let before = busy(&server.client);
    let refused = server.client.classify("roadwork", &photograph(100));
    assert_eq!((refused.status, &refused.body["type"]), (429, &"busy".into()), "{refused:?}");
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1, "{refused:?}");

    let mut unsent = TcpStream::connect(server.client.address.strip_prefix("http://").unwrap()).unwrap();
    unsent.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let head = "POST /v1/tasks/roadwork/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 5000000\r\n\r\n";
    unsent.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    let _closed_or_reset = unsent.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    assert!(busy(&server.client) >= before + 2.0, "both are counted");

    server.faults.release();
    for admitted in admitted {
        let answer = admitted.join().unwrap();
        // 504 where this test took longer than the time limit.
        assert!(matches!(answer.status, 200 | 429 | 504), "{answer:?}");
    }
    assert_eq!(server.client.classify("roadwork", &photograph(100)).status, 200, "there is room again");
}
