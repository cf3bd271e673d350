//! The cloud model: it is asked when the others are unsure or busy, within a budget, and its failures fail no
//! request.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::fault_injection::FaultyServer;
use crate::harness::redis::Redis;
use crate::harness::scripted::{Action, ReceivedRequest, ScriptedServer};
use crate::harness::server::{Answer, Endpoint, Server, photograph};
use crate::harness::{concord, edited_ensemble, replace};

const KEY: &str = "sk-this-is-nobodys-business";
pub(crate) const WITH_KEY: (&str, &str) = ("CONCORD_TEST_CLOUD_KEY", KEY);

/// Returns an ensemble whose local models are never sure enough, with a cloud model as its last stage.
pub(crate) fn ensemble(base_url: &str, options: &str) -> (TempDir, PathBuf) {
    edited_ensemble(|text| {
        let text = replace(&text, "accept = { confidence = 0.999 }", "accept = { confidence = 1.0 }");
        let text = replace(
            &text,
            "weights = { dinov3 = 0.6, siglip2 = 0.4 }",
            "weights = { dinov3 = 0.6, siglip2 = 0.4, hosted = 1.0 }",
        );
        let last = "# ---- Which traffic sign is it?";
        let stages =
            format!("[[tasks.roadwork.stages]]\nmodels = [\"hosted\"]\noptional = [\"hosted\"]\n\n{last}");
        let text = replace(
            &replace(&text, last, &stages),
            "confidence = 0.70 }           # b",
            "confidence = 1.0 } # b",
        );
        let head = "[models.hosted]\narchitecture = \"cloud\"\nmodel = \"some/model\"\nmax_image_side = 100\n\
            api_key_env = \"CONCORD_TEST_CLOUD_KEY\"";
        let model = format!("{head}\nbase_url = \"{base_url}\"\n{options}\n\n[models.siglip2]");
        replace(&text, "[models.siglip2]", &model)
    })
}

/// Returns a response in the format that vLLM documents: the first token with its likeliest alternatives.
fn by_tokens(yes: f64) -> Value {
    let candidate = |token: &str, p: f64| json!({ "token": token, "logprob": p.ln(), "bytes": [] });
    let no = 1.0 - yes;
    let position = json!({ "token": " YES", "logprob": yes.ln(), "bytes": [],
        "top_logprobs": [candidate(" YES", yes), candidate(" NO", no * 0.9), candidate("no", no * 0.1)] });
    json!({ "id": "c", "object": "chat.completion", "created": 1, "model": "some/model",
        "choices": [{ "index": 0, "finish_reason": "stop", "message": { "role": "assistant", "content": " YES" },
            "logprobs": { "content": [position] } }],
        "usage": { "prompt_tokens": 1000, "completion_tokens": 1, "total_tokens": 1001 } })
}

/// Returns a response with the candidates of each position, the chosen one first.
fn by_candidates(content: &str, positions: &[&[(&str, f64)]]) -> Value {
    let candidate = |(token, p): &(&str, f64)| json!({ "token": token, "logprob": p.ln() });
    let position = |listed: &&[(&str, f64)]| {
        let mut chosen = candidate(&listed[0]);
        chosen["top_logprobs"] = listed.iter().map(candidate).collect();
        chosen
    };
    let positions: Vec<Value> = positions.iter().map(position).collect();
    let mut response = by_text(content);
    response["choices"][0]["logprobs"] = json!({ "content": positions });
    response
}

fn by_text(content: &str) -> Value {
    json!({ "choices": [{ "index": 0, "message": { "role": "assistant", "content": content } }],
        "usage": { "prompt_tokens": 1000, "completion_tokens": 1 } })
}

pub(crate) fn hosted(answer: &Answer) -> &Value {
    assert_eq!(answer.status, 200, "{answer:?}");
    let votes = answer.body["votes"].as_array().unwrap();
    votes.iter().find(|vote| vote["model"] == "hosted").unwrap_or_else(|| panic!("no cloud vote: {answer:?}"))
}

/// Runs a sequence of requests again where the wall clock's hour has changed meanwhile: a budget is an
/// hour's.
fn within_one_hour<T>(sequence: impl Fn() -> T) -> T {
    let hour = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 3600;
    loop {
        let begin = hour();
        let result = sequence();
        if hour() == begin {
            return result;
        }
    }
}

pub(crate) fn close(value: &Value, expected: f64) -> bool {
    (value.as_f64().unwrap() - expected).abs() < 1e-3
}

#[test]
fn an_unsure_ensemble_asks_the_cloud_and_uses_its_token_probabilities() {
    let cloud = ScriptedServer::start(|_| Action::Answer(200, by_tokens(0.9)));
    let (_folder, file) = ensemble(&cloud.address, "");
    let server = Server::start_with(&file, &[WITH_KEY]);
    let answer = server.client.classify("roadwork", &photograph(1));
    let vote = hosted(&answer);
    assert!(vote["label"] == "road work" && close(&vote["probability"], 0.9), "{vote}");
    assert_eq!((&answer.body["stage"], &answer.body["reason"]), (&3.into(), &"exhausted".into()));

    let requests: Vec<ReceivedRequest> = cloud.requests();
    assert_eq!((requests.len(), requests[0].path.as_str()), (1, "/v1/chat/completions"));
    assert_eq!(requests[0].headers["authorization"], format!("Bearer {KEY}"));
    let content = &requests[0].body["messages"][0]["content"];
    let question = content[1]["text"].as_str().unwrap();
    assert!(question.contains("road construction") && question.contains("NO, YES"), "{question}");
    let (_, image) = content[0]["image_url"]["url"].as_str().unwrap().split_once("base64,").unwrap();
    let jpeg = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, image).unwrap();
    let (width, height) =
        concord_models::decode(&jpeg, concord_models::ImageLimits::default()).unwrap().dimensions();
    assert_eq!(width.max(height), 100, "it is scaled down before it is sent");

    // A repeated image costs nothing, and the key is not leaked.
    assert_eq!(server.client.classify("roadwork", &photograph(1)).label_and_cache().1, "verdict");
    assert_eq!(cloud.requests().len(), 1);
    let output = format!("{} {} {:?}", server.log(), server.client.get("/metrics").body, answer);
    assert!(!output.contains(KEY));
}

#[test]
fn a_server_without_token_probabilities_is_asked_for_json_from_then_on() {
    let cloud = ScriptedServer::start(|request| {
        let wants_json = request.body["logprobs"].is_null();
        Action::Answer(200, by_text(if wants_json { r#"{"answer": "NO", "confidence": 0.8}"# } else { "NO" }))
    });
    let (_folder, file) = ensemble(&cloud.address, "");
    let server = Server::start_with(&file, &[WITH_KEY]);
    for (number, requests) in [(1, 2), (2, 3)] {
        let answer = server.client.classify("roadwork", &photograph(number));
        let vote = hosted(&answer);
        assert!(vote["label"] == "no road work" && close(&vote["probability"], 0.8), "{vote}");
        assert_eq!(cloud.requests().len(), requests);
    }
}

#[test]
fn a_model_that_says_something_else_gives_no_vote_unless_it_gives_one_in_json() {
    const SORRY: &str = "I'm sorry, I can't tell what this image shows.";
    const JSON: &str = r#"{"answer": "NO", "confidence": 0.8}"#;
    let cloud = ScriptedServer::start(|_| Action::Answer(200, by_tokens(0.9)));
    let (_folder, file) = ensemble(&cloud.address, "");
    let server = Server::start_with(&file, &[WITH_KEY]);
    let sorry = by_candidates(SORRY, &[&[("I", 0.97), ("YES", 0.0002), ("NO", 0.00001)]]);
    let image = by_candidates("The image … NO", &[&[("The", 0.97), (" Yes", 0.002), ("No", 0.001)]]);
    let unsure = by_candidates("Not sure", &[&[("Not", 0.9), ("YES", 0.05), ("NO", 0.04)]]);
    let positions: &[&[(&str, f64)]] = &[&[("\"", 0.99), ("YES", 0.01)], &[("YES", 0.9), ("NO", 0.1)]];
    let quote = by_candidates("\"YES\"", positions);
    let no_road_work = Some(("no road work", 0.8));
    for (number, (tokens, text, requests, expected)) in [
        (&sorry, SORRY, 2, None),
        (&image, JSON, 2, no_road_work),
        (&unsure, "", 2, None),
        // Declined images do not mean that the server gives no probabilities.
        (&quote, JSON, 1, Some(("road work", 0.901))),
        (&sorry, JSON, 2, no_road_work),
    ]
    .into_iter()
    .enumerate()
    {
        let before = cloud.requests().len();
        let (tokens, text) = (tokens.clone(), by_text(text));
        cloud.act(move |request| {
            let wants_json = request.body["logprobs"].is_null();
            Action::Answer(200, if wants_json { text.clone() } else { tokens.clone() })
        });
        let answer = server.client.classify("roadwork", &photograph(number));
        let vote = hosted(&answer);
        assert_eq!(cloud.requests().len() - before, requests, "{vote}");
        if let Some((label, probability)) = expected {
            assert!(vote["label"] == label && close(&vote["probability"], probability), "{vote}");
        } else {
            assert_eq!(
                (&vote["failure"], &answer.body["complete"]),
                (&"failed".into(), &false.into()),
                "{vote}"
            );
        }
    }
}

#[test]
fn answers_that_cannot_be_read_open_the_circuit_and_a_model_that_declines_does_not() {
    let cloud = ScriptedServer::start(|_| Action::Answer(200, by_text("I cannot tell.")));
    let (_folder, file) = ensemble(&cloud.address, "");
    let server = Server::start_with(&file, &[WITH_KEY]);
    let failure = |number: usize| {
        let answer = server.client.classify("roadwork", &photograph(number));
        hosted(&answer)["failure"].as_str().unwrap().to_owned()
    };
    for number in 0..8 {
        assert_eq!(failure(number), "failed");
    }
    cloud.act(|_| Action::Answer(200, json!({ "error": { "message": "no such model" } })));
    for number in 8..13 {
        assert_eq!(failure(number), "failed");
    }
    let requests = cloud.requests().len();
    assert_eq!(failure(13), "circuit_open");
    assert_eq!(cloud.requests().len(), requests);
}

#[test]
fn a_bad_cloud_response_is_a_failed_vote_and_the_verdict_is_given_without_it() {
    let cloud = ScriptedServer::start(|_| Action::Answer(200, by_text("I think there might be some cones.")));
    let (_folder, file) = ensemble(&cloud.address, "max_retries = 0\ntimeout_ms = 300");
    let server = Server::start_with(&file, &[WITH_KEY]);
    let actions = [
        (Action::Answer(200, by_text("I think there might be some cones.")), "failed", "not the JSON"),
        (Action::Answer(200, json!("<html>")), "failed", "cannot be used"),
        (Action::Answer(401, json!({ "error": "no such key" })), "failed", "status 401"),
        (Action::HalfAnswer, "failed", "cannot be reached"),
        // Longer than any client waits.
        (Action::Silence(Duration::from_secs(3600)), "timed_out", "300 ms"),
    ];
    for (number, (action, failure, words)) in actions.into_iter().enumerate() {
        cloud.act(move |_| action.clone());
        let answer = server.client.classify("roadwork", &photograph(number));
        let vote = hosted(&answer);
        assert_eq!(vote["failure"], failure, "{vote}");
        assert!(vote["error"].as_str().unwrap().contains(words), "{vote}");
        assert_eq!((&answer.body["reason"], &answer.body["complete"]), (&"incomplete".into(), &false.into()));
        // An incomplete verdict is not cached; its local votes are.
        assert_eq!(server.client.classify("roadwork", &photograph(number)).label_and_cache().1, "some_votes");
    }
}

#[test]
fn repeated_refusals_are_retried_and_then_open_the_circuit() {
    let cloud = ScriptedServer::start(|_| Action::AnswerWith(429, "retry-after", "0"));
    let (_folder, file) = ensemble(&cloud.address, "max_retries = 2");
    let server = Server::start_with(&file, &[WITH_KEY]);
    for number in 0..5 {
        assert_eq!(hosted(&server.client.classify("roadwork", &photograph(number)))["failure"], "failed");
    }
    assert_eq!(cloud.requests().len(), 5 * 3, "each question is sent three times");
    for number in 5..8 {
        assert_eq!(
            hosted(&server.client.classify("roadwork", &photograph(number)))["failure"],
            "circuit_open"
        );
    }
    assert_eq!(cloud.requests().len(), 5 * 3, "then the circuit is open");
    assert_eq!(server.client.metric("concord_votes_total", &["hosted", "circuit_open"]), 3.0);
}

#[test]
fn a_retry_after_beyond_the_deadline_is_not_waited_for() {
    let cloud = ScriptedServer::start(|_| Action::AnswerWith(503, "retry-after", "3600"));
    let (_folder, file) = ensemble(&cloud.address, "");
    let server = Server::start_with(&file, &[WITH_KEY]);
    // Waiting for it would end as "timed_out".
    assert_eq!(hosted(&server.client.classify("roadwork", &photograph(1)))["failure"], "failed");
    assert_eq!(cloud.requests().len(), 1);
}

#[test]
fn the_hourly_limit_is_shared_through_redis() {
    let (failures, requests, usd) = within_one_hour(|| {
        let redis = Redis::start();
        let cloud = ScriptedServer::start(|_| Action::Answer(200, by_tokens(0.9)));
        // An answer has 1,000 tokens, which cost $0.10: two answers fit into the budget.
        let (_folder, file) =
            ensemble(&cloud.address, "usd_per_million_input_tokens = 100.0\nmax_usd_per_hour = 0.25");
        let url = redis.url();
        let redis_variables = [
            ("CONCORD__CACHE__BACKEND", "redis"),
            ("CONCORD__CACHE__URL", url.as_str()),
            // However busy the machine is.
            ("CONCORD__CACHE__TIMEOUT_MS", "10000"),
        ];
        let variables = [&[WITH_KEY][..], &redis_variables].concat();
        let servers = [Server::start_with(&file, &variables), Server::start_with(&file, &variables)];
        let failure = |number: usize| {
            let answer = servers[number % 2].client.classify("roadwork", &photograph(number));
            hosted(&answer)["failure"].clone()
        };
        let failures: Vec<Value> = (0..4).map(failure).collect();
        let usd = servers[0].client.metric("concord_cloud_usd_total", &["hosted"]);
        (failures, cloud.requests().len(), usd)
    });
    assert_eq!(failures, [Value::Null, Value::Null, "over_budget".into(), "over_budget".into()]);
    assert_eq!(requests, 2);
    assert!((usd - 0.1).abs() < 1e-9, "{usd}");
}

#[test]
fn the_budget_ends_requests_whose_cost_the_server_does_not_say_and_refused_ones_are_free() {
    const IMAGES: usize = 20;
    let without = |usage: Value| {
        let mut answer = by_tokens(0.9);
        answer["usage"] = usage;
        Action::Answer(200, answer)
    };
    let unreadable = json!({ "choices": null, "usage": { "prompt_tokens": 1000, "completion_tokens": 1 } });
    for (action, is_paid, is_estimated) in [
        (without(Value::Null), true, true),
        (without(json!({ "prompt_tokens": null, "completion_tokens": 0 })), true, true),
        (Action::Answer(200, unreadable), true, false),
        (Action::HalfAnswer, true, true),
        (Action::Silence(Duration::from_secs(3600)), true, true),
        (Action::Answer(401, json!({})), false, false),
    ] {
        let timeout_ms = if matches!(action, Action::Silence(_)) { 300 } else { 5000 };
        let (failures, requests, usd, log) = within_one_hour(|| {
            let script = action.clone();
            let cloud = ScriptedServer::start(move |_| script.clone());
            // An image and its question are estimated at some 600 tokens: four of them fit into the budget.
            let prices = "usd_per_million_input_tokens = 100.0\nmax_usd_per_hour = 0.25";
            let options = format!("{prices}\ntimeout_ms = {timeout_ms}\nmax_retries = 0");
            let (_folder, file) = ensemble(&cloud.address, &options);
            let server = Server::start_with(&file, &[WITH_KEY]);
            let failure = |number: usize| {
                hosted(&server.client.classify("roadwork", &photograph(number)))["failure"].clone()
            };
            let failures: Vec<Value> = (0..IMAGES).map(failure).collect();
            let usd = server.client.metric("concord_cloud_usd_total", &["hosted"]);
            if is_estimated {
                server.wait_for_log("an estimate is booked");
            }
            (failures, cloud.requests().len(), usd, server.log())
        });
        let ended = failures.iter().filter(|failure| **failure == "over_budget").count();
        if is_paid {
            assert!(
                (1..=4).contains(&requests) && ended >= IMAGES - 4,
                "{action:?}: {requests}, {failures:?}"
            );
            assert!((0.1..=0.25).contains(&usd), "{action:?}: {usd}");
        } else {
            assert!(requests == IMAGES && usd.abs() < 1e-9, "{action:?}: {requests}, {usd}");
        }
        assert_eq!(log.matches("an estimate is booked").count(), usize::from(is_estimated), "{log}");
    }
}

#[test]
fn a_busy_ensemble_asks_the_cloud_instead() {
    let cloud = ScriptedServer::start(|_| Action::Answer(200, by_tokens(0.9)));
    let (_folder, file) = ensemble(&cloud.address, "");
    let text = std::fs::read_to_string(&file).unwrap();
    let text = replace(&text, "api_key_env = \"CONCORD_TEST_CLOUD_KEY\"\n", "");
    let optional = "optional = [\"hosted\"]";
    std::fs::write(&file, replace(&text, optional, &format!("{optional}\nburst_queue_depth = 2"))).unwrap();
    let server = FaultyServer::start(&file);
    server.faults.hold();
    let ask = |number: usize| {
        let client = server.client.clone();
        std::thread::spawn(move || client.classify("roadwork", &photograph(number)))
    };
    let patient: Vec<_> = (1..=3).map(ask).collect();
    let depth = |client: &Endpoint| client.metric("concord_queue_depth", &["model=\"dinov3\""]);
    server.client.wait_until("three wait for the first model", |client| depth(client) == 3.0);
    let answer = server.client.classify("roadwork", &photograph(4));
    assert!(close(&hosted(&answer)["probability"], 0.9), "{answer:?}");
    assert_eq!((&answer.body["burst"], answer.body["votes"].as_array().unwrap().len()), (&true.into(), 1));
    server.faults.release();
    for client in patient {
        assert_eq!(client.join().unwrap().body["burst"], false);
    }
    // A verdict that depends on the length of a queue is not cached.
    assert_eq!(server.client.classify("roadwork", &photograph(4)).label_and_cache().1, "some_votes");
}

#[test]
fn a_cloud_model_without_its_key_is_off() {
    let (_folder, file) = ensemble("https://example.invalid/v1", "");
    let server = Server::start(&file);
    let answer = server.client.classify("roadwork", &photograph(1));
    assert_eq!((&answer.body["stages"], &answer.body["complete"]), (&2.into(), &true.into()), "{answer:?}");
    server.wait_for_log("CONCORD_TEST_CLOUD_KEY");
}

#[test]
fn all_faults_of_a_cloud_model_are_reported() {
    let (_folder, file) = ensemble(
        "ftp://user:hunter2@example.com",
        "protocol = \"soap\"\nmax_retries = 99\nusd_per_million_output_tokens = 1.5\nmax_batch = 3",
    );
    let run = concord(&["validate", "--ensemble", file.to_str().unwrap()]);
    assert_eq!(run.status, 1, "{run:?}");
    for fault in [
        "models.hosted.base_url: is missing or not an address",
        "models.hosted.protocol: \"soap\" is not a protocol",
        "models.hosted.max_retries: 99 is out of range",
        "models.hosted.max_usd_per_hour: is missing",
        "models.hosted.max_batch: unknown key",
    ] {
        assert!(run.stderr.contains(fault) || run.stdout.contains(fault), "{fault} is not in {run:?}");
    }
    assert!(!format!("{run:?}").contains("hunter2"));
}
