//! Votes by detection: each label's phrases are searched for in the image, and located.

use std::collections::BTreeMap;

use concord_policy::{Evidence, ModelOutput, Region, Shape};
use tch::{Kind, Tensor};

use super::decoding::BartDecoder;
use super::network::Network;
use super::prompt::{self, DETECTION};
use super::regions::{boxes, without_doubles};
use super::text::BINS;
use crate::generation::decoder::Decoder;
use crate::runtime::cuda_graphs::CudaGraphCache;
use crate::task::TaskSpec;
use crate::{ModelError, Pixels};

/// The most searches, each of one phrase in one image, that run together, as the encoder's states are held
/// for each.
const SEARCHES_MAX: usize = 64;
/// The most boxes of a phrase, of four tokens each.
const BOXES_MAX: usize = 32;
/// The largest intersection over union of two boxes of one label; above it, one of them is left out.
const OVERLAP_MAX: f32 = 0.5;

/// A phrase that is searched for.
#[derive(Debug)]
struct Phrase {
    /// The label that it belongs to, from 1.
    label: usize,
    text: String,
    /// The ids of the question to the encoder.
    question: Vec<i64>,
    /// The ids before the place where a box would begin, for the decoder.
    prefix: Vec<i64>,
}

/// The phrases of a task.
#[derive(Debug)]
pub(super) struct Phrases {
    labels: usize,
    /// The phrases in groups whose questions are of one length, and prefixes too, so that nothing needs
    /// padding.
    groups: Vec<Vec<Phrase>>,
}

/// The result of the search for one phrase in one image.
struct Hit<'a> {
    phrase: &'a Phrase,
    /// The log-odds that a location follows where a box would begin.
    log_odds: f32,
    /// The bins of the locations that were generated.
    bins: Vec<i64>,
}

impl Phrases {
    pub(super) fn new(network: &Network, task: &TaskSpec) -> Result<Self, ModelError> {
        let fault = |message: String| ModelError::Task { task: task.task.clone(), message };
        if task.labels.len() < 2 {
            return Err(fault(
                "mode detect needs a label for absence and one for what is searched for".to_owned(),
            ));
        }
        let mut groups: BTreeMap<(usize, usize), Vec<Phrase>> = BTreeMap::new();
        for (label, (name, prompts)) in task.labels.iter().enumerate().skip(1) {
            if prompts.is_empty() {
                return Err(fault(format!("label {name} has no prompt")));
            }
            for text in prompts {
                let (_, question) = prompt::parse(&format!("{DETECTION}{text}"))?;
                let (question, prefix) = (network.prompt(&question)?, network.decoder_prefix(text.trim())?);
                let phrase = Phrase { label, text: text.clone(), question, prefix };
                groups.entry((phrase.question.len(), phrase.prefix.len())).or_default().push(phrase);
            }
        }
        Ok(Self { labels: task.labels.len(), groups: groups.into_values().collect() })
    }

    /// Scores images by the task's labels. The first label stands for absence and has the logit 0; that of
    /// another is the largest of its phrases' log-odds.
    pub(super) fn scores(
        &self,
        network: &Network,
        graphs: &CudaGraphCache,
        features: &Tensor,
        images: &[&Pixels],
    ) -> Result<Vec<ModelOutput>, ModelError> {
        let mut hits: Vec<Vec<Hit>> = images.iter().map(|_| Vec::new()).collect();
        for group in &self.groups {
            let searches: Vec<(usize, &Phrase)> =
                (0..images.len()).flat_map(|image| group.iter().map(move |phrase| (image, phrase))).collect();
            for searches in searches.chunks(SEARCHES_MAX) {
                for ((image, _), hit) in searches.iter().zip(search(network, graphs, features, searches)?) {
                    hits[*image].push(hit);
                }
            }
        }
        Ok(images.iter().zip(hits).map(|(pixels, hits)| self.score(hits, pixels.image_size)).collect())
    }

    fn score(&self, mut hits: Vec<Hit>, image_size: [u32; 2]) -> ModelOutput {
        // The most probable come first: of two boxes that overlap, the first stays.
        hits.sort_by(|a, b| b.log_odds.total_cmp(&a.log_odds));
        let mut logits = vec![0.0];
        let mut regions = Vec::new();
        for label in 1..self.labels {
            let of_label = || hits.iter().filter(|hit| hit.phrase.label == label);
            logits.push(of_label().next().map_or(f32::NEG_INFINITY, |hit| hit.log_odds));
            let found = of_label().flat_map(|hit| hit.regions(image_size)).collect();
            regions.extend(without_doubles(found, OVERLAP_MAX));
        }
        let evidence = Evidence { regions: regions.into(), ..Evidence::default() };
        ModelOutput { logits, evidence }
    }
}

impl Hit<'_> {
    /// Returns the boxes whose corners are in order; others enclose nothing.
    fn regions(&self, image_size: [u32; 2]) -> impl Iterator<Item = Region> {
        let is_box = |[left, top, right, bottom]: &[f32; 4]| left <= right && top <= bottom;
        let region = |shape| Region { label: self.phrase.text.clone(), shape: Shape::Box(shape) };
        boxes(&self.bins, image_size).into_iter().filter(is_box).map(region)
    }
}

/// Searches for phrases of one group, each in the image of its index among the features
/// [images, image tokens, width].
fn search<'a>(
    network: &Network,
    graphs: &CudaGraphCache,
    features: &Tensor,
    searches: &[(usize, &'a Phrase)],
) -> Result<Vec<Hit<'a>>, ModelError> {
    let images: Vec<i64> = searches.iter().map(|(image, _)| *image as i64).collect();
    let images = Tensor::f_from_slice(&images)?.f_to_device(features.device())?;
    let ids = |part: fn(&Phrase) -> &[i64]| {
        network.ids(&searches.iter().map(|(_, phrase)| part(phrase)).collect::<Vec<_>>())
    };
    let questions = ids(|phrase| &phrase.question)?;
    let memory = network.memory(graphs, &features.f_index_select(0, &images)?, &questions)?;
    let mut writer = BartDecoder::new(&network.bart, memory);
    let prefixes = ids(|phrase| &phrase.prefix)?;
    let logits = writer.step(&prefixes);
    let odds = Vec::<f32>::try_from(log_odds(&logits, network.codec.first_location()))?;
    let room = usize::try_from(network.positions - prefixes.size()[1]).unwrap_or(0);
    let bins = locations(&mut writer, network, logits, room)?;
    let hits = searches.iter().zip(odds).zip(bins);
    Ok(hits.map(|(((_, phrase), log_odds), bins)| Hit { phrase, log_odds, bins }).collect())
}

/// Returns the log-odds, \[rows\], that the next token is a location, for logits [rows, vocabulary].
fn log_odds(logits: &Tensor, first_location: i64) -> Tensor {
    let after = first_location + BINS;
    let others = Tensor::cat(
        &[logits.narrow(1, 0, first_location), logits.narrow(1, after, logits.size()[1] - after)],
        1,
    );
    let total = |x: &Tensor| x.logsumexp([1].as_slice(), false);
    total(&logits.narrow(1, first_location, BINS)) - total(&others)
}

/// Returns, for each row, the bins of the locations that it continues with until another token is more
/// probable. Rows that are done cost nothing further.
fn locations(
    writer: &mut BartDecoder,
    network: &Network,
    mut logits: Tensor,
    room: usize,
) -> Result<Vec<Vec<i64>>, ModelError> {
    let device = logits.device();
    let mut bins = vec![Vec::new(); usize::try_from(logits.size()[0]).unwrap_or(0)];
    let mut running: Vec<usize> = (0..bins.len()).collect();
    for _ in 0..room.min(4 * BOXES_MAX) {
        let next = Vec::<i64>::try_from(logits.f_argmax(-1, false)?.f_to_kind(Kind::Int64)?)?;
        let mut kept = Vec::new();
        for (row, (&text, &token)) in running.iter().zip(&next).enumerate() {
            if let Some(bin) = network.codec.location(token) {
                bins[text].push(bin);
                kept.push(row);
            }
        }
        if kept.is_empty() {
            break;
        }
        if kept.len() < running.len() {
            let rows: Vec<i64> = kept.iter().map(|&row| row as i64).collect();
            writer.select(&Tensor::f_from_slice(&rows)?.f_to_device(device)?);
        }
        let tokens: Vec<i64> = kept.iter().map(|&row| next[row]).collect();
        running = kept.into_iter().map(|row| running[row]).collect();
        logits = writer.step(&Tensor::f_from_slice(&tokens)?.f_view([-1, 1])?.f_to_device(device)?);
    }
    Ok(bins)
}
