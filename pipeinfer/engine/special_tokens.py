"""Which tokens a model's own engine puts around a text: once, also where the text has them already."""

from collections.abc import Sequence
from typing import NamedTuple


class Framed(NamedTuple):
    """A text's ids, and those that the model's conventions put before and after them."""

    before: list[int]
    text: list[int]
    after: list[int]

    @property
    def ids(self) -> list[int]:
        return [*self.before, *self.text, *self.after]


def framed(text: Sequence[int], whole: Sequence[int]) -> Framed:
    """The ids of a `text` alone and the `whole` that the tokenizer makes of it, taken apart.

    Of what the tokenizer adds, that which stands in the text already is left out: `<s>` before `<s>The` is one `<s>`.
    """
    before, after = _around(list(text), list(whole))
    doubled = _overlap(before, text)
    before = before[: len(before) - doubled]
    doubled = _overlap(text[len(text) - len(after) :], after) if after else 0
    return Framed(before, list(text), after[doubled:])


def _around(text: list[int], whole: list[int]) -> tuple[list[int], list[int]]:
    """What stands before and after `text` in `whole`; where it cannot be found, nothing was just put around it."""
    for start in range(len(whole) - len(text) + 1):
        if whole[start : start + len(text)] == text:
            return whole[:start], whole[start + len(text) :]
    return [], []


def _overlap(left: Sequence[int], right: Sequence[int]) -> int:
    """How many ids at the end of `left` are also the beginning of `right`."""
    most = min(len(left), len(right))
    return next((size for size in range(most, 0, -1) if list(left[-size:]) == list(right[:size])), 0)
