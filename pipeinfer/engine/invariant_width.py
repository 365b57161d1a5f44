"""How many rows an engine may compute at once without one of them having other bits than it has alone: measured."""

import numpy as np
from numpy.typing import NDArray

from pipeinfer.core.messages import TO_THE_END, KvSeqRm
from pipeinfer.engine.backend import ModelStage, chain

MOST_WIDE = 8
"""Wider pieces are not looked for: micro-batches have few rows."""

SEGMENTS = ((0, 16), (16, 112), (220, 300), (490, 570))
"""Of which rows of a text it is tried whether they are the same in pieces. Where rounding hides a difference in one
row, as in bfloat16 and quantised weights, those behind it show it. Kernels change at some lengths: llama.cpp pads its
cells to 256, and may share out one row's attention from 512 on."""

ROUNDING = 2.0**-21
"""By how much, relative to it, a sum of float32 differs that was added up in another order."""


def invariant_width(stage: ModelStage, *, cells: int, hidden_size: int) -> int:
    """Up to how many rows in one batch have, bit for bit, what each has alone; measured, on a text of its own that goes
    as far as the cells. `hidden_size` is 0 where the stage begins with tokens. The stage then holds nothing of use."""
    probe = _Probe(stage, min(cells, SEGMENTS[-1][1]), hidden_size)
    width = MOST_WIDE
    for start, stop in SEGMENTS:
        stop = min(stop, probe.length)
        if width == 1 or start >= stop:
            break
        probe.fill(start)
        alone = probe.compute(start, stop, 1)
        tried = range(2, width + 1)
        width = next((wide - 1 for wide in tried if not np.array_equal(probe.compute(start, stop, wide), alone)), width)
    return width if width > 1 and probe.sees_rounding(*SEGMENTS[0]) else 1


class _Probe:
    """A made-up text on `stage`, whose rows are computed again and again."""

    def __init__(self, stage: ModelStage, length: int, hidden_size: int) -> None:
        random = np.random.default_rng(0)
        self.length = length
        self._stage = stage
        self._tokens = random.integers(1, 8, length).tolist()
        self._hidden = random.standard_normal((length, hidden_size), np.float32) if hidden_size else None
        self._filled = 0
        stage.clear()

    def fill(self, length: int) -> None:
        if self._filled < length:
            self.compute(self._filled, length, length - self._filled)

    def compute(self, start: int, stop: int, width: int) -> NDArray[np.uint32]:
        """The bits of the rows from `start` on, computed in pieces."""
        self._stage.apply(KvSeqRm(0, start, TO_THE_END))
        found = []
        for first in range(start, stop, width):
            piece = slice(first, min(first + width, stop))
            batch = chain(self._tokens[piece], first, len(self._tokens[piece]))
            found.append(self._stage.forward(batch, None if self._hidden is None else self._hidden[piece], _never))
        self._filled = stop
        return np.concatenate([np.asarray(rows, np.float32) for rows in found]).view(np.uint32)

    def sees_rounding(self, start: int, stop: int) -> bool:
        """Whether hidden states that differ by as little as rounding does make different rows. Where the stage rounds
        all that away, as before a quantised matrix of outputs, that rows are equal says nothing of the next ones."""
        if self._hidden is None:
            return True
        before = self.compute(start, stop, 1)
        self._hidden *= np.float32(1 + ROUNDING)
        return bool((self.compute(start, stop, 1) != before).any(axis=1).mean() > 0.5)


def _never() -> bool:
    return False
