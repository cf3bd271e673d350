//! Values in Redis that were not made for who reads them: each is a counted miss, never a wrong answer.

use std::sync::Arc;

use concord_policy::{Distribution, FusedVote, ModelOutput, Verdict};
use serde::{Deserialize, Serialize};

use crate::harness::redis::Redis;
use crate::harness::server::{Answer, Server, photograph};
use crate::harness::{concord_with, two_models};

/// The format, and the purpose of the key of the tags, of `actors/src/cache/value.rs` and `seal.rs`.
const FORMAT: u8 = 3;
const CONTEXT: &str = "concord 2026-12-01 seal of a cached value";
const TAG_BYTES: usize = 32;

/// A value as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Stored {
    Vote(ModelOutput),
    Verdict(Arc<Verdict>),
}

/// A change of a verdict.
type Change = fn(&mut Verdict);

impl Stored {
    /// Reads the value of a key, whatever its tag.
    fn read(redis: &Redis, key: &str) -> Self {
        postcard::from_bytes(&redis.value(key)[1 + TAG_BYTES..]).unwrap()
    }

    /// Writes it with the tag that it has under this key where there is no secret.
    fn write(&self, redis: &Redis, key: &str) {
        let payload = postcard::to_stdvec(self).unwrap();
        let digits = key.strip_prefix("concord:").unwrap();
        let digest = blake3::Hash::from_hex(digits).unwrap();
        let mut tag = blake3::Hasher::new_keyed(&blake3::derive_key(CONTEXT, b""));
        tag.update(digest.as_bytes()).update(&payload);
        redis.set_value(key, &[&[FORMAT], tag.finalize().as_bytes().as_slice(), &payload].concat());
    }
}

fn start(redis: &Redis, variables: &[(&str, &str)]) -> Server {
    let url = redis.url();
    let cache = [
        ("CONCORD__CACHE__BACKEND", "redis"),
        ("CONCORD__CACHE__URL", url.as_str()),
        // Patient, since the machine may be busy: a timeout is a miss as well.
        ("CONCORD__CACHE__TIMEOUT_MS", "10000"),
    ];
    Server::start_with(&two_models(), &[&cache, variables].concat())
}

fn errors(server: &Server, reason: &str) -> f64 {
    server.client.metric("concord_cache_errors_total", &[&format!("reason=\"{reason}\"")])
}

/// Classifies an image, waits until its verdict and both votes are stored, and returns the answer and the
/// keys of these values.
fn classify_and_store(server: &Server, redis: &Redis, image: &[u8]) -> (Answer, Vec<String>) {
    let before = redis.keys();
    let answer = server.client.classify("roadwork", image);
    assert_eq!(answer.label_and_cache(), ("road work", "miss"));
    let mut keys = Vec::new();
    server.client.wait_until("all is stored", |_| {
        keys = redis.keys();
        keys.retain(|key| !before.contains(key));
        keys.len() == 3
    });
    (answer, keys)
}

/// Returns a distribution that is certain of the first of so many labels.
fn certain(labels: usize) -> Distribution {
    let mut probabilities = vec![0.0; labels];
    probabilities[0] = 1.0;
    Distribution::new(probabilities).unwrap()
}

fn first_vote(verdict: &mut Verdict) -> &mut FusedVote {
    &mut verdict.votes[0]
}

#[test]
fn a_value_of_another_shape_is_a_counted_miss_and_the_answer_is_right() {
    let redis = Redis::start();
    let server = start(&redis, &[]);
    let verdicts: [(&str, Change); 6] = [
        ("three labels", |verdict| verdict.distribution = certain(3)),
        ("one label", |verdict| verdict.distribution = certain(1)),
        ("a vote on four labels", |verdict| first_vote(verdict).calibrated = Some(certain(4))),
        ("another model", |verdict| first_vote(verdict).vote.model = Arc::from("siglip2")),
        ("a stage that there is not", |verdict| verdict.stage = 7),
        ("skipped stages that there are not", |verdict| verdict.skipped = vec![usize::MAX]),
    ];
    for (number, (case, change)) in verdicts.into_iter().enumerate() {
        let (image, before) = (photograph(number), errors(&server, "mismatch"));
        let (first, keys) = classify_and_store(&server, &redis, &image);
        for key in keys {
            if let Stored::Verdict(mut verdict) = Stored::read(&redis, &key) {
                change(Arc::make_mut(&mut verdict));
                Stored::Verdict(verdict).write(&redis, &key);
            }
        }
        let again = server.client.classify("roadwork", &image);
        assert_eq!(again.label_and_cache(), ("road work", "votes"), "{case}");
        assert_eq!(again.body["probability"], first.body["probability"], "{case}");
        assert_eq!(errors(&server, "mismatch"), before + 1.0, "{case}");
    }
    for (number, logits) in [(10, 3), (11, 1), (12, 4)] {
        let (image, before) = (photograph(number), errors(&server, "mismatch"));
        let (first, keys) = classify_and_store(&server, &redis, &image);
        for key in keys {
            // For the verdict as well, which must not be found instead.
            Stored::Vote(vec![9.0; logits].into()).write(&redis, &key);
        }
        let again = server.client.classify("roadwork", &image);
        assert_eq!(again.label_and_cache(), ("road work", "miss"), "{logits} logits");
        assert_eq!(again.body["probability"], first.body["probability"], "{logits} logits");
        assert_eq!(errors(&server, "mismatch"), before + 3.0, "{logits} logits");
    }
    assert_eq!(errors(&server, "corrupt"), 0.0, "every tag was right");
}

#[test]
fn a_value_that_was_copied_to_another_key_is_a_counted_miss() {
    let redis = Redis::start();
    let server = start(&redis, &[]);
    let image = photograph(1);
    let (first, keys) = classify_and_store(&server, &redis, &image);
    assert_eq!(server.client.classify("traffic_sign", &image).status, 200);
    server.client.wait_until("it is stored", |_| redis.keys().len() > keys.len());
    let of_signs = redis.keys().into_iter().find(|key| !keys.contains(key)).unwrap();
    for key in keys {
        redis.set_value(&key, &redis.value(&of_signs));
    }
    let again = server.client.classify("roadwork", &image);
    assert_eq!(again.label_and_cache(), ("road work", "miss"));
    assert_eq!(again.body["probability"], first.body["probability"]);
    assert_eq!(errors(&server, "corrupt"), 3.0);
}

#[test]
fn values_count_only_where_the_secret_is_the_same() {
    let redis = Redis::start();
    let image = photograph(1);
    let secret = |secret| [("CONCORD__CACHE__SECRET_ENV", "TEST_SECRET"), ("TEST_SECRET", secret)];
    let first = start(&redis, &secret("one secret"));
    let (_, keys) = classify_and_store(&first, &redis, &image);
    let same = start(&redis, &secret("one secret"));
    assert_eq!(same.client.classify("roadwork", &image).label_and_cache(), ("road work", "verdict"));
    // Values without a secret, as anybody can write them.
    for key in keys {
        if let Stored::Verdict(mut verdict) = Stored::read(&redis, &key) {
            Arc::make_mut(&mut verdict).distribution = certain(2);
            Stored::Verdict(verdict).write(&redis, &key);
        }
    }
    assert_eq!(same.client.classify("roadwork", &image).label_and_cache(), ("road work", "votes"));
    assert_eq!(errors(&same, "corrupt"), 1.0);
    let other = start(&redis, &secret("another secret"));
    assert_eq!(other.client.classify("roadwork", &image).label_and_cache(), ("road work", "miss"));
    assert_eq!(errors(&other, "corrupt"), 3.0);
}

#[test]
fn a_secret_that_is_not_there_is_a_fault() {
    let variable = ("CONCORD__CACHE__SECRET_ENV", "TEST_SECRET");
    for variables in [&[variable][..], &[variable, ("TEST_SECRET", "")]] {
        let run = concord_with(&["validate", "--no-load"], variables);
        let fault = "cache.secret_env: the variable TEST_SECRET holds no secret";
        assert!(run.status == 1 && run.stderr.contains(fault), "{run:?}");
    }
    let run = concord_with(&["validate", "--no-load"], &[variable, ("TEST_SECRET", "a secret")]);
    assert_eq!(run.status, 0, "{run:?}");
}
