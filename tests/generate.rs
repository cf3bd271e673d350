//! Generated texts: whole and streamed.

use std::io::Read;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::fault_injection::FaultyServer;
use crate::harness::server::{Answer, Endpoint, Server, photograph};
use crate::harness::{edited_ensemble, replace, root};

/// Returns an ensemble of the two models, and the two generative ones.
fn ensemble() -> (TempDir, PathBuf) {
    edited_ensemble(|text| {
        let model = |name: &str| {
            let folder = root().join(format!("models/nano/{name}"));
            format!("[models.{name}]\narchitecture = \"{name}\"\nsnapshot = \"{}\"\n\n", folder.display())
        };
        replace(
            &text,
            "[models.siglip2]",
            &format!("{}{}[models.siglip2]", model("florence2"), model("molmo2")),
        )
    })
}

fn ask(client: &Endpoint, model: &str, body: &Value) -> Answer {
    let url = format!("{}/v1/models/{model}/generate", client.address);
    client.send(client.http().post(url).header("content-type", "application/json").body(body.to_string()))
}

/// Returns that ensemble with a time limit for requests, and molmo2 in place of siglip2.
fn with_time_limit(milliseconds: u32) -> (TempDir, PathBuf) {
    let (folder, file) = ensemble();
    let text = std::fs::read_to_string(&file).unwrap();
    let text = replace(&text, "request_timeout_ms = 10_000", &format!("request_timeout_ms = {milliseconds}"));
    let text = replace(&text, "models = [\"siglip2\"]", "models = [\"molmo2\"]");
    let text = replace(&text, "confidence = 0.999", "confidence = 1.0");
    std::fs::write(
        &file,
        text.replace("siglip2 = 0.4 }", "molmo2 = 0.4 }")
            .replace(", siglip2 = 0.95", "")
            .replace(", siglip2 = 1.08", ""),
    )
    .unwrap();
    (folder, file)
}

fn image() -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, photograph(1))
}

#[test]
fn a_streamed_text_is_the_same_as_the_whole_text() {
    let (_folder, file) = ensemble();
    let server = Server::start(&file);
    for (model, prompt) in [("molmo2", "What is this?"), ("florence2", "<CAPTION>")] {
        let body = json!({ "image": image(), "prompt": prompt, "max_new_tokens": 12 });
        let whole = ask(&server.client, model, &body);
        assert_eq!(whole.status, 200, "{model}: {whole:?}");
        let text = whole.body["text"].as_str().unwrap();
        assert!(whole.body["prompt_tokens"].as_u64().unwrap() > 3, "{whole:?}");
        assert!((1..=12).contains(&whole.body["new_tokens"].as_u64().unwrap()), "{whole:?}");

        // The same image as a raw body, with the parameters in the query.
        let prompt = prompt.replace(' ', "%20").replace('<', "%3C").replace('>', "%3E").replace('?', "%3F");
        let query = format!("prompt={prompt}&max_new_tokens=12&stream=true");
        let url = format!("{}/v1/models/{model}/generate?{query}", server.client.address);
        let request = server.client.http().post(url).body(photograph(1));
        let mut response = request.send().unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert!(response.headers().contains_key("x-request-id"));
        let mut events = String::new();
        response.read_to_string(&mut events).unwrap();
        let (pieces, end) = events.split_once("event: done\ndata: ").unwrap_or_else(|| panic!("{events}"));
        let piece = |line: &str| -> Option<String> {
            let data: Value = serde_json::from_str(line.strip_prefix("data: ")?).unwrap();
            Some(data["text"].as_str().unwrap().to_owned())
        };
        let joined: String = pieces.lines().filter_map(piece).collect();
        let done: Value = serde_json::from_str(end.trim()).unwrap();
        assert_eq!(done["text"].as_str().unwrap(), text, "{model}");
        assert_eq!(joined.trim(), text.trim(), "{model}");
    }
}

#[test]
fn a_bad_generate_request_has_its_status() {
    let (_folder, file) = ensemble();
    let server = Server::start(&file);
    let cases = [
        ("molmo2", json!({ "image": image() }), 400, "bad-request"),
        ("molmo2", json!({ "image": image(), "prompt": " " }), 400, "bad-request"),
        ("molmo2", json!({ "image": image(), "prompt": "x", "max_new_tokens": 0 }), 400, "bad-request"),
        ("molmo2", json!({ "image": image(), "prompt": "x", "max_new_tokens": 9999 }), 400, "bad-request"),
        ("molmo2", json!({ "image": "aGVsbG8=", "prompt": "x" }), 400, "not-an-image"),
        ("florence2", json!({ "image": image(), "prompt": "<NO_SUCH_TASK>" }), 400, "bad-request"),
        ("dinov3", json!({ "image": image(), "prompt": "x" }), 404, "unknown-model"),
        ("nobody", json!({ "image": image(), "prompt": "x" }), 404, "unknown-model"),
    ];
    for (model, body, status, kind) in cases {
        let answer = ask(&server.client, model, &body);
        assert_eq!((answer.status, &answer.body["type"]), (status, &kind.into()), "{model}: {answer:?}");
    }
    let answer = ask(&server.client, "nobody", &json!({ "image": image(), "prompt": "x" }));
    assert!(answer.body["detail"].as_str().unwrap().contains("florence2, molmo2"), "{answer:?}");
}

#[test]
fn generative_models_vote_and_explain() {
    let (_folder, file) = ensemble();
    let text = std::fs::read_to_string(&file).unwrap();
    let text = replace(&text, "models = [\"siglip2\"]", "models = [\"florence2\", \"molmo2\"]")
        .replace("siglip2 = 0.4 }", "florence2 = 0.2, molmo2 = 0.2 }")
        .replace(", siglip2 = 0.95", "")
        .replace(", siglip2 = 1.08", "")
        .replace("confidence = 0.999", "confidence = 1.0");
    std::fs::write(&file, text).unwrap();
    let server = Server::start(&file);
    let answer = server.client.classify("roadwork", &photograph(1));
    assert_eq!(answer.status, 200, "{answer:?}");
    let votes = answer.body["votes"].as_array().unwrap();
    assert_eq!(votes.len(), 3, "{answer:?}");
    // The explanation is by the one that takes questions.
    let url = format!("{}/v1/tasks/roadwork/classify?explain=true", server.client.address);
    let explained = server.client.send(server.client.http().post(url).body(photograph(1)));
    assert_eq!((explained.status, &explained.body["cache"]), (200, &"verdict".into()), "{explained:?}");
    let explanation = &explained.body["explanation"];
    assert!(explanation["model"] == "molmo2" && explanation["text"].is_string(), "{explanation}");
    assert!(votes.iter().all(|vote| vote["probability"].as_f64().is_some_and(|p| (0.5..=1.0).contains(&p))));
}

#[test]
fn a_text_ends_at_its_deadline_even_if_its_model_hangs() {
    let (_folder, file) = with_time_limit(1500);
    let server = FaultyServer::start(&file);
    server.faults.generating.hold();
    let body = json!({ "image": image(), "prompt": "What is this?" });
    let answer = ask(&server.client, "molmo2", &body);
    assert_eq!((answer.status, &answer.body["type"]), (504, &"timed-out".into()), "{answer:?}");

    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let events = ask(&server.client, "molmo2", &streamed);
    let text = events.body.as_str().unwrap();
    assert!(text.contains("event: error") && text.contains("timed-out"), "{events:?}");

    // A verdict waits for its explanation only until its own deadline. The model is still busy with the texts
    // above, and votes wait for them.
    server.faults.generating.release();
    server
        .client
        .wait_until("the model is free", |client| client.metric("concord_queue_depth", &["molmo2"]) == 0.0);
    let voted = server.client.classify("roadwork", &photograph(1));
    assert_eq!(voted.status, 200, "{voted:?}");
    server.faults.generating.hold();
    let url = format!("{}/v1/tasks/roadwork/classify?explain=true", server.client.address);
    let explained = server.client.send(server.client.http().post(url).body(photograph(1)));
    assert_eq!((explained.status, &explained.body["label"]), (200, &voted.body["label"]), "{explained:?}");
    assert!(explained.body["explanation"]["error"].as_str().unwrap().contains("in time"), "{explained:?}");
}

#[test]
fn a_client_that_disconnects_frees_the_model() {
    let (_folder, file) = ensemble();
    let server = FaultyServer::start(&file);
    server.faults.generating.hold();
    let url = format!(
        "{}/v1/models/molmo2/generate?prompt=Why&stream=true&max_new_tokens=1024",
        server.client.address
    );
    let leaving = server.client.http().post(url).body(photograph(1)).send().unwrap();
    assert_eq!(leaving.status(), 200);
    let waits = |client: &Endpoint| client.metric("concord_queue_depth", &["molmo2"]);
    server.client.wait_until("it is being generated", |client| waits(client) == 1.0);
    drop(leaving);
    server.faults.generating.release();
    server.client.wait_until("the model is free", |client| waits(client) == 0.0);
    let answer = ask(&server.client, "molmo2", &json!({ "image": image(), "prompt": "What is this?" }));
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Returns how many requests for text had this outcome.
fn texts(client: &Endpoint, model: &str, outcome: &str) -> f64 {
    let labels = [format!("model=\"{model}\""), format!("outcome=\"{outcome}\"")];
    client.metric("concord_generate_requests_total", &[&labels[0], &labels[1]])
}

#[test]
fn a_full_server_refuses_texts_and_verdicts_alike() {
    let (_folder, file) = ensemble();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, replace(&text, "max_in_flight = 1024", "max_in_flight = 1")).unwrap();
    let server = FaultyServer::start(&file);
    let client = &server.client;
    server.faults.generating.hold();
    let url = format!("{}/v1/models/molmo2/generate?prompt=Why&stream=true", client.address);
    let reading = client.http().post(url).body(photograph(1)).send().unwrap();
    assert_eq!(reading.status(), 200);

    let body = json!({ "image": image(), "prompt": "What is this?" });
    for refused in [ask(client, "molmo2", &body), client.classify("roadwork", &photograph(1))] {
        assert_eq!((refused.status, &refused.body["type"]), (429, &"busy".into()), "{refused:?}");
        assert_eq!(refused.header("retry-after"), "1");
        let detail = refused.body["detail"].as_str().unwrap();
        assert!(detail.contains("max_in_flight = 1"), "{detail}");
    }
    // The permit is free when the text has ended.
    server.faults.generating.release();
    let events = reading.text().unwrap();
    assert!(events.contains("event: done"), "{events}");
    client
        .wait_until("nothing is in flight", |client| client.metric("concord_in_flight_requests", &[]) == 0.0);
    assert_eq!(ask(client, "molmo2", &body).status, 200);
    assert_eq!(client.classify("roadwork", &photograph(1)).status, 200);
    assert_eq!((texts(client, "molmo2", "busy"), texts(client, "molmo2", "ok")), (1.0, 2.0));
    assert_eq!(client.metric("concord_generate_request_seconds_count", &["molmo2"]), 2.0);
    assert_eq!(client.metric("concord_requests_total", &["busy"]), 1.0);
}

#[test]
fn texts_are_counted_by_their_outcome() {
    let (_folder, file) = with_time_limit(3000);
    let server = FaultyServer::start(&file);
    let client = &server.client;
    let body = json!({ "image": image(), "prompt": "What is this?", "max_new_tokens": 4 });
    assert_eq!(ask(client, "molmo2", &body).status, 200);
    assert_eq!(ask(client, "nobody", &body).status, 404);
    assert_eq!(ask(client, "dinov3", &body).status, 404);
    assert_eq!(ask(client, "molmo2", &json!({ "image": "aGVsbG8=", "prompt": "x" })).status, 400);
    server.faults.generating.hold();
    assert_eq!(ask(client, "molmo2", &body).status, 504);
    let url = format!("{}/v1/models/molmo2/generate?prompt=Why&stream=true", client.address);
    drop(client.http().post(url).body(photograph(1)).send().unwrap());
    client.wait_until("it is abandoned", |client| texts(client, "molmo2", "abandoned") == 1.0);
    server.faults.generating.release();
    for (model, outcome, count) in [
        ("molmo2", "ok", 1.0),
        ("molmo2", "bad_image", 1.0),
        ("molmo2", "expired", 1.0),
        ("unknown", "unknown_model", 2.0),
    ] {
        assert_eq!(texts(client, model, outcome), count, "{model} {outcome}");
    }
    client
        .wait_until("nothing is in flight", |client| client.metric("concord_in_flight_requests", &[]) == 0.0);
    assert_eq!(client.metric("concord_generate_requests_total", &["nobody"]), 0.0, "labels are bounded");
}

#[test]
fn an_explanation_runs_in_the_permit_of_its_verdict() {
    let (_folder, file) = with_time_limit(10_000);
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, replace(&text, "max_in_flight = 1024", "max_in_flight = 1")).unwrap();
    let server = FaultyServer::start(&file);
    let client = &server.client;
    let url = format!("{}/v1/tasks/roadwork/classify?explain=true", client.address);
    let explain = || client.http().post(&url).body(photograph(1));
    let explained = client.send(explain());
    assert!(explained.body["explanation"]["text"].is_string(), "{explained:?}");

    server.faults.generating.hold();
    std::thread::scope(|scope| {
        let explaining = scope.spawn(|| client.send(explain()));
        client.wait_until("the explanation is being written", |client| {
            client.metric("concord_queue_depth", &["molmo2"]) == 1.0
        });
        let refused = client.classify("roadwork", &photograph(1));
        assert_eq!(refused.status, 429, "{refused:?}");
        server.faults.generating.release();
        assert_eq!(explaining.join().unwrap().status, 200);
    });
    assert_eq!(client.metric("concord_generate_requests_total", &[]), 0.0, "no request for text was made");
}
