"""The plug-in: models `target` and `draft`, whose forward passes are waits."""

import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeinfer.core.messages import KvOp
from pipeinfer.core.strategies.options import require
from pipeinfer.engine.backend import (
    AbortCheck,
    BadModel,
    Batch,
    Hidden,
    ModelInfo,
    Token,
    check_layers,
    context_of,
)
from pipeinfer.engine.counted_cells import CountedCells
from pipeinfer.modelling.profile import Curve
from pipeinfer.runtime.oracle import RANKS, Oracle, Trace, independent, read_trace
from pipeinfer_emulated.measured import MeasuredRank, Seconds

NAP_S = 5e-4
"""A wait looks at the abort flag this often."""

SPIN_S = 5e-5
"""A sleep ends about this late, so the last stretch of a wait is looked away instead."""

CERTAIN = 1e4
"""A logit above all others by so much that no temperature changes the choice."""

RANGES: list[tuple[tuple[str, ...], float, float]] = [
    (("layers", "draft_layers"), 1, 10_000),
    (("layer_s", "row_s", "draft_s", "draft_row_s"), 0, 86_400),
    (("acceptance",), 0, 1),
    (("seed",), 0, 2**63 - 1),
    (("hidden_size",), 1, 2**20),
    (("draft_hidden_size",), 0, 2**20),
    (("context",), 1, 2**31 - 1),
    (("vocabulary",), 0, 2**24),
]
"""Options, and the least and the most that each may be."""


class EmulatedBackend:
    """`layer_s` seconds per target layer for one row, `row_s` more per further row; `draft_s` and `draft_row_s` for a
    whole forward of the draft, which has `draft_layers` layers of width `draft_hidden_size` (0: the target's). `waits`
    may instead give a curve (`pipeinfer.modelling.profile.Curve`) for each share of a model that is loaded: under
    "target 0-10" for layers [0, 10), under "draft 0-1" for the draft. Or all is taken from `profile`, a file of
    `pipeinfer calibrate`, as it was measured of rank `rank`. The draft is right with probability `acceptance`,
    independently (seeded by `seed`), or as `trace` says: a file of `pipeinfer record`, or such a trace itself.
    `vocabulary` makes rows of logits longer than the oracle needs them.

    `builtin:target` and `builtin:draft` name the same two models, so that the defaults of the command line work.
    """

    def __init__(
        self,
        layers: int = 32,
        layer_s: float = 1e-3,
        row_s: float = 0.0,
        draft_s: float = 2e-3,
        draft_row_s: float = 0.0,
        acceptance: float = 0.7,
        seed: int = 0,
        hidden_size: int = 64,
        context: int = 4096,
        trace: str | Mapping[str, Any] | None = None,
        waits: Mapping[str, Any] | None = None,
        vocabulary: int = 0,
        profile: str | None = None,
        rank: int = 0,
        draft_layers: int = 1,
        draft_hidden_size: int = 0,
    ) -> None:
        given = locals()
        for names, low, high in RANGES:
            for name in names:
                require(name, given[name], low, high)
        self._layers, self._draft_layers = layers, draft_layers
        self._hidden_size, self._context = hidden_size, context
        self._draft_hidden_size = draft_hidden_size or hidden_size
        self._target_s, self._target_row_s = layer_s, row_s
        self._draft_s, self._draft_row_s = draft_s, draft_row_s
        self._oracle = _oracle(trace, acceptance, seed)
        self._vocabulary = max(vocabulary, self._oracle.vocabulary)
        self._waits = None if waits is None else msgspec.convert(waits, dict[str, Curve])
        self._measured = MeasuredRank(profile, rank) if profile else None

    @staticmethod
    def prepare(models: Sequence[str]) -> None:
        """All that it takes is imported with this module."""

    def info(self, model: str) -> ModelInfo:
        layers, width = (self._layers, self._hidden_size) if _role(model) == "target" else (
            self._draft_layers, self._draft_hidden_size)  # fmt: skip
        info = ModelInfo(
            architecture="emulated",
            layers=layers,
            hidden_size=width,
            vocabulary=self._vocabulary,
            vocabulary_digest="emulated",
            context=self._context,
            layer_bytes=0,
            head_bytes=0,
        )
        return self._measured.describe(_role(model), info) if self._measured else info

    def device_bytes(self) -> int | None:
        """What the emulated rank has for a model; None: nothing is known of it."""
        return self._measured.memory_bytes if self._measured else None

    def load(self, model: str, layers: tuple[int, int], *, cells: int, sequences: int) -> "EmulatedStage":
        info = self.info(model)
        check_layers(layers, info.layers, model)
        first, stop = layers
        head = _OracleHead(self._oracle, _role(model), self._vocabulary) if stop == info.layers else None
        return EmulatedStage(self._seconds(_role(model), first, stop), info.hidden_size, head, cells, sequences)

    def _seconds(self, role: str, first: int, stop: int) -> Seconds:
        """What a forward of layers [first, stop) takes. Raises BadModel."""
        if self._measured is not None:
            return self._measured.seconds(role, first, stop)
        if self._waits is not None:
            name = f"{role} {first}-{stop}"
            if name not in self._waits:
                raise BadModel(f'the waits have no "{name}"; they have: {", ".join(self._waits)}')
            return self._waits[name].at
        layer, layer_row = (self._target_s, self._target_row_s) if role == "target" else (
            self._draft_s / self._draft_layers, self._draft_row_s / self._draft_layers)  # fmt: skip
        base, row = layer * (stop - first), layer_row * (stop - first)
        return lambda rows, _: base + row * (rows - 1)

    def tokenizer(self, model: str) -> "NumberTokenizer":
        _role(model)
        return NumberTokenizer(self._oracle.vocabulary)


def _oracle(trace: str | Mapping[str, Any] | None, acceptance: float, seed: int) -> Oracle:
    if isinstance(trace, str):
        return read_trace(Path(trace))
    return msgspec.convert(trace, Trace) if trace else independent(acceptance, seed=seed)


class EmulatedStage:
    """Waits, and counts cells, so that capacity and sequence tags behave as in a real backend."""

    def __init__(
        self, seconds: Seconds, hidden_size: int, head: "_OracleHead | None", cells: int, sequences: int
    ) -> None:
        self.beside = partial(EmulatedStage, seconds, hidden_size, head, cells, sequences)
        """Another stage with cells of its own."""
        self._seconds = seconds
        self._hidden_size = hidden_size
        self._head = head
        self._cells = CountedCells(cells, sequences)

    def forward(self, batch: Batch, hidden: Hidden | None, abort: AbortCheck) -> NDArray[np.float32] | None:
        start = time.monotonic()
        seconds = self._seconds(len(batch.tokens), context_of(batch.positions, batch.requests))
        self._cells.take(batch.positions, batch.sequences)
        computed = False
        try:
            result = self._result(batch)  # within the time that the wait takes
            computed = wait_until(start + seconds, abort)
        finally:
            if not computed:
                self._cells.give_back()
        return result if computed else None

    def _result(self, batch: Batch) -> NDArray[np.float32]:
        rows = len(batch.tokens)
        if self._head is None:
            return np.zeros((rows, self._hidden_size), np.float32)
        return self._head.logits(batch.positions[rows - batch.outputs :])

    def apply(self, op: KvOp) -> None:
        self._cells.apply(op)

    def clear(self) -> None:
        self._cells.clear()

    def close(self) -> None:
        """Nothing is held."""


class _OracleHead:
    """Logits that make the sampler choose the oracle's token, or give the draft's candidates their confidence."""

    def __init__(self, oracle: Oracle, role: str, vocabulary: int) -> None:
        self._oracle = oracle
        self._role = role
        self._vocabulary = vocabulary

    def logits(self, positions: Sequence[int]) -> NDArray[np.float32]:
        rows = np.full((len(positions), self._vocabulary), -CERTAIN, np.float32)
        for row, position in zip(rows, positions, strict=True):
            if self._role == "target":
                row[self._oracle.target(position + 1)] = CERTAIN
            else:
                found = self._oracle.candidates(position + 1, RANKS)
                # What is left is spread over all others, so that each candidate has the oracle's confidence.
                rest = max(1 - sum(confidence for _, confidence in found), 1e-30) / self._vocabulary
                row[:] = np.log(rest)
                for k, (token, confidence) in enumerate(found):
                    row[token] = np.log(max(confidence, rest * (1 + 0.01 * (RANKS - k))))  # in the oracle's order
        return rows


class NumberTokenizer:
    """Made-up tokens have no text: each is written as its number. Any text becomes one token per word."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        return [sum(word.encode()) % self._vocabulary for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(f" {token}" for token in ids)

    def tokens(self) -> Mapping[int, Token]:
        return {token: Token(str(token), special=False) for token in range(self._vocabulary)}

    def chat_template(self) -> None:
        """There is no text."""


def wait_until(deadline: float, abort: AbortCheck) -> bool:
    """Wait until `deadline` on the monotonic clock, looking at `abort` every NAP_S; False as soon as it is true."""
    while True:
        if abort():
            return False
        left = deadline - time.monotonic()
        if left <= 0:
            return True
        if left > SPIN_S:
            time.sleep(min(left - SPIN_S, NAP_S))
        else:
            os.sched_yield()


def _role(model: str) -> str:
    role = model.removeprefix("builtin:")
    if role not in ("target", "draft"):
        raise BadModel(f'expected the emulated model "target" or "draft", came "{model}"')
    return role
