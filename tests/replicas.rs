//! Replicas of a model.

use std::thread::JoinHandle;

use crate::harness::fault_injection::FaultyServer;
use crate::harness::server::{Answer, Endpoint, Load, Server, photograph};
use crate::harness::{concord, edited_ensemble, replace};

/// Returns an ensemble in which the first model has three replicas, each with room for `capacity` images.
fn three_replicas(capacity: usize) -> (tempfile::TempDir, std::path::PathBuf) {
    edited_ensemble(|text| {
        let capacity = format!("replicas = 3\nqueue_capacity = {capacity}");
        let text = replace(&text, "queue_capacity = 256", &capacity);
        replace(&text, "accept = { confidence = 0.999 }", "accept = { confidence = 0.01 }")
    })
}

fn ask(client: &Endpoint, number: usize) -> JoinHandle<Answer> {
    let client = client.clone();
    std::thread::spawn(move || client.classify("roadwork", &photograph(number)))
}

#[test]
fn replicas_return_the_same_vote_and_share_cached_verdicts() {
    let (_folder, file) = three_replicas(256);
    let server = Server::start(&file);
    let image = photograph(1);
    let answers: Vec<Answer> = (0..6).map(|_| server.client.classify_fresh("roadwork", &image)).collect();
    for answer in &answers {
        assert_eq!(answer.body["probability"], answers[0].body["probability"], "{answer:?}");
    }
    assert_eq!(server.client.forwards(), 6.0);
    assert_eq!(server.client.classify("roadwork", &image).label_and_cache().1, "verdict");
    let models = server.client.get("/v1/models").body;
    let replicas = models[0]["replicas"].as_array().unwrap();
    assert_eq!(
        (replicas.len(), &replicas[2]["replica"], &replicas[2]["device"]),
        (3, &2.into(), &"cpu".into())
    );
    assert_eq!((&models[0]["device"], models[1]["replicas"].as_array().unwrap().len()), (&"cpu".into(), 1));
    assert!(models[0]["estimated_bytes"]["parameters"].as_u64().unwrap() > 1_000_000);
    // The memory gauge is the sum over all replicas; the batch limit is per replica.
    let listed = concord(&["models", "--json", "--ensemble", file.to_str().unwrap()]).json_lines();
    assert_eq!(listed[0]["replicas"], serde_json::json!(["cpu", "cpu", "cpu"]));
    for replica in ["0", "1", "2"] {
        let labels = ["model=\"dinov3\"", &format!("replica=\"{replica}\"")];
        assert_eq!(server.client.metric("concord_batch_limit", &labels), 32.0);
    }
    let estimated = server
        .client
        .metric("concord_model_memory_estimated_bytes", &["model=\"dinov3\"", "part=\"parameters\""]);
    assert_eq!(estimated, 3.0 * models[0]["estimated_bytes"]["parameters"].as_f64().unwrap());
}

#[test]
fn images_go_to_the_least_loaded_replica_until_all_are_full() {
    let (_folder, file) = three_replicas(2);
    let server = FaultyServer::start(&file);
    let depth = |client: &Endpoint| client.metric("concord_queue_depth", &["model=\"dinov3\""]);
    let begun = server.faults.batches_started();
    server.faults.hold();
    let first: Vec<_> = (0..3).map(|number| ask(&server.client, number)).collect();
    server
        .client
        .wait_until("each replica has one and runs it", |_| server.faults.batches_started() == begun + 3);
    let second: Vec<_> = (3..6).map(|number| ask(&server.client, number)).collect();
    server.client.wait_until("each has another", |client| depth(client) == 6.0);
    let refused = server.client.classify("roadwork", &photograph(99));
    assert_eq!(
        (refused.status, &refused.body["type"]),
        (429, &"busy".into()),
        "there is room for three times two: {refused:?}"
    );
    server.faults.release();
    for client in first.into_iter().chain(second) {
        assert_eq!(client.join().unwrap().status, 200);
    }
    server.client.wait_until("no permit is lost", |client| depth(client) == 0.0);
}

#[test]
fn the_other_replicas_go_on_while_one_restarts() {
    let (_folder, file) = three_replicas(256);
    let server = FaultyServer::start(&file);
    let load = Load::start(&server.client, 4);
    for _ in 0..4 {
        std::thread::sleep(std::time::Duration::from_millis(200));
        server.faults.panic_in_next(1);
    }
    server.client.wait_until("the threads were restarted", |client| {
        client.metric("concord_model_restarts_total", &["model=\"dinov3\""]) >= 4.0
    });
    let outcomes = load.finish();
    let failed = outcomes.iter().filter(|outcome| !matches!(outcome, Ok((200, _)))).count();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok((200 | 503, _)))), "{outcomes:?}");
    // There are four clients, so that no batch is larger, and each panic fails the batch of one replica.
    assert!((1..=16).contains(&failed) && outcomes.len() > 20, "{failed} of {}", outcomes.len());
    assert_eq!(server.client.classify("roadwork", &photograph(7)).status, 200);
    server.client.wait_until("no permit is lost", |client| client.metric("concord_queue_depth", &[]) == 0.0);
}

#[test]
fn a_number_of_replicas_out_of_range_is_refused() {
    for (wrong, named) in [("0", "replicas: 0 is out of range"), ("65", "replicas: 65 is out of range")] {
        let (_folder, file) = edited_ensemble(|text| {
            replace(&text, "queue_capacity = 256", &format!("queue_capacity = 256\nreplicas = {wrong}"))
        });
        let run = concord(&["validate", "--no-load", "--ensemble", file.to_str().unwrap()]);
        assert!(run.status == 1 && run.stderr.contains(named), "{run:?}");
    }
}
