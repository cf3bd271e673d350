//! Streams a text that grows token by token, in pieces that will not change any more.

use std::ops::ControlFlow;

/// The character that a tokenizer decodes bytes to that are no character, or not a complete one yet.
const INCOMPLETE: char = char::REPLACEMENT_CHARACTER;

/// A record of how much of a text has been emitted.
#[derive(Debug, Default)]
pub(crate) struct TextStream {
    /// The number of bytes emitted.
    given: usize,
}

impl TextStream {
    /// Emits the new part of `text`, which is the whole text so far. A character of several tokens is emitted
    /// once it is complete.
    pub(crate) fn advance(
        &mut self,
        text: &str,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        self.give(text.trim_end_matches(INCOMPLETE), on_text)
    }

    /// Emits the rest of `text`, which is the complete text: an incomplete character at its end is emitted as
    /// it is.
    pub(crate) fn finish(&mut self, text: &str, on_text: &mut dyn FnMut(&str) -> ControlFlow<()>) {
        let _ended = self.give(text, on_text);
    }

    fn give(&mut self, certain: &str, on_text: &mut dyn FnMut(&str) -> ControlFlow<()>) -> ControlFlow<()> {
        match certain.get(self.given..) {
            Some(piece) if !piece.is_empty() => {
                self.given = certain.len();
                on_text(piece)
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_given_out_whole() {
        let mut pieces = Vec::new();
        let mut stream = TextStream::default();
        for text in
            ["", "a", "a\u{fffd}", "a\u{fffd}\u{fffd}", "aé\u{fffd}", "aé\u{fffd}b", "aé\u{fffd}b\u{fffd}"]
        {
            let flow = stream.advance(text, &mut |piece| {
                pieces.push(piece.to_owned());
                ControlFlow::Continue(())
            });
            assert!(flow.is_continue());
        }
        stream.finish("aé\u{fffd}b\u{fffd}", &mut |piece| {
            pieces.push(piece.to_owned());
            ControlFlow::Continue(())
        });
        assert_eq!(pieces, ["a", "é", "\u{fffd}b", "\u{fffd}"]);
    }

    #[test]
    fn a_break_is_passed_on() {
        let mut stream = TextStream::default();
        assert!(stream.advance("a", &mut |_| ControlFlow::Break(())).is_break());
    }
}
