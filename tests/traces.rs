//! Traces: one trace passes through all actors, each a service of its own.

use std::collections::BTreeSet;

use crate::harness::otlp::{ReceivedSpan, Receiver};
use crate::harness::server::{Server, photograph};
use crate::harness::{edited_ensemble, replace};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Starts a server that traces this share of the requests, and in which both models vote on every image at
/// once.
fn traced(receiver: &Receiver, ratio: &str) -> Server {
    let (_folder, file) = edited_ensemble(|text| {
        let one_stage = "models = [\"dinov3\"]\naccept = { confidence = 0.999 }          # stop here when the most probable label has at least this probability\n\n[[tasks.roadwork.stages]]\nmodels = [\"siglip2\"]";
        replace(&text, one_stage, "models = [\"dinov3\", \"siglip2\"]")
    });
    let endpoint = receiver.address.clone();
    Server::start_with(
        &file,
        &[
            ("CONCORD__TELEMETRY__OTLP_ENDPOINT", &endpoint),
            ("CONCORD__TELEMETRY__SAMPLE_RATIO", ratio),
            ("CONCORD__TELEMETRY__LOG_FORMAT", "json"),
            ("OTEL_BSP_SCHEDULE_DELAY", "200"),
            ("RUST_LOG", "debug"),
        ],
    )
}

fn of_trace<'a>(spans: &'a [ReceivedSpan], trace_id: &str) -> Vec<&'a ReceivedSpan> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    spans.iter().filter(|received| hex(&received.span.trace_id) == trace_id).collect()
}

fn named<'a>(spans: &[&'a ReceivedSpan], name: &str) -> Vec<&'a ReceivedSpan> {
    spans.iter().copied().filter(|received| received.span.name == name).collect()
}

#[test]
fn one_trace_passes_through_all_actors_each_its_own_service() {
    let receiver = Receiver::start();
    let server = traced(&receiver, "1.0");
    let request = server.client.post("roadwork").header("traceparent", PARENT).body(photograph(1));
    let answer = server.client.send(request);
    assert_eq!(answer.status, 200, "{answer:?}");
    let trace_id = "0af7651916cd43dd8448eb211c80319c";
    assert_eq!(answer.body["trace_id"], trace_id, "the caller's trace is continued");
    let expected = [
        "POST /v1/tasks/{task}/classify",
        "route",
        "cache.get",
        "decode",
        "stage 1",
        "vote",
        "fuse",
        "cache.put",
    ];
    let spans = receiver.wait_for("whole trace", |spans| {
        let spans = of_trace(spans, trace_id);
        expected.iter().all(|name| !named(&spans, name).is_empty())
            && named(&spans, "vote").len() == 2
            && receiver.spans().iter().filter(|received| received.span.name == "batch").count() == 2
    });
    let trace = of_trace(&spans, trace_id);
    let services: BTreeSet<&str> = trace.iter().map(|received| received.service.as_str()).collect();
    let all = [
        "concord-cache",
        "concord-endpoint",
        "concord-model-dinov3",
        "concord-model-siglip2",
        "concord-router",
    ];
    assert_eq!(services, BTreeSet::from(all));

    let one = |name: &str| named(&trace, name)[0];
    let parent_of = |received: &ReceivedSpan| {
        let parent = trace.iter().find(|other| other.span.span_id == received.span.parent_span_id);
        parent.map_or("none", |parent| parent.span.name.as_str())
    };
    assert_eq!(one(expected[0]).span.parent_span_id, [0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]);
    for (child, parent) in [
        ("route", expected[0]),
        ("cache.get", "route"),
        ("decode", "route"),
        ("stage 1", "route"),
        ("vote", "stage 1"),
        ("fuse", "route"),
        ("cache.put", "route"),
    ] {
        assert_eq!(parent_of(one(child)), parent, "the parent of {child}");
    }
    for vote in named(&trace, "vote") {
        let model = vote.attribute("model").unwrap();
        assert_eq!(vote.service, format!("concord-model-{model}"));
        for attribute in ["batch_size", "queue_ms", "gpu_ms", "p", "weight", "label", "replica", "device"] {
            assert!(
                vote.attribute(attribute).is_some(),
                "{model} has no {attribute}: {:?}",
                vote.span.attributes
            );
        }
        assert!(vote.attribute("concord.service").is_none());
        // A batch is a trace of its own, linked to its votes.
        let batch =
            spans.iter().find(|received| received.span.name == "batch" && received.service == vote.service);
        let batch = &batch.unwrap().span;
        assert_ne!(batch.trace_id, vote.span.trace_id);
        assert!(
            batch
                .links
                .iter()
                .any(|link| link.span_id == vote.span.span_id && link.trace_id == vote.span.trace_id)
        );
    }
    assert_eq!(one("fuse").attribute("reason").as_deref(), Some("accepted"));
    assert_eq!(one("route").attribute("cache").as_deref(), Some("miss"));
    assert_eq!(one(expected[0]).attribute("request_id").as_deref(), answer.body["request_id"].as_str());

    // The log names the same request.
    let id = answer.body["request_id"].as_str().unwrap();
    server.client.wait_until("the request is in the log", |_| server.log().contains(id));
    let log = server.log();
    let line = log.lines().find(|line| line.contains(id) && line.contains("answered")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(
        (&line["span"]["request_id"], &line["span"]["trace_id"]),
        (&id.into(), &trace_id.into()),
        "{line}"
    );
}

#[test]
fn a_batch_is_linked_to_every_request_in_it() {
    let receiver = Receiver::start();
    let server = traced(&receiver, "1.0");
    let clients: Vec<_> = (0..24)
        .map(|number| {
            let client = server.client.clone();
            std::thread::spawn(move || client.classify("roadwork", &photograph(number)).status)
        })
        .collect();
    assert!(clients.into_iter().all(|client| client.join().unwrap() == 200));
    let spans = receiver.wait_for("all votes", |spans| {
        let votes = spans.iter().filter(|received| received.span.name == "vote").count();
        let linked: usize = batches(spans).map(|batch| batch.span.links.len()).sum();
        votes == 48 && linked == 48
    });
    let votes: BTreeSet<Vec<u8>> = spans
        .iter()
        .filter(|received| received.span.name == "vote")
        .map(|vote| vote.span.span_id.clone())
        .collect();
    let linked: BTreeSet<Vec<u8>> =
        batches(&spans).flat_map(|batch| batch.span.links.iter().map(|link| link.span_id.clone())).collect();
    assert_eq!(votes, linked, "every vote is in one batch");
    for batch in batches(&spans) {
        assert_eq!(batch.attribute("batch_size"), Some(batch.span.links.len().to_string()));
    }
}

fn batches(spans: &[ReceivedSpan]) -> impl Iterator<Item = &ReceivedSpan> {
    spans.iter().filter(|received| received.span.name == "batch")
}

#[test]
fn a_callers_sampling_decision_is_followed_and_other_requests_are_sampled_by_the_ratio() {
    let receiver = Receiver::start();
    let server = traced(&receiver, "0.0001");
    let ask = |traceparent: Option<&str>, number: usize| {
        let request = server.client.post("roadwork").body(photograph(number));
        let request =
            traceparent.map_or(request.try_clone().unwrap(), |parent| request.header("traceparent", parent));
        server.client.send(request)
    };
    for number in 0..5 {
        let answer = ask(None, number);
        assert!(answer.header("traceparent").ends_with("-00"), "{answer:?}");
    }
    let unsampled = ask(Some(&PARENT.replace("-01", "-00")), 5);
    assert_eq!(unsampled.body["trace_id"], "0af7651916cd43dd8448eb211c80319c");
    let sampled = ask(Some(&PARENT.replace("0af", "1af")), 6);
    assert!(sampled.header("traceparent").ends_with("-01"), "{sampled:?}");
    let spans = receiver
        .wait_for("sampled trace", |spans| spans.iter().any(|received| received.span.name == "route"));
    assert!(spans.iter().all(|received| received.span.name == "batch" || received.span.trace_id[0] == 0x1a));
}

#[test]
fn no_request_fails_without_a_trace_receiver() {
    let (_folder, file) = edited_ensemble(|text| text);
    let nowhere = format!("http://127.0.0.1:{}", crate::harness::redis::free_port());
    let mut server = Server::start_with(
        &file,
        &[("CONCORD__TELEMETRY__OTLP_ENDPOINT", &nowhere), ("CONCORD__TELEMETRY__SAMPLE_RATIO", "1")],
    );
    assert!((0..5).all(|number| server.client.classify("roadwork", &photograph(number)).status == 200));
    server.signal("TERM");
    assert_eq!(server.wait(), 0);
}
