//! The keys of the cache: everything that a vote, a feature or a verdict depends on, apart from the image.

use concord_models::{FeatureKind, ModelOptions};
use concord_policy::{AcceptRule, Calibration, Learned, Policy, Probability};

use crate::cloud::CloudSection;
use crate::digest::{Digest, Fields};

/// Returns the digest of everything that a vote's logits depend on, apart from the image. Calibration and
/// weights are not in it: votes are cached uncalibrated, so a changed policy finds them again.
pub(crate) fn vote_digest(
    options: &ModelOptions,
    snapshot: &[u8; 32],
    head: Option<&[u8; 32]>,
    policy: &Policy,
) -> Digest {
    let mut fields = Fields::new("vote");
    fields.bytes(snapshot).text(&options.architecture).text(&options.dtype);
    fields.text(&options.decode).bytes(head.map_or(&[][..], |head| head)).bytes(&options.own.key_material());
    fields.text(policy.question());
    for (label, prompts) in policy.labels().iter().zip(policy.prompts()) {
        fields.text(label).number(prompts.len() as u64);
        for prompt in prompts {
            fields.text(prompt);
        }
    }
    for answer in policy.answers() {
        fields.text(answer);
    }
    fields.finish()
}

/// Returns the digest of everything that a backbone's features of this kind depend on, apart from the image.
pub fn feature_digest(options: &ModelOptions, snapshot: &[u8; 32], kind: FeatureKind) -> Digest {
    let mut fields = Fields::new("features");
    fields.bytes(snapshot).text(&options.architecture).text(&options.dtype).text(&options.decode);
    fields.text(kind.name()).finish()
}

/// Returns the digest of everything that a cloud model's logits depend on, apart from the image.
pub(crate) fn cloud_digest(section: &CloudSection, policy: &Policy) -> Digest {
    // The number is that of the way answers are read: votes of another one are not found again.
    let mut fields = Fields::new("cloud vote 2");
    fields.text(&section.base_url).text(&section.model).text(&section.protocol);
    fields.number(u64::from(section.max_image_side)).text(policy.question());
    for (label, answer) in policy.labels().iter().zip(policy.answers()) {
        fields.text(label).text(answer);
    }
    fields.finish()
}

/// Returns the digest of everything that a verdict depends on, apart from the image: its votes, in the order
/// of the policy's members, and all that the policy makes of them.
pub(crate) fn verdict_digest(task: &str, policy: &Policy, votes: &[Digest]) -> Digest {
    let mut fields = Fields::new("verdict");
    fields.text(task).text(policy.fusion().name());
    if let Some(learned) = policy.learned() {
        add_learned(&mut fields, learned);
    }
    let mut votes = votes.iter();
    for stage in policy.stages() {
        let accept = stage.accept();
        fields.number(stage.members().len() as u64);
        fields.real(accept.map_or(f64::INFINITY, |rule| rule.confidence().get()));
        fields.real(accept.and_then(AcceptRule::correctness).map_or(f64::INFINITY, Probability::get));
        fields.number(u64::from(accept.is_some_and(AcceptRule::needs_agreement)));
        fields.real(stage.min_weight().map_or(f64::INFINITY, Probability::get));
        fields.number(stage.burst_queue_depth().map_or(u64::MAX, |depth| depth as u64));
        for member in stage.members() {
            fields.text(member.model()).number(u64::from(member.is_required()));
            fields.real(member.weight().get());
            add_calibration(&mut fields, member.calibration());
            fields.bytes(votes.next().map_or(&[][..], |vote| vote.as_bytes()));
        }
    }
    fields.finish()
}

/// Adds the calibration of a model's logits.
fn add_calibration(fields: &mut Fields, calibration: &Calibration) {
    match calibration {
        Calibration::Temperature(temperature) => {
            fields.text("temperature").real(temperature.get());
        }
        Calibration::Vector(scaling) => {
            fields.text("scaling").number(scaling.scale().len() as u64);
            for number in scaling.scale().iter().chain(scaling.bias()) {
                fields.real(*number);
            }
        }
    }
}

/// Adds every number of every network, so that a file that was fitted again is noticed.
fn add_learned(fields: &mut Fields, learned: &Learned) {
    fields.text("learned").text(learned.backbone());
    for (part, models, network) in learned.networks() {
        fields.text(part.name()).number(models.len() as u64).number(network.layers().len() as u64);
        for model in models {
            fields.text(model);
        }
        let (mean, scale) = network.standardisation();
        fields.reals(mean).reals(scale);
        for layer in network.layers() {
            fields.reals(&layer.weight).reals(&layer.bias);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use std::sync::Arc;

    use concord_models::{OptionSpec, OptionTable};
    use concord_policy::{Dense, Network};

    use super::*;
    use concord_policy::TaskSection;

    fn policy(extra: serde_json::Value) -> Policy {
        let mut section = serde_json::json!({
            "question": "?", "labels": ["no", "yes"], "learned": "f",
            "stages": [{ "models": ["a"], "accept": { "confidence": 0.9 } }, { "models": ["b"] }],
        });
        if let serde_json::Value::Object(extra) = extra {
            for (pointer, value) in extra {
                let (parent, key) = pointer.rsplit_once('/').unwrap();
                section.pointer_mut(parent).unwrap()[key] = value;
            }
        }
        let section: TaskSection = serde_json::from_value(section).unwrap();
        Policy::from_section(&section, &["a", "b"].map(str::to_owned).into()).unwrap()
    }

    #[test]
    fn a_verdict_by_other_networks_calibration_or_thresholds_has_another_key() {
        let learned = |weight: f32, models: &[&str]| {
            let layer = Dense { weight: vec![weight; models.len()], bias: vec![0.0; models.len()] };
            let network = Network::new(vec![0.0], vec![1.0], vec![layer]).unwrap();
            let models: Vec<Arc<str>> = models.iter().map(|model| Arc::from(*model)).collect();
            Arc::new(Learned::new(Arc::from("a")).with_weights(models, network))
        };
        let plain = || policy(serde_json::json!({}));
        let policies = [
            plain(),
            policy(serde_json::json!({ "/fusion": { "method": "learned" } })),
            policy(serde_json::json!({ "/stages/0/accept/correctness": 0.5 })),
            policy(serde_json::json!({ "/stages/0/accept/correctness": 0.75 })),
            policy(serde_json::json!({ "/stages/1/min_weight": 0.5 })),
            policy(serde_json::json!({ "/calibration": { "a": 2.0 } })),
            policy(serde_json::json!({ "/scaling": { "a": { "scale": [1, 1], "bias": [0, 1] } } })),
            policy(serde_json::json!({ "/scaling": { "a": { "scale": [1, 1], "bias": [1, 0] } } })),
            plain().with_learned(learned(1.0, &["a", "b"])),
            plain().with_learned(learned(2.0, &["a", "b"])),
            plain().with_learned(learned(1.0, &["b", "a"])),
        ];
        let key = |policy: &Policy| verdict_digest("task", policy, &[]);
        let keys: BTreeSet<Digest> = policies.iter().map(key).collect();
        assert_eq!(keys.len(), policies.len());
        assert_eq!(key(&policies[8]), key(&plain().with_learned(learned(1.0, &["a", "b"]))));
    }

    #[test]
    fn a_vote_computed_with_other_options_has_another_key() {
        let section: TaskSection = serde_json::from_value(serde_json::json!({
            "question": "?", "labels": ["no", "yes"], "stages": [{ "models": ["a"] }],
        }))
        .unwrap();
        let policy = Policy::from_section(&section, &BTreeSet::from(["a".to_owned()])).unwrap();
        let key = |decode: &str| {
            let options = ModelOptions { decode: decode.to_owned(), ..ModelOptions::default() };
            vote_digest(&options, &[0; 32], None, &policy)
        };
        assert_ne!(key("exact"), key("fast"));
        // Any option that an architecture takes is part of the key.
        let specs = [OptionSpec::whole("passes", [0, 99], 0, "")];
        let with_passes = |passes: u64| {
            let given = serde_json::json!({ "passes": passes });
            let (own, _) = OptionTable::read(&specs, given.as_object().unwrap());
            vote_digest(&ModelOptions { own, ..ModelOptions::default() }, &[0; 32], None, &policy)
        };
        assert_ne!(with_passes(0), with_passes(20));
        assert_eq!(with_passes(20), with_passes(20));
        assert_eq!(key("exact"), vote_digest(&ModelOptions::default(), &[0; 32], None, &policy));
    }
}
