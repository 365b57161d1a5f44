"""Text from tokens as they are committed, and where it stops."""

from collections.abc import Sequence

from pipeinfer.core.effects import Stop
from pipeinfer.engine.backend import Tokenizer

REPLACEMENT = "\ufffd"
"""What half a character decodes to; the rest of it is in the next token."""


CONTEXT = 16
"""So many tokens of the prompt are decoded along with the first that are generated."""


class TextStream:
    """Collects committed tokens; ends the text before the first of the `stops` strings.

    The text is what comes after the `prompt` when all ids are decoded together: many a tokenizer drops the space before
    the first word of what it decodes. `ends` are ids that end a text and are no part of it.
    """

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str] = (), *, prompt: Sequence[int] = (), ends: Sequence[int] = ()
    ) -> None:
        self.tokens: list[int] = []
        self.text = ""
        """What is certain so far: no half character, and nothing that may be the beginning of a stop string."""
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._ends = frozenset(ends)
        self._stopped = False
        # What is decoded: the prompt's last tokens, then those that are text. Whole characters up to token `_read`; new
        # ones are decoded after those from `_context` on, which is cheap and right for tokenizers that treat the first
        # token of a text differently.
        self._ids = list(prompt[-CONTEXT:])
        self._whole = ""
        self._context, self._read = 0, len(self._ids)
        while self._read and self._tokenizer.decode(self._ids[: self._read]).endswith(REPLACEMENT):
            self._read -= 1  # The prompt ends in half a character: the rest of it comes.

    def feed(self, tokens: Sequence[int]) -> Stop | None:
        """Add tokens; a Stop with the number of tokens that reach the stop string, once one is complete."""
        for token in tokens:
            if self._stopped:
                break
            self.tokens.append(token)
            if token in self._ends:
                continue
            self._ids.append(token)
            known = self._decode()
            ends = [known.find(stop) for stop in self._stops if stop in known]
            if ends:
                self._stopped = True
                self.text = known[: min(ends)]
                return Stop(len(self.tokens), "stop")
            self.text = known[: len(known) - self._held_back(known)]
        return None

    def finish(self) -> None:
        """No more tokens come: what was held back is text."""
        if not self._stopped:
            self._stopped = True
            self.text = self._decode()

    def _decode(self) -> str:
        """All tokens as text, without half a character at the end."""
        seen = self._tokenizer.decode(self._ids[self._context : self._read])
        fresh = self._tokenizer.decode(self._ids[self._context :])[len(seen) :]
        known = self._whole + fresh.rstrip(REPLACEMENT)
        if not fresh.endswith(REPLACEMENT):
            self._whole, self._context, self._read = known, self._read, len(self._ids)
        return known

    def _held_back(self, text: str) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        sizes = [size for stop in self._stops for size in range(1, len(stop)) if text.endswith(stop[:size])]
        return max(sizes, default=0)


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """The text of `ids` where they follow `prompt`."""
    stream = TextStream(tokenizer, prompt=prompt)
    stream.feed(ids)
    stream.finish()
    return stream.text
