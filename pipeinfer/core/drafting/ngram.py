"""Prompt lookup: the longest suffix of the text that stood before is continued as it went on then. No model."""

from collections.abc import Sequence

from pipeinfer.core.strategies.options import require
from pipeinfer.core.text_drafter import TextPolicy


class NGram(TextPolicy):
    """Looks for the last `longest` tokens (then one less, down to `shortest`) in the text before, the newest place
    first. Method: prompt lookup decoding as in transformers and vLLM."""

    def __init__(self, longest: int = 3, shortest: int = 1) -> None:
        require("longest", longest, 1, 64)
        require("shortest", shortest, 1, longest)
        self._sizes = range(longest, shortest - 1, -1)
        self._places: dict[tuple[int, ...], int] = {}
        self._replaced: list[list[tuple[tuple[int, ...], int | None]]] = []

    def continuation(self, text: Sequence[int], count: int, unchanged: int = 0) -> Sequence[int]:
        self._learn(text, unchanged)
        for size in self._sizes:
            at = self._places.get(tuple(text[-size:])) if len(text) > size else None
            if at is not None:
                return text[at : at + count]
        return []

    def _learn(self, text: Sequence[int], unchanged: int) -> None:
        """Remember where each suffix but the last was followed by something; take back what a wrong guess had added."""
        while len(self._replaced) > unchanged:
            self._take_back()
        for at in range(len(self._replaced), len(text)):
            self._replaced.append([])
            for size in self._sizes:
                if size <= at:
                    suffix = tuple(text[at - size : at])
                    self._replaced[at].append((suffix, self._places.get(suffix)))
                    self._places[suffix] = at

    def _take_back(self) -> None:
        """Forget the last position: its suffixes stood where they had stood before."""
        for suffix, before in self._replaced.pop():
            if before is None:
                del self._places[suffix]
            else:
                self._places[suffix] = before
