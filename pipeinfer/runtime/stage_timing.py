"""A stage that is timed: forwards over any number of rows and any context, as a rank's driver runs them."""

import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from pipeinfer.core.messages import TO_THE_END, KvSeqRm
from pipeinfer.engine.backend import Batch, ModelStage
from pipeinfer.engine.sampling import NotFinite, best_candidates, sample
from pipeinfer.runtime.control import Load, Measure

FILL_ROWS = 64
"""Context that is only there to be attended to is read this many rows at a time."""

LEAST_ROUNDS, MOST_ROUNDS = 3, 25

Seconds = tuple[tuple[float, ...], ...]


class Bench:
    """Times `stage`, which holds what `load` says.

    `abort` is what a driver gives the backend to look at. `rest` lets some time pass as a driver does when it waits: a
    rank mostly computes after a wait, in which its caches went to others, and that takes up to twice as long as a
    computation in a loop.
    """

    def __init__(self, stage: ModelStage, load: Load, abort: Callable[[], bool], rest: Callable[[], None]) -> None:
        self._stage = stage
        self._load = load
        self._abort = abort
        self._rest = rest
        self._filled = 0

    def close(self) -> None:
        """Close the stage."""
        self._stage.close()

    def measure(self, how: Measure) -> Seconds:
        """Seconds of a forward by context and rows. Every context has room for the most rows."""
        return tuple([self._row_times(how, context) for context in how.contexts])

    def _row_times(self, how: Measure, context: int) -> tuple[float, ...]:
        self._round(how, context)  # Memory is touched, and all code has run once.
        rounds: list[list[float]] = []
        end = time.monotonic() + how.seconds / len(how.contexts)
        most = MOST_ROUNDS if how.burst else float("inf")
        while len(rounds) < LEAST_ROUNDS or (time.monotonic() < end and len(rounds) < most):
            rounds.append(self._round(how, context))
        middle = np.median(rounds, axis=0) if how.burst else np.mean(rounds, axis=0)
        return tuple(middle.tolist())

    def _round(self, how: Measure, context: int) -> list[float]:
        """Each number of rows once, so that whatever else the host does meets all alike; the rows end at `context`."""
        times = []
        for count in sorted(how.rows, reverse=True):
            self._fill(context - count)
            if how.burst:
                self._rest()
            burst = [self._timed(context - count, count) for _ in range(how.burst or 1)]
            times.append(sum(burst) / len(burst))
        return times[::-1]

    def _timed(self, start: int, count: int) -> float:
        began, processor = time.monotonic(), time.thread_time()
        self._forward(start, count, count)
        if self._load.cpu_share < 1:
            until = began + (time.thread_time() - processor) / self._load.cpu_share
            time.sleep(max(0.0, until - time.monotonic()))
        seconds = time.monotonic() - began
        self._cut(start)
        return seconds

    def _fill(self, length: int) -> None:
        if self._filled > length:
            self._cut(length)
        while self._filled < length:
            count = min(FILL_ROWS, length - self._filled)
            self._forward(self._filled, count, 0)
            self._filled += count

    def _cut(self, length: int) -> None:
        self._stage.apply(KvSeqRm(0, length, TO_THE_END))
        self._filled = length

    def _forward(self, start: int, count: int, outputs: int) -> None:
        load = self._load
        positions = tuple(range(start, start + count))
        tokens = tuple([position % load.vocabulary for position in positions])
        hidden = None if load.layers[0] == 0 else np.full((count, load.hidden_size), 0.01, np.float32)
        output = self._stage.forward(Batch(tokens, positions, ((0,),) * count, outputs), hidden, self._abort)
        if output is None:
            raise Interrupted
        if load.outputs and load.candidates:
            best_candidates(output, positions, [load.sampling] * outputs, load.candidates)
        elif load.outputs:
            for row, position in zip(output, positions[count - outputs :], strict=True):
                with suppress(NotFinite):  # the hidden states are made up
                    sample(row, position + 1, load.sampling)


class Interrupted(Exception):  # noqa: N818 - reads as what happened
    """The head has withdrawn its request for the measurement."""
