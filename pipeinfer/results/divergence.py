"""Where a generation parts from its reference, and whether rounding explains it.

A row's logits depend a little on the rows it is computed with: a product with several rows adds up in another order
than one with a single row. In float32 that is some 1e-6 of the logits and two tokens are never so close. In coarser
arithmetic the best two now and then are, and what follows is another text. Such a divergence is no error of the
schedule; anywhere else it is one.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

EXACT = "float32"
"""Arithmetic in which no two texts may differ."""

ROW_BY_ROW = "exact"
"""Behind the name of arithmetic in which each row was computed as if it were alone: there no two texts may differ."""

NEAR = {"float16": 2.0**-4, "tf32": 2.0**-4}
"""How close, in logits, the best two tokens have to be for rounding to choose between them: 128 units of roundoff,
which are 2^-11 where 10 bits follow the leading one. Measured with the built-in target over 6,392 rows, in runs of 2 to
8 against one by one, twice the largest difference of a logit is 0.062 in float16, 0.028 in llama.cpp's f16."""

NEAR_COARSE = 2.0**-1
"""The same in 8 bits (unit of roundoff 2^-8): bfloat16 0.38, llama.cpp's q8_0 0.36. Other quantised weights meet
activations of 8 bits too."""


class HasText(Protocol):
    """A trial, its row in a table, or as much of one as decides whether its text is another's."""

    @property
    def token_ids(self) -> Sequence[int]: ...
    @property
    def margins(self) -> Sequence[float]: ...
    @property
    def precision(self) -> str: ...


class Divergence(msgspec.Struct, frozen=True):
    """The first generated token that differs, counted from 0; `margin` is how near the reference's own choice there was
    to being another one, in logits (None: not known)."""

    at: int
    margin: float | None
    precision: str

    @property
    def is_tie(self) -> bool:
        """Rounding explains it."""
        if self.precision == EXACT or self.precision.endswith(ROW_BY_ROW) or self.margin is None:
            return False
        return self.margin <= NEAR.get(self.precision, NEAR_COARSE)

    @property
    def text(self) -> str:
        """Like "token 37, top two 0.004 apart, bfloat16"."""
        apart = "" if self.margin is None else f", top two {self.margin:.2g} apart"
        return f"token {self.at}{apart}, {self.precision}"


def divergence(trial: HasText, reference: HasText) -> Divergence | None:
    """Where the token ids of `trial` first differ from those of `reference`; None when they do not."""
    own, expected = trial.token_ids, reference.token_ids
    if own == expected:
        return None
    pairs = enumerate(zip(own, expected, strict=False))
    at = next((i for i, (one, other) in pairs if one != other), min(len(own), len(expected)))
    margin = reference.margins[at] if at < len(reference.margins) else None
    return Divergence(at, margin, reference.precision)
