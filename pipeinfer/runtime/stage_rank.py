"""A rank that computes a stage: of the target, or of a draft on several ranks behind its first."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeinfer.core.effects import Abort, Apply, Compute, Computed, Forward
from pipeinfer.core.machine import Machine
from pipeinfer.core.messages import NO_TOKEN, CancelRun, Candidates, Decode, KvOp, RunKind
from pipeinfer.core.stage import Arrival, Stage
from pipeinfer.engine.backend import Batch, ModelStage
from pipeinfer.engine.exact import ExactStage
from pipeinfer.engine.sampling import NotFinite, Sampling, best_candidates, sample, sample_and_margin
from pipeinfer.errors import LaunchError
from pipeinfer.runtime.control import AddRequest, Begin
from pipeinfer.runtime.rank_links import Endpoint, unexpected
from pipeinfer.runtime.world import World

GREEDY = Sampling()

FLOAT = np.dtype(np.float32)

FEW_BYTES = 16 * 1024
"""So much is copied in less time than it takes to look at it in place."""

RUNS = (Decode, CancelRun)
"""What a stage is told of runs."""


class RunResults(NamedTuple):
    """Of a run, as in the stage's event `Computed`; of an aborted one there are none."""

    payload: bytes | memoryview | None = None
    ids: tuple[int, ...] = ()
    margins: tuple[float, ...] = ()
    candidates: Candidates = ()


class StageWorker(World):
    """Performs a Stage's effects with a model's layers."""

    def __init__(self, endpoint: Endpoint, model: ModelStage) -> None:
        self.busy = False
        self._endpoint = endpoint
        self._model = model
        self._stage = Stage(endpoint.setup.stage, endpoint.setup.stages)
        self._drafts = endpoint.setup.role == "draft"
        self._begin = Begin({})
        self._sampling: dict[int, Sampling] = {}
        self._work: Compute | None = None

    def now(self) -> float:
        return time.monotonic()

    def take(self, message: Any, payload: bytes | memoryview) -> None:
        """A Decode, a CancelRun, a Begin or an AddRequest."""
        if not isinstance(message, RUNS):
            self._prepare(message)
            return
        self.tell(self._stage, Arrival(message, payload) if isinstance(message, Decode) else message)
        while self._work is not None and not self.busy:
            self._compute(self._work)

    def _prepare(self, message: Any) -> None:
        """A Begin or an AddRequest."""
        if isinstance(message, Begin):
            self._begin = message
            self._sampling = dict(message.sampling)
            self._model.clear()
            self._pass_on(message)
        elif isinstance(message, AddRequest):
            add_request(self._sampling, message)
            if isinstance(self._model, ExactStage):
                self._model.end(message.over)
            self._pass_on(message)
        else:
            unexpected(message, "a stage")

    def _pass_on(self, message: Any) -> None:
        if not self._stage.is_last:
            self._endpoint.send(message)

    def next_wake(self) -> float:
        return float("inf")

    def wake_up(self) -> None:
        """Unused: a stage does not ask to be woken."""

    def forward(self, machine: Machine, effect: Forward) -> None:
        self._endpoint.send(effect.message, b"" if effect.payload is None else effect.payload)

    def apply(self, machine: Machine, effect: Apply) -> None:
        apply(self._model, effect.ops)

    def compute(self, machine: Machine, effect: Compute) -> None:
        self._work = effect

    def abort(self, machine: Machine, effect: Abort) -> None:
        self._endpoint.abort_requested = True

    def _compute(self, work: Compute) -> None:
        decode = work.decode
        self._work, self.busy = None, True
        start = self._endpoint.start()
        batch = Batch(decode.tokens, decode.positions, decode.sequences, decode.outputs, decode.requests)
        output = self._model.forward(batch, self._hidden(work), self._endpoint.poll)
        results = RunResults() if output is None else self._results(decode, output)
        seconds, aborted = self._endpoint.finish(partial(self._name, decode), start, aborted=output is None)
        self.busy = False
        if not self._endpoint.leaving:
            self.tell(self._stage, Computed(decode.run, seconds, aborted, *results))

    def _name(self, decode: Decode) -> str:
        return "draft" if self._drafts else f"{decode.kind.name.lower()} {decode.run}"

    def _hidden(self, work: Compute) -> NDArray[np.float32] | None:
        if self._stage.index == 0:
            return None
        hidden = np.frombuffer(work.payload, np.float32).reshape(work.came, -1)
        return hidden[list(work.keep)] if work.keep else hidden

    def _results(self, decode: Decode, output: NDArray[np.float32]) -> "RunResults":
        """What the engine's output comes to: hidden states to send on, sampled ids, or candidates."""
        if not self._stage.is_last:
            return RunResults(as_bytes(output))
        hows = samplings(self._sampling, decode.requests, decode.outputs)
        if self._drafts:
            return RunResults(candidates=best_candidates(output, decode.positions, hows, decode.candidates))
        positions = decode.positions[len(decode.positions) - decode.outputs :]
        chosen = [
            self._sample(decode.kind, row, position + 1, how)
            for row, position, how in zip(output, positions, hows, strict=True)
        ]
        ids = tuple([token for token, _ in chosen])
        margins = tuple([margin for _, margin in chosen]) if self._begin.margins else ()
        payload = as_bytes(output) if self._begin.logits_on_wire else None
        return RunResults(payload, ids, margins)

    def _sample(self, kind: RunKind, row: NDArray[np.float32], position: int, how: Sampling) -> tuple[int, float]:
        """The token at `position`, and its margin where that is wanted. Raises LaunchError where none can be chosen;
        after a guess, which may be wrong, that is for the head to judge."""
        try:
            return sample_and_margin(row, position, how) if self._begin.margins else (sample(row, position, how), 0.0)
        except NotFinite as problem:
            if kind is RunKind.SPECULATIVE:
                return NO_TOKEN, 0.0
            setup = self._endpoint.setup
            raise LaunchError(f"{setup.model} on rank {setup.rank} ({setup.backend}): {problem}") from problem


def add_request(known: dict[int, Sampling], message: AddRequest) -> None:
    """Note how the tokens of one more request are chosen, and forget those that are over."""
    for request in message.over:
        known.pop(request, None)
    known[message.request] = message.sampling


def samplings(known: Mapping[int, Sampling], requests: Sequence[int], outputs: int) -> list[Sampling]:
    """That of each output row, by the requests of all rows, or the one of all of them."""
    if len(requests) == 1:
        return [known.get(requests[0], GREEDY)] * outputs
    return [known.get(request, GREEDY) for request in requests[len(requests) - outputs :]]


def apply(model: ModelStage, ops: tuple[KvOp, ...]) -> None:
    """Apply KV operations in order."""
    for op in ops:
        model.apply(op)


def as_bytes(array: NDArray[np.float32]) -> bytes | memoryview:
    """The array's bytes: its own, without a copy, where it is contiguous float32 and large."""
    if array.nbytes <= FEW_BYTES and array.dtype == FLOAT:
        return array.tobytes()
    return np.ascontiguousarray(array, FLOAT).data.cast("B")
