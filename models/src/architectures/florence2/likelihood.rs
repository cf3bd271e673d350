//! Votes by likelihood: the probability of each label's prompts as captions of the image.

use concord_policy::ModelOutput;
use tch::{Kind, Tensor};

use super::bart::Memory;
use super::network::{END, Network, PAD};
use super::prompt::{self, CAPTION};
use crate::ModelError;
use crate::runtime::cuda_graphs::CudaGraphCache;
use crate::task::TaskSpec;

/// The name of these votes' graphs among those of the model; tasks whose prompts have the same shapes share
/// them.
const GRAPHS: &str = "captions";
/// The most logits of one pass of the decoder: 256 MB in fp32. More captions are scored in several passes.
const LOGITS_MAX: i64 = 1 << 26;

/// The prompts of a task, in the form that the decoder is given.
#[derive(Debug)]
pub(super) struct Captions {
    /// The ids of the question to the encoder, [1, count].
    question: Tensor,
    /// The start token, `<s>` and the tokens of each prompt, padded to one length: [prompts, 2 + longest].
    inputs: Tensor,
    /// The token after each position but the first, up to `</s>`: [prompts, 1 + longest].
    targets: Tensor,
    /// The weight of each target in its prompt's mean, 0 after `</s>`: [prompts, 1 + longest], fp32.
    shares: Tensor,
    /// The number of prompts of each label.
    prompts: Vec<usize>,
}

impl Captions {
    pub(super) fn new(network: &Network, task: &TaskSpec) -> Result<Self, ModelError> {
        let mut prefixes = Vec::new();
        for (label, prompts) in &task.labels {
            if prompts.is_empty() {
                let message = format!("label {label} has no prompt");
                return Err(ModelError::Task { task: task.task.clone(), message });
            }
            for prompt in prompts {
                prefixes.push(network.decoder_prefix(prompt)?);
            }
        }
        let length = prefixes.iter().map(Vec::len).max().unwrap_or(0);
        let (mut inputs, mut targets, mut shares) = (Vec::new(), Vec::new(), Vec::new());
        for mut prefix in prefixes {
            let count = prefix.len() - 1;
            shares.extend((1..length).map(|index| if index <= count { 1.0 / count as f32 } else { 0.0 }));
            targets.extend(prefix[2..].iter().copied().chain([END]));
            targets.resize(targets.len() + length - prefix.len(), PAD);
            prefix.resize(length, PAD);
            inputs.extend(prefix);
        }
        let rows = |x: Tensor, length: usize| -> Result<Tensor, tch::TchError> {
            x.f_view([-1, length as i64])?.f_to_device(network.bart.device())
        };
        let (_, question) = prompt::parse(CAPTION)?;
        Ok(Self {
            question: network.ids(&[&network.prompt(&question)?])?,
            inputs: rows(Tensor::f_from_slice(&inputs)?, length)?,
            targets: rows(Tensor::f_from_slice(&targets)?, length - 1)?,
            shares: rows(Tensor::f_from_slice(&shares)?, length - 1)?,
            prompts: task.labels.iter().map(|(_, prompts)| prompts.len()).collect(),
        })
    }

    /// Scores images by the task's labels. A label's logit is the mean over its prompts of their mean
    /// log-probability per token.
    pub(super) fn scores(
        &self,
        network: &Network,
        graphs: &CudaGraphCache,
        features: &Tensor,
    ) -> Result<Vec<ModelOutput>, ModelError> {
        let shared = [&self.question, &self.inputs, &self.targets, &self.shares];
        let forward = |all: &[Tensor]| {
            let [features, question, inputs, targets, shares] = [0, 1, 2, 3, 4].map(|index| &all[index]);
            vec![by_prompt(network, features, question, [inputs, targets, shares])]
        };
        let outputs = graphs.run_as(GRAPHS, &[features], &shared, forward)?;
        let by_prompt = outputs.first().ok_or(ModelError::NotPrepared)?;
        let by_prompt = Vec::<Vec<f32>>::try_from(by_prompt.f_to_device(tch::Device::Cpu)?)?;
        let scores = by_prompt.into_iter().map(|row| {
            let mut rest = row.as_slice();
            let mut logits = Vec::new();
            for &count in &self.prompts {
                let (of_label, others) = rest.split_at(count);
                logits.push(of_label.iter().sum::<f32>() / count as f32);
                rest = others;
            }
            ModelOutput::from(logits)
        });
        Ok(scores.collect())
    }
}

/// Returns the mean log-probabilities of the prompts, [images, prompts], fp32, for image features
/// [images, image tokens, width], and the question, inputs, targets and shares of [`Captions`].
fn by_prompt(network: &Network, features: &Tensor, question: &Tensor, captions: [&Tensor; 3]) -> Tensor {
    let [inputs, targets, _] = captions;
    let (images, prompts) = (features.size()[0], inputs.size()[0]);
    let source = network.source(features, question);
    let logits_of_prompt = targets.size()[1] * network.bart.vocabulary();
    let prompts_at_once = (LOGITS_MAX / logits_of_prompt).clamp(1, prompts);
    let images_at_once = (LOGITS_MAX / (logits_of_prompt * prompts_at_once)).clamp(1, images);
    let mut rows = Vec::new();
    for encoded in source.state.split(images_at_once, 0) {
        let memory = network.bart.memory(&encoded, source.bias.as_ref());
        let pass = |begin| {
            let some = |x: &Tensor| {
                let count = prompts_at_once.min(prompts - begin);
                x.narrow(0, begin, count).repeat([encoded.size()[0], 1])
            };
            mean_log_probabilities(network, &memory, captions.map(some)).view([encoded.size()[0], -1])
        };
        let parts: Vec<Tensor> = (0..)
            .map(|index| index * prompts_at_once)
            .take_while(|begin| *begin < prompts)
            .map(pass)
            .collect();
        rows.push(Tensor::cat(&parts, 1));
    }
    Tensor::cat(&rows, 0)
}

/// Returns the mean log-probability of each row, \[rows\], for inputs, targets and shares of [`Captions`],
/// each [rows, length].
fn mean_log_probabilities(
    network: &Network,
    memory: &Memory,
    [inputs, targets, shares]: [Tensor; 3],
) -> Tensor {
    let states = network.bart.decode(&inputs, memory, &mut network.bart.cache());
    let following = states[states.len() - 1].narrow(1, 1, targets.size()[1]);
    let logits = network.bart.logits(&following).to_kind(Kind::Float);
    let chosen = logits.gather(-1, &targets.unsqueeze(-1), false).squeeze_dim(-1);
    let log_probabilities = chosen - logits.logsumexp([-1].as_slice(), false);
    (log_probabilities * shares).sum_dim_intlist([1].as_slice(), false, Kind::Float)
}
