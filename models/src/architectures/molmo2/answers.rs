//! The probabilities, after a prompt, of the answers that stand for a task's labels.

use std::collections::BTreeSet;

use tch::{Device, Kind, Tensor};

use super::prompt::Prompter;
use super::text::TextModel;
use crate::ModelError;
use crate::nn::kv_cache::GrowingKvCache;

/// The answers of one task, as tokens.
#[derive(Debug)]
pub(super) enum Answers {
    /// Answers of one token each: for each label, this token and those of its other spellings, \[variants\].
    Tokens(Vec<Tensor>),
    /// Answers of which some are longer, or share a token with another in some spelling.
    Texts(Box<Texts>),
}

/// Answers of several tokens. The tokens of all are laid out one after the other, so that one pass over one
/// copy of the prompt's keys and values is enough for all labels.
#[derive(Debug)]
pub(super) struct Texts {
    /// The first token of each answer, \[labels\].
    first: Tensor,
    /// The number of tokens of each answer, \[labels\], fp32.
    lengths: Tensor,
    /// The tokens that the model reads, all but the last of each answer, [1, tokens].
    read: Tensor,
    /// The token that follows each of these, \[tokens\].
    follows: Tensor,
    /// The label that each of these belongs to, \[tokens\].
    label: Tensor,
    /// The number of the answer's tokens before each of these, \[tokens\].
    before: Tensor,
    /// The attention mask among these tokens, [tokens, tokens]: each may attend to itself and the earlier
    /// ones of the same answer.
    allowed: Tensor,
}

impl Answers {
    /// Tokenizes answers, which are in the order of the labels. `end` is the token that ends a longer answer:
    /// without it, an answer that another one begins with could only be the more probable one.
    pub(super) fn new(
        prompter: &Prompter,
        answers: &[String],
        end: Option<i64>,
        vocabulary: i64,
        device: Device,
    ) -> Result<Self, ModelError> {
        let mut texts: Vec<Vec<i64>> =
            answers.iter().map(|answer| prompter.encode(answer)).collect::<Result<_, _>>()?;
        for (answer, tokens) in answers.iter().zip(&texts) {
            if tokens.is_empty() || tokens.iter().any(|&token| token >= vocabulary) {
                return Err(ModelError::Unsupported(format!(
                    "{answer:?} is no answer that could be written"
                )));
            }
        }
        let variants = answers.iter().map(|answer| single_tokens(prompter, answer, vocabulary));
        let variants: Vec<BTreeSet<i64>> = variants.collect::<Result<_, _>>()?;
        let all: BTreeSet<i64> = variants.iter().flatten().copied().collect();
        let distinct = all.len() == variants.iter().map(BTreeSet::len).sum::<usize>();
        if distinct && texts.iter().all(|tokens| tokens.len() == 1) {
            let on_device = |tokens: BTreeSet<i64>| integers(&Vec::from_iter(tokens), device);
            return Ok(Self::Tokens(variants.into_iter().map(on_device).collect()));
        }
        for tokens in &mut texts {
            tokens.extend(end);
        }
        Ok(Self::Texts(Box::new(Texts::new(&texts, device))))
    }

    /// Returns whether [`Self::logits`] reads the keys and values of the prompt.
    pub(super) fn reads_cache(&self) -> bool {
        matches!(self, Self::Texts(texts) if texts.read.numel() > 0)
    }

    /// Returns one logit for each label, [rows, labels], fp32: the log-probability that the next token is the
    /// answer in any of its spellings or, for longer answers, the mean log-probability of their tokens and
    /// the end. `next` are the logits of the token after the prompt, [rows, vocabulary], fp32.
    pub(super) fn logits(&self, model: &TextModel, next: &Tensor, cache: &mut GrowingKvCache) -> Tensor {
        let next = next.log_softmax(-1, Kind::Float);
        match self {
            Self::Tokens(labels) => {
                let any = |tokens: &Tensor| next.index_select(1, tokens).logsumexp([-1].as_slice(), false);
                Tensor::stack(&labels.iter().map(any).collect::<Vec<_>>(), 1)
            }
            Self::Texts(texts) => texts.logits(model, &next, cache),
        }
    }
}

/// Returns the spellings of an answer that are a single token: as given, in lower case, in upper case and
/// capitalised, each also after a space.
fn single_tokens(prompter: &Prompter, answer: &str, vocabulary: i64) -> Result<BTreeSet<i64>, ModelError> {
    let lower = answer.to_lowercase();
    let mut rest = lower.chars();
    let capitalised: String = rest.next().into_iter().flat_map(char::to_uppercase).chain(rest).collect();
    let mut tokens = BTreeSet::new();
    for text in [answer.to_owned(), answer.to_uppercase(), lower.clone(), capitalised] {
        for text in [format!(" {text}"), text] {
            if let [token] = prompter.encode(&text)?[..] {
                tokens.extend((token < vocabulary).then_some(token));
            }
        }
    }
    Ok(tokens)
}

fn integers(values: &[i64], device: Device) -> Tensor {
    Tensor::from_slice(values).to_device(device)
}

impl Texts {
    fn new(texts: &[Vec<i64>], device: Device) -> Self {
        let (mut read, mut follows, mut label, mut before) = (vec![], vec![], vec![], vec![]);
        for (index, tokens) in (0..).zip(texts) {
            for (count, pair) in (0..).zip(tokens.windows(2)) {
                read.push(pair[0]);
                follows.push(pair[1]);
                label.push(index);
                before.push(count);
            }
        }
        let (label, before) = (integers(&label, device), integers(&before, device));
        let pairs = |of: &Tensor| (of.unsqueeze(1), of.unsqueeze(0));
        let ((label_of, label_at), (count_of, count_at)) = (pairs(&label), pairs(&before));
        let allowed = label_of.eq_tensor(&label_at).logical_and(&count_at.le_tensor(&count_of));
        let first: Vec<i64> = texts.iter().filter_map(|tokens| tokens.first().copied()).collect();
        let lengths: Vec<f32> = texts.iter().map(|tokens| tokens.len() as f32).collect();
        Self {
            first: integers(&first, device),
            lengths: Tensor::from_slice(&lengths).to_device(device),
            read: integers(&read, device).unsqueeze(0),
            follows: integers(&follows, device),
            label,
            before,
            allowed,
        }
    }

    /// Returns the mean log-probability of each answer's tokens, [rows, labels]; `next` are the
    /// log-probabilities of the token after the prompt, [rows, vocabulary].
    fn logits(&self, model: &TextModel, next: &Tensor, cache: &mut GrowingKvCache) -> Tensor {
        let sums = next.index_select(1, &self.first);
        if self.read.numel() == 0 {
            return sums / &self.lengths;
        }
        let (rows, prompt) = (next.size()[0], cache.positions());
        let past = Tensor::ones([self.before.size()[0], prompt], (Kind::Bool, self.allowed.device()));
        let bias = model.bias(&Tensor::cat(&[&past, &self.allowed], 1));
        let embeddings = model.embed(&self.read).repeat([rows, 1, 1]);
        let positions = &self.before + prompt;
        let state = model.forward(embeddings, &positions, Some(&bias), Some(cache), None, &mut |_| {});
        let outputs = model.output(&state);
        // The head runs row by row: over a vocabulary of 150,000, the logits of all rows would take
        // gigabytes.
        let each = (0..rows).map(|row| {
            let logits = model.logits(&outputs.select(0, row)).to_kind(Kind::Float);
            logits.log_softmax(-1, Kind::Float).gather(1, &self.follows.unsqueeze(1), false).squeeze_dim(1)
        });
        let rest = Tensor::stack(&each.collect::<Vec<_>>(), 0);
        sums.index_add(1, &self.label, &rest) / &self.lengths
    }
}
