"""Text from tokens as they are committed, and where it stops."""

from collections.abc import Sequence

from pipeinfer.core.effects import Stop
from pipeinfer.engine.backend import Tokenizer

REPLACEMENT = "\ufffd"
"""What half a character decodes to; the rest of it is in the next token."""


class TextStream:
    """Collects committed tokens; ends the text before the first of the `stops` strings."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.tokens: list[int] = []
        self.text = ""
        """What is certain so far: no half character, and nothing that may be the beginning of a stop string."""
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._stopped = False
        # Whole characters up to token `_read`; new ones are decoded after those from `_context` on, which is cheap and
        # right for tokenizers that treat the first token of a text differently.
        self._whole = ""
        self._context = self._read = 0

    def feed(self, tokens: Sequence[int]) -> Stop | None:
        """Add tokens; a Stop with the number of tokens that reach the stop string, once one is complete."""
        for token in tokens:
            if self._stopped:
                break
            self.tokens.append(token)
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
        seen = self._tokenizer.decode(self.tokens[self._context : self._read])
        fresh = self._tokenizer.decode(self.tokens[self._context :])[len(seen) :]
        known = self._whole + fresh.rstrip(REPLACEMENT)
        if not fresh.endswith(REPLACEMENT):
            self._whole, self._context, self._read = known, self._read, len(self.tokens)
        return known

    def _held_back(self, text: str) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        sizes = [size for stop in self._stops for size in range(1, len(stop)) if text.endswith(stop[:size])]
        return max(sizes, default=0)
