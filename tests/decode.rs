//! The option `decode = "fast"`: JPEGs are decoded no larger than a model needs, beside models that see every
//! pixel.

use serde_json::Value;

use crate::harness::server::Server;
use crate::harness::{concord_with, edited_ensemble, replace, root};

const DINOV3_FAST: (&str, &str) = ("CONCORD__MODELS__DINOV3__DECODE", "fast");
const SIGLIP2_FAST: (&str, &str) = ("CONCORD__MODELS__SIGLIP2__DECODE", "fast");
/// A JPEG of 640 × 427, which models of 64 × 64 decode at a scale of 2/8.
const PHOTOGRAPH: &str = "assets/rocket.jpg";

/// Returns an ensemble in which both models vote on every image.
fn both_stages() -> (tempfile::TempDir, String) {
    let edit =
        |text: String| replace(&text, "accept = { confidence = 0.999 }", "accept = { confidence = 1.0 }");
    let (folder, file) = edited_ensemble(edit);
    let file = file.to_str().unwrap().to_owned();
    (folder, file)
}

fn verdict(variables: &[(&str, &str)]) -> Value {
    let (_folder, file) = both_stages();
    let arguments = ["classify", "--json", "--task", "roadwork", "--ensemble", &file, PHOTOGRAPH];
    let run = concord_with(&arguments, variables);
    assert_eq!(run.status, 0, "{run:?}");
    run.json_lines().pop().unwrap()
}

fn p(verdict: &Value, model: &str) -> f64 {
    let votes = verdict["votes"].as_array().unwrap();
    let vote = votes.iter().find(|vote| vote["model"] == model).unwrap_or_else(|| panic!("{verdict}"));
    vote["probabilities"]["road work"].as_f64().unwrap_or_else(|| panic!("{vote}"))
}

#[test]
fn each_model_gets_the_image_as_its_own_decode_option_says() {
    let exact = verdict(&[]);
    let mixed = verdict(&[SIGLIP2_FAST]);
    let fast = verdict(&[DINOV3_FAST, SIGLIP2_FAST]);
    assert_eq!(p(&mixed, "dinov3"), p(&exact, "dinov3"), "dinov3 sees every pixel");
    assert_ne!(
        p(&fast, "dinov3"),
        p(&exact, "dinov3"),
        "dinov3 sees the image at a fourth of its width and height"
    );
    assert_eq!(p(&mixed, "siglip2"), p(&fast, "siglip2"), "independent of the scale of other models");
    for model in ["dinov3", "siglip2"] {
        let change = (p(&fast, model) - p(&exact, model)).abs();
        assert!(change < 0.05, "{model} changed by {change}");
    }
    assert_eq!(fast["label"], exact["label"]);
}

#[test]
fn an_image_is_decoded_once_for_each_scale() {
    let photograph = std::fs::read(root().join(PHOTOGRAPH)).unwrap();
    for (variables, decoded) in [
        (&[][..], 1.0),
        (&[DINOV3_FAST, SIGLIP2_FAST][..], 1.0),
        (&[SIGLIP2_FAST][..], 2.0),
        (&[DINOV3_FAST][..], 2.0),
    ] {
        let (_folder, file) = both_stages();
        let server = Server::start_with(file.as_ref(), variables);
        let answer = server.client.classify("roadwork", &photograph);
        assert_eq!(answer.status, 200, "{answer:?}");
        let decodes = server.client.metric("concord_phase_seconds_count", &["phase=\"decode\""]);
        assert_eq!(decodes, decoded, "{variables:?}");
    }
}

#[test]
fn a_broken_image_is_the_same_problem_with_either_decode_option() {
    let (_folder, file) = both_stages();
    let server = Server::start_with(file.as_ref(), &[DINOV3_FAST, SIGLIP2_FAST]);
    let photograph = std::fs::read(root().join(PHOTOGRAPH)).unwrap();
    let kind = |image: &[u8]| {
        let answer = server.client.classify("roadwork", image);
        (answer.status, answer.body["type"].as_str().unwrap_or_default().to_owned())
    };
    for (image, status, name) in
        [(&b"hello"[..], 400, "not-an-image"), (&photograph[..300], 400, "broken-image")]
    {
        let (found, of) = kind(image);
        assert!(found == status && of.contains(name), "{name}: {found} {of}");
    }
    // The server still answers.
    assert_eq!(server.client.classify("roadwork", &photograph).status, 200);
}
