//! Every request is answered exactly once, whatever fails.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::harness::fault_injection::FaultyServer;
use crate::harness::redis::Redis;
use crate::harness::server::{Answer, Endpoint, Load, Outcome, Server, photograph};
use crate::harness::{edited_ensemble, replace, two_models};

/// Returns the statuses of a load; panics if a request had no response at all.
fn statuses(outcomes: &[Outcome]) -> Vec<u16> {
    outcomes
        .iter()
        .map(|outcome| match outcome {
            Ok((status, _)) => *status,
            Err(error) => panic!("a request was not answered: {error}"),
        })
        .collect()
}

fn with_redis(redis: &Redis) -> (Server, String) {
    let url = redis.url();
    let server = Server::start_with(
        &two_models(),
        &[
            ("CONCORD__CACHE__BACKEND", "redis"),
            ("CONCORD__CACHE__URL", &url),
            ("CONCORD__CACHE__TIMEOUT_MS", "100"),
        ],
    );
    (server, url)
}

/// Waits for the writes to Redis, which no request waits for.
fn wait_for_keys(redis: &Redis, count: usize) {
    let started = Instant::now();
    while redis.keys().len() < count {
        assert!(started.elapsed() < Duration::from_secs(30), "only {:?}", redis.keys());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn redis_shares_votes_and_verdicts_between_processes() {
    let redis = Redis::start();
    let image = photograph(1);
    {
        let (first, _) = with_redis(&redis);
        assert_eq!(first.client.classify("roadwork", &image).label_and_cache().1, "miss");
        wait_for_keys(&redis, 3);
    }
    assert!(redis.keys().iter().all(|key| key.starts_with("concord:")), "{:?}", redis.keys());
    let (second, _) = with_redis(&redis);
    let answer = second.client.classify("roadwork", &image);
    assert_eq!(answer.label_and_cache(), ("road work", "verdict"));
    assert_eq!(answer.body["votes"][1]["model"], "siglip2");
    assert_eq!(second.client.forwards(), 0.0);
    let ttl = redis.call(&format!("TTL {}", redis.keys()[0]));
    assert!(ttl.trim_start_matches(':').trim().parse::<i64>().unwrap() > 0, "no time to live: {ttl}");
}

#[test]
fn a_corrupt_value_in_redis_is_a_counted_miss() {
    let redis = Redis::start();
    let (server, _) = with_redis(&redis);
    let image = photograph(1);
    let first = server.client.classify("roadwork", &image).body;
    wait_for_keys(&redis, 3);
    for key in redis.keys() {
        assert!(redis.call(&format!("SET {key} corrupt")).starts_with("+OK"));
    }
    let again = server.client.classify("roadwork", &image);
    assert_eq!(again.label_and_cache().1, "miss");
    assert_eq!(again.body["probability"], first["probability"]);
    assert_eq!(server.client.metric("concord_cache_errors_total", &["reason=\"corrupt\""]), 3.0);
}

fn cache_errors(client: &Endpoint, reason: &str) -> f64 {
    client.metric("concord_cache_errors_total", &[&format!("reason=\"{reason}\"")])
}

#[test]
fn every_request_succeeds_while_redis_is_slow_dies_and_returns() {
    let mut redis = Redis::start();
    let (server, _) = with_redis(&redis);
    let load = Load::start(&server.client, 3);
    wait_for_keys(&redis, 1);
    // Until it is killed.
    redis.call("CLIENT PAUSE 600000");
    for reason in ["timeout", "breaker"] {
        server.client.wait_until("a slow Redis is given up", |client| cache_errors(client, reason) > 0.0);
    }
    redis.kill();
    server.client.wait_until("connections are refused", |client| cache_errors(client, "refused") > 0.0);
    let answered = server.client.metric("concord_requests_total", &[]);
    redis.restart();
    server.client.wait_until("values are stored again", |_| !redis.keys().is_empty());
    let outcomes = load.finish();
    assert!(
        answered > 0.0 && outcomes.len() as f64 > answered,
        "{answered} before, {} in all",
        outcomes.len()
    );
    assert!(statuses(&outcomes).iter().all(|status| *status == 200), "{outcomes:?}");
}

#[test]
fn a_server_starts_and_answers_without_its_redis() {
    let mut redis = Redis::start();
    redis.kill();
    let (mut server, _) = with_redis(&redis);
    let mut number = 0;
    // It is refused at first, and then skipped by the open circuit.
    server.client.wait_until("Redis is skipped", |client| {
        number += 1;
        assert_eq!(client.classify("roadwork", &photograph(number)).status, 200);
        cache_errors(client, "breaker") > 0.0
    });
    assert!(cache_errors(&server.client, "refused") + cache_errors(&server.client, "timeout") >= 3.0);
    server.signal("TERM");
    assert_eq!(server.wait(), 0, "{}", server.log());
}

#[test]
fn a_panic_in_a_forward_pass_fails_only_its_batch() {
    let server = FaultyServer::start(&two_models());
    let load = Load::start(&server.client, 4);
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(300));
        server.faults.panic_in_next(1);
    }
    server.client.wait_until("the threads were restarted", |client| {
        client.metric("concord_model_restarts_total", &[]) >= 3.0
    });
    std::thread::sleep(Duration::from_millis(300));
    let outcomes = load.finish();
    let statuses = statuses(&outcomes);
    let failed = statuses.iter().filter(|status| **status != 200).count();
    assert!(statuses.iter().all(|status| matches!(status, 200 | 503)), "{statuses:?}");
    // There are four clients, so that no batch is larger.
    assert!((1..=12).contains(&failed), "{failed} of {}", statuses.len());
    assert!(statuses.len() > 10, "only {}", statuses.len());
    let after = server.client.classify("roadwork", &photograph(77));
    assert_eq!(after.label_and_cache().0, "road work", "the model is back");
    server.client.wait_until("no permit is lost", |client| client.metric("concord_queue_depth", &[]) == 0.0);
}

#[test]
fn every_request_to_a_model_that_keeps_panicking_is_answered() {
    let server = FaultyServer::start(&two_models());
    server.faults.panic_in_next(8);
    for number in 0..8 {
        let answer = server.client.classify("roadwork", &photograph(number));
        assert_eq!((answer.status, &answer.body["type"]), (503, &"model-failed".into()), "{answer:?}");
        assert!(answer.body["detail"].as_str().unwrap().contains("panicked"), "{answer:?}");
    }
    assert_eq!(server.client.classify("roadwork", &photograph(8)).status, 200);
    assert_eq!(server.client.metric("concord_model_restarts_total", &[]), 8.0);
}

#[test]
fn a_server_that_shuts_down_answers_the_requests_it_has_accepted() {
    let mut server = Server::start(&two_models());
    let load = Load::start(&server.client, 6);
    std::thread::sleep(Duration::from_millis(600));
    server.signal("TERM");
    assert_eq!(server.wait(), 0, "{}", server.log());
    let outcomes = load.finish();
    assert!(outcomes.len() > 10, "only {}", outcomes.len());
    assert!(statuses(&outcomes).iter().all(|status| *status == 200), "{outcomes:?}");
    assert!(TcpStream::connect(server.client.address.strip_prefix("http://").unwrap()).is_err());
}

/// Ten times the queue's capacity is sent at once; the accepted requests are answered.
#[test]
fn requests_beyond_the_queue_capacity_are_refused_at_once() {
    let (_folder, file) =
        edited_ensemble(|text| replace(&text, "queue_capacity = 256", "queue_capacity = 4"));
    let server = FaultyServer::start(&file);
    server.faults.hold();
    let clients = |count: usize, first: usize| -> Vec<_> {
        let ask = |number: usize| {
            let client = server.client.clone();
            std::thread::spawn(move || (client.classify("roadwork", &photograph(number)), Instant::now()))
        };
        (first..first + count).map(ask).collect()
    };
    let accepted = clients(4, 0);
    server.client.wait_until("the queue is full", |client| {
        client.metric("concord_queue_depth", &["model=\"dinov3\""]) == 4.0
    });
    // The model is held, so that every one of these is answered without it.
    for (answer, _) in clients(40, 100).into_iter().map(|client| client.join().unwrap()) {
        assert_eq!((answer.status, &answer.body["type"]), (429, &"busy".into()), "{answer:?}");
        assert_eq!(answer.header("retry-after"), "1");
        assert!(answer.body["detail"].as_str().unwrap().contains("queue_capacity"), "{answer:?}");
    }
    let released = Instant::now();
    server.faults.release();
    for (answer, at) in accepted.into_iter().map(|client| client.join().unwrap()) {
        assert!(answer.status == 200 && at >= released, "{answer:?}");
    }
}

/// Sends a request and returns without waiting for the response.
fn ask_and_leave(client: &Endpoint, number: usize) -> TcpStream {
    let mut stream = TcpStream::connect(client.address.strip_prefix("http://").unwrap()).unwrap();
    let image = photograph(number);
    let head = format!(
        "POST /v1/tasks/roadwork/classify HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        image.len()
    );
    stream.write_all(&[head.as_bytes(), &image].concat()).unwrap();
    stream
}

#[test]
fn no_forward_pass_runs_for_a_disconnected_client() {
    let server = FaultyServer::start(&two_models());
    let depth = |client: &Endpoint| client.metric("concord_queue_depth", &["model=\"dinov3\""]);
    server.faults.hold();
    let patient = {
        let client = server.client.clone();
        std::thread::spawn(move || client.classify("roadwork", &photograph(0)))
    };
    server.client.wait_until("the first one runs", |_| server.faults.batches_started() > WARM_UPS);
    let gone: Vec<TcpStream> = (1..=5).map(|number| ask_and_leave(&server.client, number)).collect();
    server.client.wait_until("all are queued", |client| depth(client) == 6.0);
    drop(gone);
    server.client.wait_until("the server has noticed", |client| {
        client.metric("concord_in_flight_requests", &[]) == 1.0
    });
    server.faults.release();
    assert_eq!(patient.join().unwrap().status, 200);
    server.client.wait_until("the queue is empty", |client| depth(client) == 0.0);
    assert_eq!(server.client.metric("concord_dropped_total", &["reason=\"abandoned\""]), 5.0);
    assert_eq!(server.client.metric("concord_forwards_total", &["model=\"dinov3\""]), 1.0);
}

/// The batches at loading: both models are tried with a blank image for each of the two tasks.
const WARM_UPS: usize = 4;

#[test]
fn expired_requests_are_refused_and_do_not_run() {
    let (_folder, file) =
        edited_ensemble(|text| replace(&text, "request_timeout_ms = 10_000", "request_timeout_ms = 1000"));
    let server = FaultyServer::start(&file);
    server.faults.hold();
    let asked = Instant::now();
    let clients: Vec<_> = (0..3)
        .map(|number| {
            let client = server.client.clone();
            std::thread::spawn(move || client.classify("roadwork", &photograph(number)))
        })
        .collect();
    for answer in clients.into_iter().map(|client| client.join().unwrap()) {
        assert_eq!((answer.status, &answer.body["type"]), (504, &"timed-out".into()), "{answer:?}");
    }
    assert!(asked.elapsed() >= Duration::from_secs(1));
    server.faults.release();
    server.client.wait_until("the queue is empty", |client| client.metric("concord_queue_depth", &[]) == 0.0);
    // Those that had started (one or more) run in vain; none of the others has run.
    let (dropped, ran) = (
        server.client.metric("concord_dropped_total", &[]),
        server.client.metric("concord_forwards_total", &[]),
    );
    assert_eq!(dropped + ran, 3.0, "dropped {dropped}, ran {ran}");
    assert_eq!(server.client.metric("concord_requests_total", &["outcome=\"expired\""]), 3.0);
}

#[test]
fn identical_requests_share_one_computation_that_outlives_the_first_of_them() {
    let server = FaultyServer::start(&two_models());
    server.faults.hold();
    let leader = ask_and_leave(&server.client, 7);
    server.client.wait_until("the computation runs", |_| server.faults.batches_started() > WARM_UPS);
    let followers: Vec<_> = (0..5)
        .map(|_| {
            let client = server.client.clone();
            std::thread::spawn(move || client.classify("roadwork", &photograph(7)))
        })
        .collect();
    server.client.wait_until("all wait", |client| client.metric("concord_in_flight_requests", &[]) == 6.0);
    drop(leader);
    server
        .client
        .wait_until("one has disconnected", |client| client.metric("concord_in_flight_requests", &[]) == 5.0);
    server.faults.release();
    for answer in followers.into_iter().map(|client| client.join().unwrap()) {
        assert_eq!(answer.label_and_cache(), ("road work", "coalesced"), "{answer:?}");
    }
    assert_eq!(server.client.metric("concord_forwards_total", &["model=\"dinov3\""]), 1.0);
}

/// Images that arrive while a batch runs make up the next one.
#[test]
fn images_that_wait_together_run_in_one_batch_with_the_same_result() {
    let server = FaultyServer::start(&two_models());
    let alone: Vec<Answer> =
        (0..6).map(|number| server.client.classify_fresh("roadwork", &photograph(number))).collect();
    server.faults.hold();
    let before = server.client.metric("concord_batch_size_count", &["model=\"dinov3\""]);
    let ask = |number: usize| {
        let client = server.client.clone();
        std::thread::spawn(move || client.classify_fresh("roadwork", &photograph(number)))
    };
    let (begun, queued) = (server.faults.batches_started(), server.client.queued_so_far());
    let first = ask(99);
    server.client.wait_until("the first one runs", |_| server.faults.batches_started() > begun);
    let others: Vec<_> = (0..6).map(ask).collect();
    server.client.wait_until("the others are queued", |client| client.queued() == queued + 7.0);
    server.faults.release();
    assert_eq!(first.join().unwrap().status, 200);
    for (answer, alone) in others.into_iter().map(|client| client.join().unwrap()).zip(alone) {
        let p = |answer: &Answer| answer.body["probability"].as_f64().unwrap();
        assert!((p(&answer) - p(&alone)).abs() < 1e-5, "{answer:?} {alone:?}");
    }
    let batches = server.client.metric("concord_batch_size_count", &["model=\"dinov3\""]) - before;
    assert_eq!(batches, 2.0, "one alone, and six together");
}

#[test]
fn a_request_on_an_open_connection_is_answered_during_shutdown() {
    let server = Server::start(&two_models());
    // An incomplete request keeps the server from ending.
    let mut half = TcpStream::connect(server.client.address.strip_prefix("http://").unwrap()).unwrap();
    half.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let image = photograph(0);
    let head = format!(
        "POST /v1/tasks/roadwork/classify HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        image.len()
    );
    half.write_all(&[head.as_bytes(), &image[..100]].concat()).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    server.signal("TERM");
    std::thread::sleep(Duration::from_millis(500));
    half.write_all(&image[100..]).unwrap();
    let mut answer = String::new();
    let _closed = half.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer:?}");
}
