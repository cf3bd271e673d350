//! The probabilities of the allowed answers, read from those of the tokens at the beginning of a chat
//! completion.
//!
//! An answer may come after a quotation mark, take several tokens, and share the first of them with another
//! one. So the tokens that the model chose are followed for as long as they leave the answer open, and at
//! each position the probability of having come so far is split over the candidates.

use serde::Deserialize;

use super::answer::{ANSWERED_MIN, SUM_MAX};

/// The characters that may stand before an answer: quotation marks and markup. White space may, too.
const DECORATION: &str = "\"'`*_#<>([-“”„‘’‚«»‹›「『";
/// The marks that byte-level vocabularies and those of `SentencePiece` have for white space.
const WHITE_SPACE: [(&str, &str); 4] = [("Ġ", " "), ("▁", " "), ("Ċ", "\n"), ("<0x0A>", "\n")];
/// The characters that join words: "yes/no" is not "yes".
const JOINTS: [char; 5] = ['-', '_', '/', '\'', '’'];
/// The largest logarithm that is taken for a probability: 0, and what rounding may add.
const LOGPROB_MAX: f64 = 0.01;

/// A position of a completion: the token that the model chose, and the likeliest ones.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Position {
    token: Option<String>,
    logprob: Option<f64>,
    top_logprobs: Option<Vec<Candidate>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Candidate {
    token: Option<String>,
    logprob: Option<f64>,
}

/// The meaning of a text from the beginning of an answer.
#[derive(Debug, PartialEq)]
enum Meaning {
    /// It has nothing but quotation marks, markup or white space so far.
    Open,
    /// It is one of the answers, or the beginning of no other one.
    One(usize),
    /// It begins several answers.
    Several(Vec<usize>),
    /// It begins none of them.
    Other,
}

/// The reading of one completion: the probabilities that were found so far.
#[derive(Debug)]
struct Reading {
    /// The allowed answers, and the text of the completion, as [`plain`] makes them.
    answers: Vec<String>,
    said: String,
    /// The probability of each answer.
    masses: Vec<f64>,
    /// The least probability of a listed token.
    least: f64,
    /// The probability of the tokens that are not listed.
    unlisted: f64,
}

/// Returns the probability of each answer. `said` is the text of the completion, as far as the server gives
/// it. `None` where the answers have less than half of the probability together, or the model's words do not
/// tell them apart.
pub(super) fn probabilities(positions: &[Position], said: &str, answers: &[String]) -> Option<Vec<f64>> {
    let tokens: String = positions.iter().map(Position::chosen).collect();
    let mut reading = Reading {
        answers: answers.iter().map(|answer| plain(answer)).collect(),
        said: plain(if said.trim().is_empty() { &tokens } else { said }),
        masses: vec![0.0; answers.len()],
        least: 1.0,
        unlisted: 0.0,
    };
    let (mut text, mut reached) = (String::new(), 1.0);
    for position in positions {
        let open = reading.split(position, &text, reached)?;
        text.push_str(position.chosen());
        reached = open;
        if reached <= 0.0 {
            break;
        }
    }
    reading.end(&plain(&text), reached);
    reading.probabilities()
}

impl Reading {
    /// Splits the probability of having reached a position over its candidates. Returns the probability of
    /// the chosen token while it leaves the answer open, which the next position splits again; otherwise 0.
    /// `None` where the numbers are no probabilities.
    fn split(&mut self, position: &Position, text: &str, reached: f64) -> Option<f64> {
        let candidates = position.candidates();
        let listed: f64 = candidates.iter().map(|(_, probability)| probability).sum();
        if listed > SUM_MAX {
            return None;
        }
        self.unlisted += reached * (1.0 - listed).max(0.0);
        let mut open = 0.0;
        for (token, probability) in candidates {
            let (mass, is_chosen) = (reached * probability, token == position.chosen());
            self.least = self.least.min(mass);
            match meaning(&plain(&format!("{text}{token}")), &self.answers) {
                Meaning::Open | Meaning::Several(_) if is_chosen => open = mass,
                // "I" may begin "inside", but not where the model went on with "'m sorry".
                Meaning::One(index) if is_chosen && !self.was_said(index) => {}
                Meaning::One(index) => self.masses[index] += mass,
                // Where the model did not go this way, nothing tells them apart.
                Meaning::Several(indices) => {
                    for index in &indices {
                        self.masses[*index] += mass / indices.len() as f64;
                    }
                }
                Meaning::Open | Meaning::Other => {}
            }
        }
        Some(open)
    }

    /// Ends a completion that could have gone on: with "no" and not with "no entry". `reached` is the
    /// probability of its whole text.
    fn end(&mut self, text: &str, reached: f64) {
        let longest = longest_said(text, &self.answers);
        let is_it = |answer: &String| answer.len() == longest && is_said(text, answer);
        let mut said = (0..self.answers.len()).filter(|index| is_it(&self.answers[*index]));
        if let (Some(index), None) = (said.next(), said.next()) {
            self.masses[index] += reached;
        }
    }

    /// Returns whether the text of the completion is this answer, or the beginning of it where it was cut
    /// off.
    fn was_said(&self, index: usize) -> bool {
        let answer = &self.answers[index];
        is_said(&self.said, answer) || is_begun(&self.said, answer)
    }

    /// Returns the probability of each answer. One that is not among the listed tokens is at most as probable
    /// as the least of them, and as what is left.
    fn probabilities(self) -> Option<Vec<f64>> {
        if self.masses.iter().sum::<f64>() < ANSWERED_MIN {
            return None;
        }
        let missing = self.masses.iter().filter(|mass| **mass <= 0.0).count();
        let floor = self.least.min(self.unlisted / missing.max(1) as f64);
        Some(self.masses.into_iter().map(|mass| if mass > 0.0 { mass } else { floor }).collect())
    }
}

impl Position {
    /// Returns whether the position has any probability at all.
    pub(super) fn has_probabilities(&self) -> bool {
        !self.candidates().is_empty()
    }

    fn chosen(&self) -> &str {
        self.token.as_deref().unwrap_or_default()
    }

    /// Returns the listed tokens with their probabilities. Some servers list the chosen one twice.
    fn candidates(&self) -> Vec<(&str, f64)> {
        let listed = self.top_logprobs.iter().flatten().map(|listed| (&listed.token, listed.logprob));
        let mut candidates: Vec<(&str, f64)> = Vec::new();
        for (token, logprob) in std::iter::once((&self.token, self.logprob)).chain(listed) {
            let (Some(token), Some(logprob)) = (token, logprob) else { continue };
            if logprob <= LOGPROB_MAX && !candidates.iter().any(|(other, _)| other == token) {
                candidates.push((token, logprob.min(0.0).exp()));
            }
        }
        candidates
    }
}

/// Returns a text in small letters, from its first character that is no decoration on.
fn plain(text: &str) -> String {
    let mut text = text.to_owned();
    for (mark, meant) in WHITE_SPACE {
        text = text.replace(mark, meant);
    }
    let is_decoration = |character: char| character.is_whitespace() || DECORATION.contains(character);
    text.trim_start_matches(is_decoration).to_lowercase()
}

fn meaning(text: &str, answers: &[String]) -> Meaning {
    if text.is_empty() {
        return Meaning::Open;
    }
    let longest = longest_said(text, answers);
    let mut possible: Vec<usize> = (0..answers.len()).collect();
    possible.retain(|index| {
        let answer = &answers[*index];
        is_begun(text, answer) || (is_said(text, answer) && answer.len() == longest)
    });
    match possible[..] {
        [] => Meaning::Other,
        [one] => Meaning::One(one),
        _ => Meaning::Several(possible),
    }
}

/// Returns the length of the longest answer that a text says: "no entry" is not "no".
fn longest_said(text: &str, answers: &[String]) -> usize {
    answers.iter().filter(|answer| is_said(text, answer)).map(String::len).max().unwrap_or(0)
}

/// Returns whether a text is an answer, or an answer and more, but not a longer word: "nothing" is not "no".
fn is_said(text: &str, answer: &str) -> bool {
    let rest = text.strip_prefix(answer).filter(|_| !answer.is_empty());
    rest.is_some_and(|rest| !rest.trim_start_matches(JOINTS).starts_with(char::is_alphanumeric))
}

/// Returns whether a text is the beginning of a longer answer.
fn is_begun(text: &str, answer: &str) -> bool {
    answer.len() > text.len() && answer.starts_with(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The candidates of each position, the chosen one first.
    type Candidates<'a> = &'a [&'a [(&'a str, f64)]];

    /// The allowed answers, the candidates, and the text of the completion.
    type Completion<'a> = (&'a [&'a str], Candidates<'a>, &'a str);

    const YES_NO: &[&str] = &["NO", "YES"];

    fn positions(candidates: Candidates<'_>) -> Vec<Position> {
        let candidate = |(token, probability): &(&str, f64)| Candidate {
            token: Some((*token).to_owned()),
            logprob: Some(probability.ln()),
        };
        let position = |listed: &&[(&str, f64)]| Position {
            token: Some(listed[0].0.to_owned()),
            logprob: Some(listed[0].1.ln()),
            top_logprobs: Some(listed.iter().map(candidate).collect()),
        };
        candidates.iter().map(position).collect()
    }

    fn read((answers, candidates, said): Completion<'_>) -> Option<Vec<f64>> {
        let answers: Vec<String> = answers.iter().map(|answer| (*answer).to_owned()).collect();
        probabilities(&positions(candidates), said, &answers)
    }

    #[test]
    fn an_answer_has_the_probability_of_the_tokens_that_begin_it() {
        let limits: &[&str] = &["speed limit 20", "speed limit 30", "no entry"];
        let works: &[&str] = &["no road work", "no entry", "road work"];
        let prefix: &[&str] = &["no", "no entry", "yes"];
        let variants: Candidates<'_> =
            &[&[("YES", 0.5), (" Yes", 0.2), ("yes", 0.1), ("NO", 0.1), ("Ġno", 0.05), ("Maybe", 0.05)]];
        let bold: Candidates<'_> =
            &[&[("**", 0.8), ("YES", 0.2)], &[("YES", 0.75), ("NO", 0.25)], &[("**", 1.0)]];
        let limit: Candidates<'_> =
            &[&[("speed", 0.9), ("no", 0.1)], &[(" limit", 1.0)], &[(" 20", 0.7), (" 30", 0.3)]];
        let no_road: Candidates<'_> = &[&[("no", 0.6), ("road", 0.4)], &[(" road", 0.5), (" entry", 0.5)]];
        let cases: &[(Completion<'_>, &[f64])] = &[
            ((YES_NO, variants, "YES"), &[0.15, 0.8]),
            ((YES_NO, &[&[("Yes.", 0.9), ("No,", 0.1)]], "Yes. There is"), &[0.1, 0.9]),
            ((YES_NO, &[&[("▁yes", 0.9), ("▁no", 0.1)]], "yes"), &[0.1, 0.9]),
            // Quotation marks, markup and new lines come before it.
            (
                (YES_NO, &[&[("\"", 0.99), ("YES", 0.01)], &[("YES", 0.9), ("NO", 0.1)]], "\"YES\""),
                &[0.099, 0.901],
            ),
            ((YES_NO, bold, "**YES**"), &[0.2, 0.8]),
            ((YES_NO, &[&[("'", 1.0)], &[("YES", 0.9), ("NO", 0.1)], &[("'", 1.0)]], "'YES'"), &[0.1, 0.9]),
            ((YES_NO, &[&[("Ċ", 1.0)], &[("<", 1.0)], &[("YES", 0.9), ("NO", 0.1)]], "<YES"), &[0.1, 0.9]),
            ((YES_NO, &[&[("“NO", 0.9), ("“YES", 0.1)]], "“NO”"), &[0.9, 0.1]),
            // One that is not listed is as improbable as the least that is, and no more probable than the
            // rest.
            ((YES_NO, &[&[("YES", 0.9), ("Yeah", 0.001)]], "YES"), &[0.001, 0.9]),
            ((YES_NO, &[&[("YES", 0.7)]], "YES"), &[0.3, 0.7]),
            ((YES_NO, &[&[("YES", 1.0)]], "YES"), &[0.0, 1.0]),
            // Several begin alike.
            ((limits, limit, "speed limit 20"), &[0.63, 0.27, 0.1]),
            ((works, no_road, "no road work"), &[0.3, 0.3, 0.4]),
            ((works, &[&[("road", 0.6), ("no", 0.4)]], "road work"), &[0.2, 0.2, 0.6]),
            ((prefix, &[&[("no", 0.9), ("yes", 0.1)]], "no"), &[0.9, 0.0, 0.1]),
            ((prefix, &[&[("no", 1.0)], &[(" entry", 0.8), (".", 0.2)]], "no entry"), &[0.2, 0.8, 0.0]),
            // It takes several tokens, and is cut off.
            (
                (&["inside", "outside"], &[&[("In", 0.9), ("Out", 0.1)], &[("side", 1.0)]], "Inside."),
                &[0.9, 0.1],
            ),
            ((works, &[&[("road", 0.9), ("no", 0.1)]], "road"), &[0.05, 0.05, 0.9]),
            ((&["нет", "дорожные работы"], &[&[("До", 0.9), ("Нет", 0.1)]], "Дорожные работы"), &[0.1, 0.9]),
        ];
        for (completion, expected) in cases {
            let found = read(*completion).unwrap_or_else(|| panic!("no number for {completion:?}"));
            let is_close = found.iter().zip(*expected).all(|(one, other)| (one - other).abs() < 1e-9);
            assert!(is_close && found.len() == expected.len(), "{completion:?}: {found:?}, not {expected:?}");
        }
    }

    #[test]
    fn a_model_that_says_something_else_gives_no_number() {
        let sides: &[&str] = &["inside", "outside"];
        let completions: &[Completion<'_>] = &[
            (YES_NO, &[&[("I", 0.97), ("YES", 0.0002), ("NO", 0.00001)]], "I'm sorry"),
            (YES_NO, &[&[("The", 0.97), (" Yes", 0.002), ("No", 0.001)]], "The image shows no sign: NO"),
            (YES_NO, &[&[("Not", 0.9), ("YES", 0.05), ("NO", 0.04)]], "Not sure"),
            (YES_NO, &[&[("The", 0.51), ("YES", 0.49)]], "The"),
            (YES_NO, &[&[("<think>", 0.9), ("YES", 0.1)], &[("YES", 1.0)]], "<think>YES"),
            (YES_NO, &[&[("{\"", 0.9), ("YES", 0.1)]], "{\"answer\": \"YES\"}"),
            // It begins like an answer, and goes on otherwise.
            (YES_NO, &[&[("N", 0.9), ("YES", 0.1)], &[("othing", 1.0)]], "Nothing to see"),
            (YES_NO, &[&[("N", 0.9), ("YES", 0.1)], &[("/A", 1.0)]], "N/A"),
            (sides, &[&[("I", 0.97), ("Outside", 0.01)], &[("'m", 1.0)]], "I'm sorry"),
            (YES_NO, &[&[("YES", 0.9), ("NO", 0.1)], &[("/", 1.0)], &[("NO", 1.0)]], "YES/NO"),
            (&["no", "no entry"], &[&[("no", 1.0)], &[("-", 1.0)], &[("entry", 1.0)]], "no-entry"),
            // It ends before the answer.
            (YES_NO, &[&[("\"", 0.6), ("YES", 0.3), ("NO", 0.1)]], "\""),
            (YES_NO, &[&[("", 1.0)]], ""),
            (&["speed limit 20", "speed limit 30"], &[&[("speed", 0.99)]], "speed"),
            // These are no probabilities.
            (YES_NO, &[&[("YES", 1.0), ("NO", 1.0)]], "YES"),
            (YES_NO, &[], "YES"),
        ];
        for completion in completions {
            assert_eq!(read(*completion), None, "{completion:?}");
        }
    }

    #[test]
    fn a_token_that_is_listed_twice_counts_once_and_one_without_a_number_not_at_all() {
        let listed = |token: &str, logprob| Candidate { token: Some(token.to_owned()), logprob };
        let position = Position {
            token: Some("YES".to_owned()),
            logprob: None,
            top_logprobs: Some(vec![
                listed("YES", Some(0.75_f64.ln())),
                listed("YES", Some(0.75_f64.ln())),
                listed("NO", Some(0.25_f64.ln())),
                listed("no", None),
                Candidate { token: None, logprob: Some(0.0) },
            ]),
        };
        let answers = ["NO".to_owned(), "YES".to_owned()];
        let found = probabilities(&[position], "YES", &answers).unwrap();
        assert!((found[0] - 0.25).abs() < 1e-9 && (found[1] - 0.75).abs() < 1e-9, "{found:?}");
    }
}
