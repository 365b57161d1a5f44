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
        self._seen: list[int] = []

    def continuation(self, text: Sequence[int], count: int) -> Sequence[int]:
        self._learn(text)
        for size in self._sizes:
            at = self._places.get(tuple(text[-size:])) if len(text) > size else None
            if at is not None:
                return text[at : at + count]
        return []

    def _learn(self, text: Sequence[int]) -> None:
        """Remember where each suffix but the last was followed by something; forget what a wrong guess had added."""
        same = 0
        while same < min(len(text), len(self._seen)) and text[same] == self._seen[same]:
            same += 1
        if same < len(self._seen):
            self._places = {key: at for key, at in self._places.items() if at <= same}
        for at in range(max(1, same), len(text)):
            for size in self._sizes:
                if size <= at:
                    self._places[tuple(text[at - size : at])] = at
        self._seen = list(text)
