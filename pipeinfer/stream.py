"""Text from tokens as they are committed, and where it stops."""

from collections.abc import Sequence

from pipeinfer.backend import Tokenizer
from pipeinfer.core.effects import Stop

REPLACEMENT = "\ufffd"
"""What half a character decodes to; the rest of it is in the next token."""


class TextStream:
    """Collects committed tokens; ends the text before the first of the `stops` strings."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.tokens: list[int] = []
        self.text = ""
        """What is certain so far: no half characters, and nothing after a stop string."""
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._stopped = False

    def feed(self, tokens: Sequence[int]) -> Stop | None:
        """Add tokens; a Stop with the number of tokens that reach the stop string, once one is complete."""
        for token in tokens:
            if self._stopped:
                break
            self.tokens.append(token)
            decoded = self._tokenizer.decode(self.tokens)
            self.text = decoded.rstrip(REPLACEMENT)
            ends = [decoded.find(stop) for stop in self._stops if stop in decoded]
            if ends:
                self._stopped = True
                self.text = decoded[: min(ends)]
                return Stop(len(self.tokens), "stop")
        return None
