//! `concord serve`: verdicts over HTTP, the cache, and changes of the configuration while it runs.

use std::fs;
use std::path::Path;

use crate::harness::server::{Load, Server, photograph};
use crate::harness::{concord, edited_ensemble, replace, root, two_models};
use serde_json::Value;

fn example(name: &str) -> Vec<u8> {
    fs::read(root().join("assets").join(name)).unwrap()
}

/// Replaces the file by another of the same name, as editors do.
fn edit(file: &Path, edit: impl Fn(&str) -> String) {
    let text = edit(&fs::read_to_string(file).unwrap());
    let beside = file.with_extension("new");
    fs::write(&beside, text).unwrap();
    fs::rename(beside, file).unwrap();
}

fn reloads(server: &Server, outcome: &str) -> f64 {
    server.client.metric("concord_config_reloads_total", &[&format!("outcome=\"{outcome}\"")])
}

fn wait_for_reload(server: &Server, outcome: &str, count: f64) {
    server.client.wait_until("the configuration was read again", |_| reloads(server, outcome) >= count);
}

#[test]
fn the_endpoint_returns_the_verdicts_of_the_command_line() {
    let server = Server::start(&two_models());
    let expected = concord(&["classify", "--json", "--task", "roadwork", "assets"]).json_lines();
    for verdict in expected {
        let file = verdict["file"].as_str().unwrap();
        let answer = server.client.classify("roadwork", &fs::read(root().join(file)).unwrap());
        assert_eq!(answer.status, 200, "{answer:?}");
        for field in ["label", "stage", "reason", "agreement", "complete", "cache"] {
            assert_eq!(answer.body[field], verdict[field], "{file}: {field}");
        }
        let difference =
            answer.body["probability"].as_f64().unwrap() - verdict["probability"].as_f64().unwrap();
        assert!(difference.abs() < 1e-6, "{file}: {difference}");
        assert_eq!(answer.header("x-request-id"), answer.body["request_id"].as_str().unwrap());
        assert!(answer.header("traceparent").contains(answer.body["trace_id"].as_str().unwrap()));
        let vote = &answer.body["votes"][0]["milliseconds"];
        assert!(["queue", "preprocess", "model"].iter().all(|phase| vote[phase].is_number()), "{answer:?}");
    }
}

#[test]
fn an_image_may_be_the_body_or_be_in_a_form_or_in_json() {
    use base64::Engine as _;
    let server = Server::start(&two_models());
    let image = example("road-work-far.jpg");
    let base64 = base64::engine::general_purpose::STANDARD.encode(&image);
    let form = || {
        let part = reqwest::blocking::multipart::Part::bytes(image.clone()).file_name("a.jpg");
        reqwest::blocking::multipart::Form::new().text("note", "ignored").part("image", part)
    };
    let json = |text: &str| serde_json::json!({ "image": text }).to_string();
    let post = || server.client.post("roadwork");
    for request in [
        post().body(image.clone()),
        post().header("content-type", "image/jpeg").body(image.clone()),
        post().multipart(form()),
        post().header("content-type", "application/json").body(json(&base64)),
        post()
            .header("content-type", "application/json")
            .body(json(&format!("data:image/jpeg;base64,{base64}"))),
    ] {
        let answer = server.client.send(request);
        assert_eq!((answer.status, &answer.body["label"]), (200, &Value::from("road work")), "{answer:?}");
    }
    assert_eq!(
        server.client.metric("concord_forwards_total", &["model=\"dinov3\""]),
        1.0,
        "the bytes are the same"
    );
}

#[test]
fn a_repeated_image_costs_no_forward_pass() {
    let server = Server::start(&two_models());
    let image = example("road-work-far.jpg");
    let first = server.client.classify("roadwork", &image);
    assert_eq!(first.label_and_cache(), ("road work", "miss"));
    let forwards = server.client.forwards();
    let again = server.client.classify("roadwork", &image);
    assert_eq!(again.label_and_cache(), ("road work", "verdict"));
    assert_eq!(again.body["probability"], first.body["probability"]);
    assert_eq!(again.body["votes"][0]["cached"], true);
    assert_eq!(again.body["votes"][0]["milliseconds"]["model"], 0.0);
    assert_eq!(server.client.forwards(), forwards);
    // Unless the caller bypasses the cache.
    assert_eq!(server.client.classify_fresh("roadwork", &image).label_and_cache(), ("road work", "miss"));
    assert_eq!(server.client.forwards(), 2.0 * forwards);
}

/// Weights and temperatures apply when votes are fused, so that changing them costs no forward pass.
#[test]
fn changed_weights_and_temperatures_fuse_cached_votes_again() {
    let (_folder, file) = edited_ensemble(|text| text);
    let server = Server::start(&file);
    let image = example("road-work-far.jpg");
    let before = server.client.classify("roadwork", &image).body;
    let forwards = server.client.forwards();
    assert_eq!(forwards, 2.0);
    let p = |vote: usize| before["votes"][vote]["probability"].as_f64().unwrap();

    edit(&file, |text| {
        replace(text, "dinov3 = 0.6, siglip2 = 0.4 } }\n# Temp", "dinov3 = 0.1, siglip2 = 0.9 } }\n# Temp")
    });
    wait_for_reload(&server, "applied", 1.0);
    let reweighted = server.client.classify("roadwork", &image);
    assert_eq!(reweighted.label_and_cache(), ("road work", "votes"));
    let fused = reweighted.body["probability"].as_f64().unwrap();
    assert!((fused - (0.1 * p(0) + 0.9 * p(1))).abs() < 1e-9, "{before} {}", reweighted.body);

    edit(&file, |text| replace(text, "dinov3 = 0.61, siglip2 = 0.95", "dinov3 = 6.1, siglip2 = 0.95"));
    wait_for_reload(&server, "applied", 2.0);
    let cooler = server.client.classify("roadwork", &image);
    assert_eq!(cooler.label_and_cache().1, "votes");
    assert!(cooler.body["votes"][0]["probability"].as_f64().unwrap() < p(0), "{}", cooler.body);

    // With a lower threshold, the cascade stops one stage earlier, on the same vote.
    edit(&file, |text| replace(text, "accept = { confidence = 0.999 }", "accept = { confidence = 0.5 }"));
    wait_for_reload(&server, "applied", 3.0);
    let earlier = server.client.classify("roadwork", &image);
    assert_eq!((earlier.label_and_cache().1, &earlier.body["stage"]), ("votes", &Value::from(1)));
    assert_eq!(server.client.forwards(), forwards, "none of the edits cost a forward pass");
}

#[test]
fn changed_prompts_apply_without_a_restart_and_change_only_their_models_vote() {
    let (_folder, file) = edited_ensemble(|text| replace(&text, "confidence = 0.999", "confidence = 1.0"));
    let server = Server::start(&file);
    let image = example("coffee.png");
    let votes = |answer: &Value| -> Vec<f64> {
        answer["votes"].as_array().unwrap().iter().map(|vote| vote["probability"].as_f64().unwrap()).collect()
    };
    let before = server.client.classify("roadwork", &image).body;
    edit(&file, |text| replace(text, "\"a sign that warns of road work\"", "\"a cup\""));
    wait_for_reload(&server, "applied", 1.0);
    let after = server.client.classify("roadwork", &image);
    assert_ne!(votes(&before)[1], votes(&after.body)[1]);
    // dinov3's vote depends on the question and the labels but not on prompts; its cache key does, which is
    // safe.
    assert_eq!(votes(&before)[0], votes(&after.body)[0]);
}

#[test]
fn an_edit_while_the_models_are_loading_is_not_lost() {
    let (_folder, file) = edited_ensemble(|text| text);
    let edited = file.clone();
    let editor = std::thread::spawn(move || {
        // About when the file has been read and the models are still loading.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let question = "Is there active road construction in this image?";
        edit(&edited, |text| replace(text, question, "While it was loading?"));
    });
    let server = Server::start(&file);
    editor.join().unwrap();
    server.client.wait_until("the new question is there", |client| {
        client.get("/v1/tasks").body[0]["question"] == "While it was loading?"
    });
}

#[test]
fn good_and_bad_edits_under_load_fail_no_request() {
    let (_folder, file) = edited_ensemble(|text| text);
    let server = Server::start_with(&file, &[("RUST_LOG", "info,concord::serve=debug")]);
    let load = Load::start(&server.client, 4);
    for round in 1..=3 {
        edit(&file, |text| {
            text.replace("confidence = 0.70", &format!("confidence = 0.{round}1")).replace("0.11 }", "0.71 }")
        });
        edit(&file, |text| format!("{text}\n# {round}\n"));
        let question = format!("question = \"Round {round}?\"");
        let old = if round == 1 {
            "Is there active road construction in this image?".to_owned()
        } else {
            format!("Round {}?", round - 1)
        };
        edit(&file, |text| replace(text, &format!("question = \"{old}\""), &question));
        server.client.wait_until("the new question is there", |client| {
            client.get("/v1/tasks").body[0]["question"] == format!("Round {round}?")
        });
    }
    // Three faults in one edit: all are reported, and nothing changes.
    edit(&file, |text| {
        let text = replace(text, "question = \"Round 3?\"", "question = \"\"");
        replace(&text, "models = [\"siglip2\"]", "models = [\"siglip\"]")
    });
    wait_for_reload(&server, "rejected", 1.0);
    assert_eq!(server.client.get("/v1/tasks").body[0]["question"], "Round 3?");
    assert_eq!(server.client.metric("concord_config_faults", &[]), 3.0);
    let metrics = server.client.get("/metrics").body;
    assert!(!metrics.as_str().unwrap().contains("is missing or empty"), "free text is no label: {metrics}");
    server.client.wait_until("all are in the log", |_| server.log().matches("faulty").count() >= 3);
    let log = server.log();
    let is_structured =
        |line: &str| ["location", "ensemble.toml:", "fault"].iter().all(|field| line.contains(field));
    for fault in ["tasks.roadwork.question: is missing or empty", "siglip2"] {
        let line = log.lines().find(|line| line.contains(fault) && line.contains("faulty"));
        assert!(line.is_some_and(is_structured), "{fault} is not in {log}");
    }
    // Other changes in the folder, such as a log that grows, do not report the same faults again.
    fs::write(file.with_file_name("server.log"), "a line").unwrap();
    let log = server.wait_for_log("the faults of the configuration are those that were reported");
    assert_eq!(log.matches("tasks.roadwork.question: is missing or empty").count(), 1, "{log}");
    // The faults are mended.
    edit(&file, |text| {
        replace(&text.replace("\"siglip\"", "\"siglip2\""), "question = \"\"", "question = \"Mended?\"")
    });
    server
        .client
        .wait_until("it is mended", |client| client.get("/v1/tasks").body[0]["question"] == "Mended?");
    server.client.wait_until("no fault is left", |client| client.metric("concord_config_faults", &[]) == 0.0);
    assert_eq!(reloads(&server, "rejected"), 1.0);

    let outcomes = load.finish();
    assert!(outcomes.len() > 10, "only {}", outcomes.len());
    let failed: Vec<_> = outcomes.iter().filter(|outcome| !matches!(outcome, Ok((200, _)))).collect();
    assert!(failed.is_empty(), "{} of {}: {:?}", failed.len(), outcomes.len(), failed.first());
}

#[test]
fn a_change_that_needs_a_restart_is_logged_and_not_applied() {
    let (_folder, file) = edited_ensemble(|text| text);
    let server = Server::start(&file);
    edit(&file, |text| {
        let text = replace(text, "max_pixels = 64_000_000", "max_pixels = 1000");
        replace(
            &text,
            "[models.siglip2]",
            "[models.third]\narchitecture = \"siglip2\"\nsnapshot = \"x\"\n\n[models.siglip2]",
        )
    });
    wait_for_reload(&server, "applied", 1.0);
    for change in ["[server] has changed", "[models.third] is new"] {
        server.wait_for_log(change);
    }
    assert_eq!(server.client.classify("roadwork", &example("coffee.png")).status, 200);
    // A head that does not fit its task is found before the change applies.
    edit(&file, |text| {
        replace(
            text,
            "roadwork = \"head.roadwork.safetensors\"",
            "roadwork = \"head.traffic_sign.safetensors\"",
        )
    });
    wait_for_reload(&server, "rejected", 1.0);
    server.wait_for_log("gives 43 logits, but the task has 2 labels");
    assert_eq!(server.client.classify_fresh("roadwork", &example("coffee.png")).status, 200);
}

#[test]
fn the_endpoint_describes_itself() {
    let server = Server::start(&two_models());
    let client = &server.client;
    assert_eq!(
        (client.get("/healthz").status, client.get("/readyz").body["status"].as_str()),
        (200, Some("ready"))
    );
    let tasks = client.get("/v1/tasks").body;
    assert_eq!(tasks[0]["stages"][0]["models"][0]["model"], "dinov3");
    assert_eq!(tasks[1]["labels"].as_array().unwrap().len(), 43);
    let models = client.get("/v1/models").body;
    assert_eq!((&models[0]["model"], &models[0]["device"]), (&"dinov3".into(), &"cpu".into()));
    let api = client.get("/openapi.json").body;
    for path in ["/v1/tasks/{task}/classify", "/v1/tasks", "/v1/models", "/healthz", "/readyz", "/metrics"] {
        assert!(api["paths"][path].is_object(), "{path} is not described");
    }
    let verdict = client.classify("roadwork", &photograph(1)).body;
    let described = api["components"]["schemas"]["ClassifyResponse"]["properties"].as_object().unwrap();
    let fields: Vec<&String> = verdict.as_object().unwrap().keys().collect();
    assert!(fields.iter().all(|field| described.contains_key(*field)), "{fields:?} {described:?}");
    let problem = &api["components"]["schemas"]["Problem"]["properties"];
    assert!(
        ["type", "title", "status", "detail", "request_id"].iter().all(|field| problem[field].is_object()),
        "{problem}"
    );
}

#[test]
fn a_configured_api_key_is_required() {
    let (_folder, file) =
        edited_ensemble(|text| replace(&text, "[server]\n", "[server]\napi_keys_env = \"TEST_KEYS\"\n"));
    let server = Server::start_with(&file, &[("TEST_KEYS", "first, second")]);
    let image = example("coffee.png");
    let ask = |key: Option<&str>| {
        let request = server.client.post("roadwork").body(image.clone());
        server
            .client
            .send(key.map_or(request.try_clone().unwrap(), |key| request.header("authorization", key)))
    };
    for (key, status) in [
        (None, 401),
        (Some("Bearer third"), 401),
        (Some("Bearer firs"), 401),
        (Some("Basic first"), 401),
        (Some("Bearer first"), 200),
        (Some("bearer second"), 200),
    ] {
        let answer = ask(key);
        assert_eq!(answer.status, status, "{key:?}: {answer:?}");
        if status == 401 {
            assert_eq!(
                (answer.header("www-authenticate"), &answer.body["type"]),
                ("Bearer", &"unauthorized".into())
            );
        }
    }
    assert_eq!((server.client.get("/v1/models").status, server.client.get("/readyz").status), (401, 200));
    assert!(!server.log().contains("first"), "{}", server.log());
    let run = crate::harness::concord_with(
        &["serve", "--ensemble", file.to_str().unwrap(), "--listen", "127.0.0.1:0"],
        &[],
    );
    assert!(run.status == 2 && run.stderr.contains("TEST_KEYS holds no API key"), "{run:?}");
}

#[test]
fn tls_is_served_with_a_configured_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    fs::write(folder.path().join("cert.pem"), made.cert.pem()).unwrap();
    fs::write(folder.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let variables = [
        ("CONCORD__SERVER__TLS_CERTIFICATE", path("cert.pem")),
        ("CONCORD__SERVER__TLS_KEY", path("key.pem")),
    ];
    let variables: Vec<(&str, &str)> =
        variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let server = Server::start_with(&two_models(), &variables);
    let port = server.client.address.strip_prefix("https://127.0.0.1:").unwrap();
    let trusted = reqwest::Certificate::from_pem(made.cert.pem().as_bytes()).unwrap();
    let client = reqwest::blocking::Client::builder().tls_certs_only([trusted]).build().unwrap();
    let answer = client.get(format!("https://localhost:{port}/readyz")).send().unwrap();
    assert_eq!(answer.status(), 200);
    let run = crate::harness::concord_with(&["serve", "--listen", "127.0.0.1:0"], &variables[..1]);
    assert!(run.status == 2 && run.stderr.contains("server.tls_key: is missing"), "{run:?}");
}

#[test]
fn a_server_that_cannot_start_reports_the_reason() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let run = concord(&["serve", "--listen", &address]);
    assert!(run.status == 2 && run.stderr.contains(&address) && run.stderr.contains("in use"), "{run:?}");
    let (_folder, file) =
        edited_ensemble(|text| replace(&text, "\"../../models/nano/siglip2\"", "\"no/such\""));
    let run = concord(&["serve", "--listen", "127.0.0.1:0", "--ensemble", file.to_str().unwrap()]);
    assert!(run.status == 2 && run.stderr.contains("model siglip2: "), "{run:?}");
}
