//! Implements beam search, which follows several texts at once to find the one that is most probable as a
//! whole.
//!
//! Repeats `_beam_search` of transformers' `generation/utils.py` step by step, and the logits processors that
//! encoder-decoders are published with (`generation/logits_process.py`), in fp32 as there.

use tch::{Device, Kind, Tensor};

use crate::generation::decoder::Decoder;

/// The score of a text that does not exist or may not be taken.
const NOTHING: f32 = -1.0e9;

/// The settings of a search, by their names in `generation_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BeamSettings {
    pub(crate) num_beams: usize,
    /// The length of the token sequences that may not occur twice in a text; 0 for no such rule.
    pub(crate) no_repeat_ngram_size: usize,
    /// True if the search ends as soon as there are `num_beams` finished texts.
    pub(crate) early_stopping: bool,
    /// The exponent of the length that divides a text's log-probability.
    pub(crate) length_penalty: f64,
    pub(crate) decoder_start_token_id: i64,
    pub(crate) eos_token_id: i64,
    pub(crate) forced_bos_token_id: Option<i64>,
    /// The token that ends a text at its maximum length.
    pub(crate) forced_eos_token_id: Option<i64>,
}

impl BeamSettings {
    /// Returns whether the search always takes the most probable token, except where a token is forced.
    pub(crate) fn is_greedy(&self) -> bool {
        self.num_beams == 1 && self.no_repeat_ngram_size == 0
    }

    /// Returns the token that must follow after `written` tokens of a text of at most `max_new_tokens`, if
    /// one must.
    pub(crate) fn forced(&self, written: usize, max_new_tokens: usize) -> Option<i64> {
        let last = self.forced_eos_token_id.filter(|_| written + 1 == max_new_tokens);
        last.or(self.forced_bos_token_id.filter(|_| written == 0))
    }

    /// Returns the divisor of the log-probability of a text of `written` tokens.
    pub(crate) fn length_divisor(&self, written: usize) -> f32 {
        (written as f64).powf(self.length_penalty) as f32
    }
}

/// The text that a search found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    /// The tokens, without the decoder's start token.
    pub(crate) tokens: Vec<i64>,
    /// The log-probability divided by a power of the length: `sequences_scores`.
    pub(crate) score: f32,
    /// The smallest difference between the score of a text that was followed and one that was not: where it
    /// is smaller than the noise of the arithmetic, the search may find another text as well.
    pub(crate) margin: f32,
}

/// A continuation: the beam it extends, the token it appends, and the log-probability of the result.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    beam: usize,
    token: i64,
    score: f32,
}

#[derive(Debug, Clone, PartialEq)]
struct Text {
    /// The tokens, including the decoder's start token.
    tokens: Vec<i64>,
    score: f32,
    finished: bool,
}

/// The texts that are followed and those that are finished.
#[derive(Debug)]
struct Beams<'a> {
    settings: &'a BeamSettings,
    max_new_tokens: usize,
    running: Vec<Text>,
    finished: Vec<Text>,
    /// True while a running text may still become better than the worst finished one.
    improvable: bool,
    done: bool,
    margin: f32,
}

/// Searches until the beams are done. The decoder has to be at its beginning, and all its rows of one source.
///
/// # Errors
/// Fails when libtorch does.
pub(crate) fn beam_search(
    decoder: &mut dyn Decoder,
    settings: &BeamSettings,
    max_new_tokens: usize,
    device: Device,
) -> Result<Found, tch::TchError> {
    let mut beams = Beams::new(settings, max_new_tokens);
    while !beams.done {
        let last: Vec<i64> = beams.running.iter().filter_map(|text| text.tokens.last().copied()).collect();
        let tokens = Tensor::f_from_slice(&last)?.f_view([-1, 1])?.f_to_device(device)?;
        let logits = decoder.step(&tokens);
        let candidates = match settings.forced(beams.written(), max_new_tokens) {
            Some(token) => beams.forced_candidates(token),
            None => beams.candidates(&logits)?,
        };
        let parents = beams.advance(&candidates);
        if !beams.done {
            decoder.select(&Tensor::f_from_slice(&parents)?.f_to_device(device)?);
        }
    }
    Ok(beams.best())
}

impl<'a> Beams<'a> {
    fn new(settings: &'a BeamSettings, max_new_tokens: usize) -> Self {
        let text = |score| Text { tokens: vec![settings.decoder_start_token_id], score, finished: false };
        // All beams begin with the same token, so only continuations of the first count.
        let running =
            (0..settings.num_beams).map(|beam| text(if beam == 0 { 0.0 } else { NOTHING })).collect();
        Self {
            settings,
            max_new_tokens,
            running,
            finished: vec![text(NOTHING); settings.num_beams],
            improvable: true,
            done: max_new_tokens == 0 || settings.num_beams == 0,
            margin: f32::INFINITY,
        }
    }

    /// Returns the number of tokens that the texts have so far.
    fn written(&self) -> usize {
        self.running.first().map_or(0, |text| text.tokens.len() - 1)
    }

    /// Returns a candidate for each text that appends `token` at no cost.
    fn forced_candidates(&self, token: i64) -> Vec<Candidate> {
        let candidate = |(beam, text): (usize, &Text)| Candidate { beam, token, score: text.score };
        self.running.iter().enumerate().map(candidate).collect()
    }

    /// Returns the best candidates, best first: twice as many as there are beams, because each may be the
    /// last token of its text. The logits are [beams, vocabulary].
    fn candidates(&self, logits: &Tensor) -> Result<Vec<Candidate>, tch::TchError> {
        let vocabulary = logits.size()[1];
        let scores: Vec<f32> = self.running.iter().map(|text| text.score).collect();
        let scores = Tensor::f_from_slice(&scores)?.f_view([-1, 1])?.f_to_device(logits.device())?;
        let log_probabilities = logits.f_log_softmax(-1, Kind::Float)?;
        let mut totals = log_probabilities.f_add(&scores)?.f_flatten(0, 1)?;
        let banned = self.banned(vocabulary);
        if !banned.is_empty() {
            let banned = Tensor::f_from_slice(&banned)?.f_to_device(logits.device())?;
            totals = totals.f_index_fill(0, &banned, f64::NEG_INFINITY)?;
        }
        let count = (2 * self.settings.num_beams as i64).min(totals.size()[0]);
        let (best, indices) = totals.f_topk(count, 0, true, true)?;
        let (best, indices) = (Vec::<f32>::try_from(best)?, Vec::<i64>::try_from(indices)?);
        let candidate = |(score, index): (f32, i64)| Candidate {
            beam: usize::try_from(index / vocabulary).unwrap_or(0),
            token: index % vocabulary,
            score,
        };
        Ok(best.into_iter().zip(indices).map(candidate).collect())
    }

    /// Returns the tokens that would repeat a sequence of their text, as indices into [beams · vocabulary].
    fn banned(&self, vocabulary: i64) -> Vec<i64> {
        let mut banned = Vec::new();
        for (text, first) in self.running.iter().zip((0..).step_by(usize::try_from(vocabulary).unwrap_or(1)))
        {
            let tokens = repeating(&text.tokens, self.settings.no_repeat_ngram_size);
            banned.extend(tokens.into_iter().map(|token| first + token));
        }
        banned
    }

    /// Appends a token to each text, and returns the beam that each running text comes from.
    fn advance(&mut self, candidates: &[Candidate]) -> Vec<i64> {
        let beams = self.settings.num_beams;
        let is_full = self.written() + 1 >= self.max_new_tokens;
        let mut texts: Vec<(usize, Text)> = Vec::new();
        for candidate in candidates {
            let mut tokens = self.running[candidate.beam].tokens.clone();
            tokens.push(candidate.token);
            let finished = is_full || candidate.token == self.settings.eos_token_id;
            texts.push((candidate.beam, Text { tokens, score: candidate.score, finished }));
        }
        let all_finished = texts.iter().all(|(_, text)| text.finished);
        self.note_margin(texts.iter().map(|(_, text)| text.score));
        self.finish(texts.iter().take(beams).map(|(_, text)| text).filter(|text| text.finished));

        for (_, text) in texts.iter_mut().filter(|(_, text)| text.finished) {
            text.score += NOTHING;
        }
        texts.sort_by(|(_, a), (_, b)| b.score.total_cmp(&a.score));
        self.note_margin(texts.iter().map(|(_, text)| text.score));
        texts.truncate(beams);
        let parents = texts.iter().map(|(beam, _)| *beam as i64).collect();
        self.running = texts.into_iter().map(|(_, text)| Text { finished: false, ..text }).collect();
        self.note_done(all_finished);
        parents
    }

    /// Adds finished texts, and keeps the best of all.
    fn finish<'t>(&mut self, texts: impl Iterator<Item = &'t Text>) {
        let is_closed = !self.improvable || (self.settings.early_stopping && self.all_are_finished());
        for text in texts {
            let penalised = if is_closed { NOTHING } else { 0.0 };
            let score = text.score / self.settings.length_divisor(text.tokens.len() - 1) + penalised;
            self.finished.push(Text { score, ..text.clone() });
        }
        self.finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.finished.truncate(self.settings.num_beams);
    }

    /// Updates `improvable` and `done` as `_check_early_stop_heuristic` and
    /// `_beam_search_has_unfinished_sequences` do.
    fn note_done(&mut self, all_candidates_finished: bool) {
        let possible = self.running.first().map_or(NOTHING, |text| text.score)
            / self.settings.length_divisor(self.written());
        let worst = self.finished.iter().map(|text| text.score).fold(f32::INFINITY, f32::min);
        let beats = |text: &Text| possible > if text.finished { worst } else { NOTHING };
        self.improvable &= self.finished.iter().any(beats);
        let enough = self.settings.early_stopping && self.all_are_finished();
        self.done = !self.improvable || enough || all_candidates_finished;
    }

    fn all_are_finished(&self) -> bool {
        self.finished.iter().all(|text| text.finished)
    }

    /// Updates the margin from scores, best first: one for each beam is taken, those after them are not.
    fn note_margin(&mut self, scores: impl Iterator<Item = f32>) {
        let last_two: Vec<f32> = scores.skip(self.settings.num_beams.saturating_sub(1)).take(2).collect();
        if let [taken, left] = last_two[..] {
            self.margin = self.margin.min(taken - left);
        }
    }

    fn best(mut self) -> Found {
        if let [first, second, ..] = &self.finished[..] {
            self.margin = self.margin.min(first.score - second.score);
        }
        let best = self.finished.into_iter().next();
        let (tokens, score) = best.map_or((Vec::new(), NOTHING), |text| (text.tokens, text.score));
        Found { tokens: tokens.into_iter().skip(1).collect(), score, margin: self.margin }
    }
}

/// Returns the tokens that would end the text with a sequence of `size` tokens that it has already:
/// `NoRepeatNGramLogitsProcessor`.
fn repeating(tokens: &[i64], size: usize) -> Vec<i64> {
    if size == 0 || tokens.len() < size {
        return Vec::new();
    }
    let ending = &tokens[tokens.len() + 1 - size..];
    let same = tokens.windows(size).filter(|window| window[..size - 1] == *ending);
    same.filter_map(|window| window.last().copied()).collect()
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::{BeamSettings, Beams, Candidate, beam_search, repeating};
    use crate::generation::decoder::Decoder;

    const END: i64 = 2;

    fn settings(num_beams: usize) -> BeamSettings {
        BeamSettings {
            num_beams,
            no_repeat_ngram_size: 0,
            early_stopping: true,
            length_penalty: 1.0,
            decoder_start_token_id: END,
            eos_token_id: END,
            forced_bos_token_id: None,
            forced_eos_token_id: None,
        }
    }

    fn candidate(beam: usize, token: i64, score: f32) -> Candidate {
        Candidate { beam, token, score }
    }

    #[test]
    fn a_sequence_is_not_repeated() {
        for (tokens, size, banned) in [
            (vec![1, 2, 3, 1, 2], 3, vec![3]),
            (vec![1, 2, 3, 1, 2, 4, 1, 2], 3, vec![3, 4]),
            (vec![5, 5, 5], 3, vec![5]),
            (vec![5, 5], 3, vec![]),
            (vec![7, 8], 1, vec![7, 8]),
            (vec![7, 8, 7], 0, vec![]),
        ] {
            assert_eq!(repeating(&tokens, size), banned, "{tokens:?}, {size}");
        }
    }

    #[test]
    fn a_finished_text_is_scored_by_its_length_and_not_followed() {
        let settings = settings(2);
        let mut beams = Beams::new(&settings, 10);
        let parents = beams.advance(&[
            candidate(0, 7, -1.0),
            candidate(0, END, -1.5),
            candidate(0, 8, -2.0),
            candidate(0, 9, -3.0),
        ]);
        assert_eq!(parents, [0, 0]);
        assert_eq!(beams.running[0].tokens, [END, 7]);
        assert_eq!(beams.running[1].tokens, [END, 8]);
        assert_eq!((beams.finished[0].score, beams.finished[0].finished), (-1.5, true));
        assert!(!beams.done);
        // The second finished text fills the beams: 4 / 2 tokens.
        let parents = beams.advance(&[
            candidate(1, END, -4.0),
            candidate(0, 5, -4.5),
            candidate(0, 6, -5.0),
            candidate(1, 6, -6.0),
        ]);
        assert_eq!(parents, [0, 0]);
        assert!(beams.done);
        let best = beams.best();
        assert_eq!((best.tokens, best.score, best.margin), (vec![END], -1.5, 0.5));
    }

    #[test]
    fn the_end_counts_only_among_the_best() {
        let settings = settings(1);
        let mut beams = Beams::new(&settings, 10);
        beams.advance(&[candidate(0, 7, -1.0), candidate(0, END, -1.1)]);
        assert!(!beams.done && !beams.finished[0].finished);
    }

    #[test]
    fn first_and_last_tokens_are_forced() {
        let settings =
            BeamSettings { forced_bos_token_id: Some(0), forced_eos_token_id: Some(END), ..settings(2) };
        let mut beams = Beams::new(&settings, 2);
        assert_eq!(settings.forced(beams.written(), 2), Some(0));
        let candidates = beams.forced_candidates(0);
        beams.advance(&candidates);
        assert_eq!(beams.running[0].tokens, [END, 0]);
        assert_eq!(settings.forced(beams.written(), 2), Some(END));
        let candidates = beams.forced_candidates(END);
        beams.advance(&candidates);
        assert!(beams.done);
        assert_eq!(beams.best().tokens, [0, END]);
        assert_eq!(settings.forced(0, 1), Some(END));
    }

    /// A decoder that continues by a fixed table of probabilities.
    struct Table {
        rows: i64,
        probabilities: Vec<Vec<f64>>,
    }

    impl Decoder for Table {
        fn step(&mut self, tokens: &Tensor) -> Tensor {
            self.rows = tokens.size()[0];
            let last = Vec::<i64>::try_from(tokens.view([-1])).unwrap();
            let rows: Vec<f64> = last
                .iter()
                .flat_map(|&token| self.probabilities[usize::try_from(token).unwrap()].clone())
                .collect();
            Tensor::from_slice(&rows).view([self.rows, -1]).log().to_kind(Kind::Float)
        }

        fn select(&mut self, rows: &Tensor) {
            assert!(rows.max().int64_value(&[]) < self.rows);
        }
    }

    #[test]
    fn a_better_whole_is_found_behind_a_worse_beginning() {
        // After the start (2), token 0 is likelier than 1, but the end is almost certain only after 1.
        let mut table = Table {
            rows: 0,
            probabilities: vec![vec![0.3, 0.4, 0.3], vec![0.005, 0.005, 0.99], vec![0.6, 0.4, 0.0]],
        };
        let greedy = beam_search(&mut table, &settings(1), 4, Device::Cpu).unwrap();
        assert_eq!(greedy.tokens, [0, 1, END]);
        let found = beam_search(&mut table, &settings(2), 4, Device::Cpu).unwrap();
        assert_eq!(found.tokens, [1, END]);
        assert!((found.score - (0.4_f32 * 0.99).ln() / 2.0).abs() < 1e-6);
        let nothing = beam_search(&mut table, &settings(2), 0, Device::Cpu).unwrap();
        assert!(nothing.tokens.is_empty());
    }
}
