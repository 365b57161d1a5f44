"""What a service has done so far, in counts and seconds."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from pipeinfer.core.messages import NOT_CANCELLED
from pipeinfer.core.tree import Run


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A service at one moment. `done`: requests by the reason of their end. `stage_busy_s`: seconds for which each
    stage computed in `uptime_s`. Runs, drafts and tokens are counted since the start. `losses`: how often a rank was
    lost; `lacks`: what there was at first and is there no more, in words, like the `has_draft` model.

    `drafts` are the runs with drafted tokens that the target computed; `draft_tokens` and `accepted_tokens` those in
    them, `accepted_per_position` how many of the drafts had their 1st, 2nd, ... token accepted.
    """

    state: str
    lacks: str
    has_draft: bool
    stages: int
    losses: int
    running: int
    waiting: int
    done: dict[str, int]
    uptime_s: float
    runs_in_flight: int
    runs: int
    cancelled_runs: int
    stage_busy_s: tuple[float, ...]
    cells: int
    cells_used: int
    prompt_tokens: int
    cached_tokens: int
    draft_cached_tokens: int
    tokens: int
    drafts: int
    draft_tokens: int
    accepted_tokens: int
    accepted_per_position: tuple[int, ...]


class Counters:
    """Grows on the head's thread and is read from any."""

    def __init__(self, stages: int) -> None:
        self.done: Counter[str] = Counter()
        self.runs = self.cancelled = self.drafts = self.drafted = self.accepted = 0
        self.prompt_tokens = self.cached_tokens = self.draft_cached_tokens = self.tokens = self.losses = 0
        self.busy_s = [0.0] * stages
        self._per_position: Counter[int] = Counter()

    def came_back(self, runs: Sequence[Run]) -> None:
        """Runs that travelled as one have come back, and what they say was judged."""
        for stage, seconds in enumerate(runs[0].compute_s):
            self.busy_s[stage] += seconds
        for run in runs:
            self._count(run)

    def _count(self, run: Run) -> None:
        self.runs += 1
        if run.cancelled_at != NOT_CANCELLED:
            self.cancelled += 1
        elif run.drafted:
            self.drafts += 1
            self.drafted += run.drafted
            self.accepted += run.accepted
            self._per_position.update(range(run.accepted))

    def snapshot(self, **now: Any) -> Snapshot:
        """With what is true `now`."""
        return Snapshot(
            done=dict(self.done),
            runs=self.runs,
            cancelled_runs=self.cancelled,
            stage_busy_s=tuple(self.busy_s),
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            draft_cached_tokens=self.draft_cached_tokens,
            tokens=self.tokens,
            losses=self.losses,
            drafts=self.drafts,
            draft_tokens=self.drafted,
            accepted_tokens=self.accepted,
            accepted_per_position=tuple([self._per_position[at] for at in range(len(self._per_position))]),
            **now,
        )
