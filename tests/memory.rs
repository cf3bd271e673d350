//! Memory, which is estimated before loading, and whose shortage fails no request; and warm-up.

use std::thread::JoinHandle;

use crate::harness::fault_injection::{FaultyServer, InjectedFaults};
use crate::harness::server::{Answer, Endpoint, photograph};
use crate::harness::{concord, edited_ensemble, replace, two_models};

const DINOV3: [&str; 1] = ["model=\"dinov3\""];

fn ask(client: &Endpoint, number: usize) -> JoinHandle<Answer> {
    let client = client.clone();
    std::thread::spawn(move || client.classify_fresh("roadwork", &photograph(number)))
}

/// Returns the answers to a batch of `count` images, which arrive while the model runs another one.
fn together(server: &FaultyServer, count: usize) -> Vec<Answer> {
    let (begun, queued) = (server.faults.batches_started(), server.client.queued_so_far());
    server.faults.hold();
    let first = ask(&server.client, 1000);
    server.client.wait_until("the first one runs", |_| server.faults.batches_started() > begun);
    let others: Vec<_> = (0..count).map(|number| ask(&server.client, number)).collect();
    server
        .client
        .wait_until("the others are queued", |client| client.queued() == queued + 1.0 + count as f64);
    server.faults.take_sizes();
    server.faults.release();
    assert_eq!(first.join().unwrap().status, 200);
    others.into_iter().map(|client| client.join().unwrap()).collect()
}

fn p(answer: &Answer) -> f64 {
    answer.body["probability"].as_f64().unwrap_or_else(|| panic!("{answer:?}"))
}

/// Returns an ensemble of one stage with one model, so that the numbers that tests count are that model's.
fn one_model(edit: impl Fn(String) -> String) -> (tempfile::TempDir, std::path::PathBuf) {
    edited_ensemble(|text| {
        let text = replace(&text, "accept = { confidence = 0.999 }", "accept = { confidence = 0.01 }");
        edit(text)
    })
}

/// Starts a server whose batches are limited to 8 images, and to fewer after a shortage of memory, for
/// `recovery_s` seconds.
fn server_of_eights(recovery_s: u32) -> (tempfile::TempDir, FaultyServer) {
    let (folder, file) = one_model(|text| {
        let text = replace(&text, "max_batch = 32 ", "max_batch = 8 ");
        let recovery = format!("queue_capacity = 256\nbatch_recovery_s = {recovery_s}");
        replace(&text, "queue_capacity = 256", &recovery)
    });
    (folder, FaultyServer::start(&file))
}

fn limit(client: &Endpoint) -> f64 {
    client.metric("concord_batch_limit", &DINOV3)
}

#[test]
fn a_batch_that_does_not_fit_into_memory_runs_in_parts_and_the_limit_is_remembered() {
    // The limit does not recover while this test runs.
    let (_folder, server) = server_of_eights(3600);
    let alone: Vec<f64> =
        (0..7).map(|number| p(&server.client.classify_fresh("roadwork", &photograph(number)))).collect();
    assert_eq!(limit(&server.client), 8.0);

    server.faults.limit_memory(2);
    let answers = together(&server, 7);
    // The first runs alone; then the whole batch, its half, and what fits, from the front to the back.
    assert_eq!(server.faults.take_sizes(), [1, 7, 4, 2, 2, 3, 2, 1]);
    for (answer, alone) in answers.iter().zip(&alone) {
        assert!((p(answer) - alone).abs() < 1e-5, "each image has its own vote: {answer:?}, alone {alone}");
    }
    assert_eq!(limit(&server.client), 2.0);
    assert_eq!(server.client.metric("concord_out_of_memory_total", &DINOV3), 3.0);
    assert_eq!(server.client.metric("concord_model_restarts_total", &[]), 0.0, "no thread has died");

    // No batch is tried in vain.
    assert!(together(&server, 5).iter().all(|answer| answer.status == 200));
    assert_eq!(server.faults.take_sizes(), [1, 2, 2, 1]);
}

#[test]
fn the_batch_limit_recovers_after_a_while() {
    let (_folder, server) = server_of_eights(1);
    server.faults.limit_memory(2);
    assert!(together(&server, 7).iter().all(|answer| answer.status == 200));
    assert!(server.client.metric("concord_out_of_memory_total", &DINOV3) > 0.0);
    server.faults.limit_memory(usize::MAX);
    server.client.wait_until("the limit is the configured one", |client| {
        assert_eq!(client.classify_fresh("roadwork", &photograph(3)).status, 200);
        limit(client) == 8.0
    });
    assert!(together(&server, 7).iter().all(|answer| answer.status == 200));
    assert_eq!(server.faults.take_sizes(), [1, 7]);
}

#[test]
fn an_image_that_does_not_fit_into_memory_fails_alone() {
    let (_folder, file) = one_model(|text| text);
    let server = FaultyServer::start(&file);
    server.faults.limit_memory(0);
    for number in 0..3 {
        let answer = server.client.classify_fresh("roadwork", &photograph(number));
        assert_eq!((answer.status, &answer.body["type"]), (503, &"model-failed".into()), "{answer:?}");
        assert!(answer.body["detail"].as_str().unwrap().contains("memory"), "{answer:?}");
    }
    server.faults.limit_memory(usize::MAX);
    assert_eq!(server.client.classify_fresh("roadwork", &photograph(0)).status, 200);
    assert_eq!(server.client.metric("concord_model_restarts_total", &[]), 0.0);
    assert_eq!(server.client.metric("concord_queue_depth", &[]), 0.0, "no permit is lost");
}

#[test]
fn no_request_is_answered_before_the_models_are_warmed_up() {
    let faults = InjectedFaults::default();
    faults.warm_up();
    faults.hold();
    let (server, ready) = FaultyServer::begin(&two_models(), faults);
    // Connections are accepted as soon as the socket listens.
    let listens =
        |_: &Endpoint| std::net::TcpStream::connect(&server.client.address["http://".len()..]).is_ok();
    server.client.wait_until("it listens", listens);
    server.client.wait_until("the first forward runs", |_| server.faults.batches_started() > 0);
    let unready = server.client.get("/readyz");
    assert_eq!((unready.status, &unready.body["status"]), (503, &"warming up".into()), "{unready:?}");
    let detail = unready.body["detail"].as_str().unwrap();
    // There are two tasks, and batches of 2, 4, 8, 16 and 32.
    assert!(detail.starts_with("warming up: ") && detail.contains("siglip2 0 of 7"), "{detail}");
    let refused = server.client.classify("roadwork", &photograph(0));
    assert_eq!((refused.status, &refused.body["type"]), (503, &"not-ready".into()), "{refused:?}");
    assert_eq!(server.client.get("/healthz").status, 200);
    server.faults.release();
    ready.recv().unwrap();
    let expected = [[1; 4].as_slice(), &[2, 4, 8, 16, 32], &[2, 4, 8, 16, 32]].concat();
    assert_eq!(server.faults.take_sizes(), expected, "one model after the other");
    assert_eq!(server.client.get("/readyz").body["status"], "ready");
    assert_eq!(server.client.classify("roadwork", &photograph(0)).status, 200);
}

#[test]
fn a_batch_that_does_not_fit_at_warm_up_only_lowers_the_limit() {
    let faults = InjectedFaults::default();
    faults.warm_up();
    faults.limit_memory(4);
    let server = FaultyServer::start_in(&two_models(), faults);
    assert_eq!(server.client.metric("concord_batch_limit", &DINOV3), 4.0);
    assert_eq!(server.client.classify("roadwork", &photograph(0)).status, 200);
}

#[test]
fn memory_is_estimated_from_the_snapshot() {
    let (_folder, file) = edited_ensemble(|text| {
        replace(&text, "dtype = \"fp32\"                           # fp32", "dtype = \"bf16\" # fp32")
    });
    let listed = |arguments: &[&str]| concord(arguments).json_lines();
    let estimate = |model: &serde_json::Value, part: &str| model["estimated_bytes"][part].as_f64().unwrap();
    let (fp32, bf16) =
        (listed(&["models", "--json"]), listed(&["models", "--json", "--ensemble", file.to_str().unwrap()]));
    let parameters = fp32[0]["parameters"].as_f64().unwrap();
    // The estimate includes the heads.
    let ratio = estimate(&fp32[0], "parameters") / (parameters * 4.0);
    assert!((1.0..1.1).contains(&ratio), "{ratio}: {:?}", fp32[0]);
    assert_eq!(estimate(&fp32[0], "parameters"), 2.0 * estimate(&bf16[0], "parameters"));
    assert!(estimate(&fp32[0], "activations") > estimate(&bf16[0], "activations"));
    assert!(concord(&["models"]).stdout.contains("memory each"));
}

#[test]
fn forward_passes_without_their_cuda_graph_are_counted_by_model() {
    let server = FaultyServer::start(&two_models());
    let fallbacks = |client: &Endpoint, model: &str| {
        client.metric("concord_graph_fallbacks_total", &[&format!("model=\"{model}\"")])
    };
    assert_eq!(server.client.classify_fresh("roadwork", &photograph(0)).status, 200);
    assert_eq!(fallbacks(&server.client, "dinov3"), 0.0);
    server.faults.refuse_graphs();
    for number in 1..3 {
        assert_eq!(server.client.classify_fresh("roadwork", &photograph(number)).status, 200);
    }
    // They are counted after the response.
    server.client.wait_until("both are counted", |client| fallbacks(client, "dinov3") >= 2.0);
}
