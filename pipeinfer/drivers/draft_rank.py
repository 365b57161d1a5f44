"""The rank that drafts."""

import time
from typing import Any

from pipeinfer.backend import Batch, ModelStage
from pipeinfer.core.drafter import Drafter, DraftOptions
from pipeinfer.core.effects import Abort, Apply, ComputeDraft, Drafted, Forward, Wake, Woken
from pipeinfer.core.messages import Begin, DraftFrom, Sampling
from pipeinfer.core.sampling import candidates
from pipeinfer.drivers.endpoint import Endpoint, unexpected
from pipeinfer.drivers.stage_rank import apply


class DraftWorker:
    """Performs a Drafter's effects with the draft model."""

    def __init__(self, endpoint: Endpoint, model: ModelStage) -> None:
        self.busy = False
        self._endpoint = endpoint
        self._model = model
        self._sampling = Sampling()
        self._drafter: Drafter | None = None
        self._work: ComputeDraft | None = None
        self._wake_at = float("inf")

    def take(self, message: Any, payload: bytes | memoryview) -> None:
        """A DraftFrom or a Begin."""
        if isinstance(message, DraftFrom):
            self._handle(message)
        elif isinstance(message, Begin):
            setup = self._endpoint.setup
            options = DraftOptions(**message.draft)  # type: ignore[arg-type]
            self._sampling = message.sampling
            self._drafter = Drafter(setup.cells, setup.sequences, message.context, options)
            self._wake_at = float("inf")
            self._model.clear()
        else:
            unexpected(message, "the draft rank")

    def next_wake(self) -> float:
        return self._wake_at

    def wake(self) -> None:
        self._wake_at = float("inf")
        self._handle(Woken())

    def _handle(self, event: Any) -> None:
        assert self._drafter is not None
        self._perform(self._drafter.handle(event))
        while self._work is not None and not self.busy and not self._endpoint.leaving:
            done = self._compute(self._work)
            self._perform(self._drafter.handle(done))

    def _perform(self, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, ComputeDraft):
                self._work = effect
            elif isinstance(effect, Apply):
                apply(self._model, effect.ops)
            elif isinstance(effect, Forward):
                self._endpoint.send(effect.message)
            elif isinstance(effect, Abort):
                self._endpoint.abort_requested = True
            elif isinstance(effect, Wake):
                self._wake_at = time.monotonic() + effect.delay

    def _compute(self, work: ComputeDraft) -> Drafted:
        self._work, self.busy = None, True
        start = self._endpoint.start()
        batch = Batch(work.tokens, work.positions, work.sequences, work.outputs)
        output = self._model.forward(batch, None, self._endpoint.poll)
        found: tuple[tuple[tuple[int, float], ...], ...] = ()
        if output is not None:
            positions = work.positions[len(work.positions) - work.outputs :]
            found = tuple(
                [
                    tuple(candidates(row, position + 1, self._sampling, work.count))
                    for row, position in zip(output, positions, strict=True)
                ]
            )
        seconds, aborted = self._endpoint.finish("draft", start, aborted=output is None)
        self.busy = False
        return Drafted(found, seconds, aborted)
