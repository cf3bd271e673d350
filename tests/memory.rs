//! Memory: estimated before loading; too small for a batch, it costs time and no request. And warm-up.

use std::thread::JoinHandle;
use std::time::Duration;

use crate::harness::server::{Answer, Endpoint, photograph};
use crate::harness::troubled::{Trouble, TroubledServer};
use crate::harness::{concord, edited_ensemble, replace, two_models};

const DINOV3: [&str; 1] = ["model=\"dinov3\""];

fn ask(client: &Endpoint, number: usize) -> JoinHandle<Answer> {
    let client = client.clone();
    std::thread::spawn(move || client.classify_fresh("roadwork", &photograph(number)))
}

/// Answers to a batch of `count` pictures: they come while the model works on another one.
fn together(server: &TroubledServer, count: usize) -> Vec<Answer> {
    let made_ready =
        |client: &Endpoint| client.metric("concord_phase_seconds_count", &["phase=\"preprocess\""]);
    let (begun, ready) = (server.trouble.begun(), made_ready(&server.client));
    server.trouble.hold();
    let first = ask(&server.client, 1000);
    server.client.wait_until("the first one runs", |_| server.trouble.begun() > begun);
    let others: Vec<_> = (0..count).map(|number| ask(&server.client, number)).collect();
    server
        .client
        .wait_until("the others are ready", |client| made_ready(client) == ready + 1.0 + count as f64);
    // The last of them is queued right after it has been counted.
    std::thread::sleep(Duration::from_millis(200));
    server.trouble.take_sizes();
    server.trouble.release();
    assert_eq!(first.join().unwrap().status, 200);
    others.into_iter().map(|client| client.join().unwrap()).collect()
}

fn p(answer: &Answer) -> f64 {
    answer.body["probability"].as_f64().unwrap_or_else(|| panic!("{answer:?}"))
}

/// One model, one stage, so that what a test counts is that model's.
fn one_model(edit: impl Fn(String) -> String) -> (tempfile::TempDir, std::path::PathBuf) {
    edited_ensemble(|text| {
        let text = replace(&text, "accept = { confidence = 0.999 }", "accept = { confidence = 0.01 }");
        edit(text)
    })
}

#[test]
fn a_batch_that_the_memory_is_too_small_for_runs_in_parts_and_the_limit_recovers() {
    let (_folder, file) = one_model(|text| {
        let text = replace(&text, "max_batch = 32 ", "max_batch = 8 ");
        replace(&text, "queue_capacity = 256", "queue_capacity = 256\nbatch_recovery_s = 4")
    });
    let server = TroubledServer::start(&file);
    let limit = |client: &Endpoint| client.metric("concord_batch_limit", &DINOV3);
    let alone: Vec<f64> =
        (0..7).map(|number| p(&server.client.classify_fresh("roadwork", &photograph(number)))).collect();
    assert_eq!(limit(&server.client), 8.0);

    server.trouble.limit_memory(2);
    let answers = together(&server, 7);
    // The first was alone; then the whole, the half, and what fits, the front before the back.
    assert_eq!(server.trouble.take_sizes(), [1, 7, 4, 2, 2, 3, 2, 1]);
    for (answer, alone) in answers.iter().zip(&alone) {
        assert!((p(answer) - alone).abs() < 1e-5, "each has its own answer: {answer:?}, alone {alone}");
    }
    assert_eq!(limit(&server.client), 2.0);
    assert_eq!(server.client.metric("concord_out_of_memory_total", &DINOV3), 3.0);
    assert_eq!(server.client.metric("concord_model_restarts_total", &[]), 0.0, "no thread has died of it");

    // What has been learnt is remembered: no batch is tried in vain.
    assert!(together(&server, 5).iter().all(|answer| answer.status == 200));
    let sizes = server.trouble.take_sizes();
    assert!(sizes.iter().all(|size| *size <= 2) || limit(&server.client) > 2.0, "{sizes:?}");

    // And after a while tried again.
    server.trouble.limit_memory(usize::MAX);
    server.client.wait_until("the limit is what is configured", |client| {
        assert_eq!(client.classify_fresh("roadwork", &photograph(3)).status, 200);
        limit(client) == 8.0
    });
    server.trouble.take_sizes();
    assert!(together(&server, 7).iter().all(|answer| answer.status == 200));
    assert_eq!(server.trouble.take_sizes(), [1, 7]);
}

#[test]
fn an_image_that_there_is_no_memory_for_fails_alone() {
    let (_folder, file) = one_model(|text| text);
    let server = TroubledServer::start(&file);
    server.trouble.limit_memory(0);
    for number in 0..3 {
        let answer = server.client.classify_fresh("roadwork", &photograph(number));
        assert_eq!((answer.status, &answer.body["type"]), (503, &"model-failed".into()), "{answer:?}");
        assert!(answer.body["detail"].as_str().unwrap().contains("memory"), "{answer:?}");
    }
    server.trouble.limit_memory(usize::MAX);
    assert_eq!(server.client.classify_fresh("roadwork", &photograph(0)).status, 200);
    assert_eq!(server.client.metric("concord_model_restarts_total", &[]), 0.0);
    assert_eq!(server.client.metric("concord_queue_depth", &[]), 0.0, "no place is lost");
}

#[test]
fn nothing_is_answered_before_the_models_are_warm() {
    let trouble = Trouble::default();
    trouble.warm_up();
    trouble.hold();
    let (server, ready) = TroubledServer::begin(&two_models(), trouble);
    // Connections are taken as soon as the socket listens.
    let listens =
        |_: &Endpoint| std::net::TcpStream::connect(&server.client.address["http://".len()..]).is_ok();
    server.client.wait_until("it listens", listens);
    server.client.wait_until("the first forward runs", |_| server.trouble.begun() > 0);
    let unready = server.client.get("/readyz");
    assert_eq!((unready.status, &unready.body["status"]), (503, &"warming up".into()), "{unready:?}");
    let detail = unready.body["detail"].as_str().unwrap();
    // Two tasks, and batches of 2, 4, 8, 16 and 32.
    assert!(detail.starts_with("warming up: ") && detail.contains("siglip2 0 of 7"), "{detail}");
    let refused = server.client.classify("roadwork", &photograph(0));
    assert_eq!((refused.status, &refused.body["type"]), (503, &"not-ready".into()), "{refused:?}");
    assert_eq!(server.client.get("/healthz").status, 200);
    server.trouble.release();
    ready.recv().unwrap();
    let expected = [[1; 4].as_slice(), &[2, 4, 8, 16, 32], &[2, 4, 8, 16, 32]].concat();
    assert_eq!(server.trouble.take_sizes(), expected, "one model after the other");
    assert_eq!(server.client.get("/readyz").body["status"], "ready");
    assert_eq!(server.client.classify("roadwork", &photograph(0)).status, 200);
}

#[test]
fn a_batch_that_does_not_fit_at_warm_up_lowers_the_limit_and_no_more() {
    let trouble = Trouble::default();
    trouble.warm_up();
    trouble.limit_memory(4);
    let server = TroubledServer::start_in(&two_models(), trouble);
    assert_eq!(server.client.metric("concord_batch_limit", &DINOV3), 4.0);
    assert_eq!(server.client.classify("roadwork", &photograph(0)).status, 200);
}

#[test]
fn memory_is_estimated_from_the_files() {
    let (_folder, file) = edited_ensemble(|text| {
        replace(&text, "dtype = \"fp32\"                           # fp32", "dtype = \"bf16\" # fp32")
    });
    let listed = |arguments: &[&str]| concord(arguments).json_lines();
    let estimate = |model: &serde_json::Value, part: &str| model["estimated_bytes"][part].as_f64().unwrap();
    let (fp32, bf16) =
        (listed(&["models", "--json"]), listed(&["models", "--json", "--ensemble", file.to_str().unwrap()]));
    let parameters = fp32[0]["parameters"].as_f64().unwrap();
    // The heads are in the estimate too.
    let ratio = estimate(&fp32[0], "parameters") / (parameters * 4.0);
    assert!((1.0..1.1).contains(&ratio), "{ratio}: {:?}", fp32[0]);
    assert_eq!(estimate(&fp32[0], "parameters"), 2.0 * estimate(&bf16[0], "parameters"));
    assert!(estimate(&fp32[0], "activations") > estimate(&bf16[0], "activations"));
    assert!(concord(&["models"]).stdout.contains("memory each"));
}

#[test]
fn forwards_without_their_graph_are_counted_by_model() {
    let server = TroubledServer::start(&two_models());
    let fallbacks = |client: &Endpoint, model: &str| {
        client.metric("concord_graph_fallbacks_total", &[&format!("model=\"{model}\"")])
    };
    assert_eq!(server.client.classify_fresh("roadwork", &photograph(0)).status, 200);
    assert_eq!(fallbacks(&server.client, "dinov3"), 0.0);
    server.trouble.refuse_graphs();
    for number in 1..3 {
        assert_eq!(server.client.classify_fresh("roadwork", &photograph(number)).status, 200);
    }
    // Counted after the answer.
    server.client.wait_until("both are counted", |client| fallbacks(client, "dinov3") >= 2.0);
}
