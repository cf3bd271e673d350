//! The cloud model against a server that this project did not write: `transformers serve`, with a nano
//! snapshot.

use crate::cloud::{WITH_KEY, close, ensemble, hosted};
use crate::harness::server::{Server, photograph};
use crate::harness::transformers::Transformers;
use crate::harness::{replace, root};

const SNAPSHOT: &str = "models/nano/molmo2";
/// Patient options, since the machine may be busy with other tests.
const PATIENCE: &str = "timeout_ms = 9000\nmax_retries = 0";

#[test]
fn the_transformers_server_votes_by_typed_decisions_and_fails_by_chat() {
    let Some(transformers) = Transformers::start(SNAPSHOT) else { return };
    let start = |protocol: &str| {
        let options = format!("{PATIENCE}\nprotocol = \"{protocol}\"");
        let (folder, file) = ensemble(&transformers.base_url(), &options);
        let text = std::fs::read_to_string(&file).unwrap();
        let snapshot = root().join(SNAPSHOT);
        let text = replace(&text, "\"some/model\"", &format!("{:?}", snapshot.to_str().unwrap()));
        std::fs::write(&file, text).unwrap();
        (folder, Server::start_with(&file, &[WITH_KEY]))
    };

    let (_folder, typed) = start("systemone");
    let answer = typed.client.classify("roadwork", &photograph(1));
    let vote = hosted(&answer);
    assert_eq!(vote["failure"], serde_json::Value::Null, "{vote}");
    let probability = vote["probability"].as_f64().unwrap();
    assert!((0.5..=1.0).contains(&probability), "{vote}");
    assert_eq!(answer.body["reason"], "exhausted", "{answer:?}");
    assert!(close(&vote["weight"], 1.0 / 2.0), "{vote}");

    // Its chat completions have no log-probabilities, and so small a model generates no JSON: the vote fails,
    // and is not guessed.
    let (_folder, chat) = start("openai");
    let answer = chat.client.classify("roadwork", &photograph(1));
    let vote = hosted(&answer);
    assert_eq!(vote["failure"], "failed", "{vote}");
    assert!(vote["error"].as_str().unwrap().contains("not the JSON"), "{vote}");
    assert_eq!((&answer.body["reason"], &answer.body["complete"]), (&"incomplete".into(), &false.into()));
}
