//! Tokenizers that know a few words, and have the special tokens at the ids of the published ones.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{ANSWERS, LABELS, QUESTION};

/// The texts of the prompts that the models write themselves, so that prompts are as long as with the
/// published tokenizers.
const OTHER_TEXTS: [&str; 3] =
    ["What does the image describe ?", "Answer with one of : , .", "user assistant <s> </s>"];
/// The token of every other word.
const UNKNOWN: &str = "<unk>";

/// Returns a `tokenizer.json` in which each word is a token; those that are not special have ids from
/// `first_word` on.
pub(super) fn tokenizer(special: &BTreeMap<String, u32>, first_word: u32) -> Value {
    let mut vocabulary: BTreeMap<String, u32> = special.clone();
    for (id, word) in (first_word..).zip(words()) {
        vocabulary.entry(word).or_insert(id);
    }
    let mut by_id: Vec<(&String, &u32)> = special.iter().collect();
    by_id.sort_by_key(|(_, id)| **id);
    let added: Vec<Value> = by_id
        .into_iter()
        .map(|(content, id)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": UNKNOWN},
    })
}

/// Collects special tokens with their ids; the token of unknown words must be among them.
pub(super) fn special<'a>(tokens: impl IntoIterator<Item = (&'a str, u32)>) -> BTreeMap<String, u32> {
    tokens.into_iter().map(|(token, id)| (token.to_owned(), id)).collect()
}

/// Returns each word once, in the order of their first appearance, and the answers in upper, lower and title
/// case.
fn words() -> Vec<String> {
    let question = QUESTION.replace('?', " ?");
    let labels = LABELS.iter().flat_map(|(label, prompt)| [*label, *prompt]);
    let mut words = Vec::<String>::new();
    let mut add = |word: String| {
        if !words.contains(&word) {
            words.push(word);
        }
    };
    for text in labels.chain(OTHER_TEXTS).chain([question.as_str()]) {
        text.split_whitespace().for_each(|word| add(word.to_owned()));
    }
    for answer in ANSWERS {
        let (first, rest) = answer.split_at(1);
        let capitalised = format!("{first}{}", rest.to_lowercase());
        [answer.to_owned(), answer.to_lowercase(), capitalised].into_iter().for_each(&mut add);
    }
    words
}
