//! Text that grows token by token, given out in pieces that will not change any more.

use std::ops::ControlFlow;

/// What a decoder writes for bytes that are no character, or not yet.
const INCOMPLETE: char = char::REPLACEMENT_CHARACTER;

/// Remembers how much of a text was given out.
#[derive(Debug, Default)]
pub(crate) struct TextStream {
    /// Bytes.
    given: usize,
}

impl TextStream {
    /// Gives out what is new in `text`, the whole so far. Characters of several tokens come when they are complete.
    pub(crate) fn advance(
        &mut self,
        text: &str,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        self.give(text.trim_end_matches(INCOMPLETE), on_text)
    }

    /// Gives out the rest of `text`, the whole at the end: what is incomplete now stays so.
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
