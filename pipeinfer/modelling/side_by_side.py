"""Strategies side by side on a cluster that need not exist: `pipeinfer.simulate`, and the command of that name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from pipeinfer import workload
from pipeinfer.modelling.acceptance import Acceptance, recorded
from pipeinfer.modelling.acceptance import acceptance as read_acceptance
from pipeinfer.modelling.platform import platform_of
from pipeinfer.modelling.simulate import BestFound, Limits, Setting, side_by_side
from pipeinfer.results.metrics import summary

PAPER = ("iterative", "speculative", "pipeinfer")
"""What the paper compares."""


class SideBySide(msgspec.Struct, frozen=True):
    """What was simulated (`models` on `cluster`), each strategy's trial with the options that were best, and the closed
    forms' limits in tokens/s."""

    models: str
    cluster: str
    setting: Setting
    strategies: tuple[BestFound, ...]
    limits: Limits

    @property
    def tokens_per_second(self) -> dict[str, float]:
        """Decoding speed of each strategy, the prompt left out."""
        return {found.strategy: found.tokens_per_second for found in self.strategies}

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """All metrics of each strategy, as `pipeinfer simulate --json` prints them: seconds, bytes, tokens/s."""
        return {found.strategy: summary(found.trial) for found in self.strategies}


def simulate(
    cluster: str = "haswell-gigabit",
    pair: str | None = None,
    *,
    strategies: Sequence[str] = (),
    nodes: int | None = None,
    draft_ranks: int | None = None,
    acceptance: str | float = "good",
    trace: str | Path | None = None,
    tokens: int = 128,
    prompt: int = 64,
    seed: int = 0,
    accounting: str = "same-ranks",
    width_cost: float = 1.0,
    sweep: bool = True,
) -> SideBySide:
    """Simulate strategies on a cluster profile, in virtual time.

    `cluster` and `pair` are names of workloads/clusters.toml and pairs.toml, or `cluster` is a file; a calibrated one
    has its own pair. `strategies` are the paper's three unless given. `nodes` counts all ranks, of which
    `draft_ranks` share the draft. `acceptance` is "poor", "good", a rate per drafted token from 0 to below 1, "varied
    good", or a recorded trace by name; `trace` is a file of `pipeinfer record` instead. `tokens` are generated after
    `prompt` tokens; `seed` draws which drafts are accepted. `accounting` is "same-ranks" or "as-published"
    (docs/fairness.md), `width_cost` scales the arithmetic per row. With `sweep` each strategy is shown at its best K
    or micro-batch, and cutoff.

    Raises ValueError, in one line, on what cannot be simulated.
    """
    where = platform_of(cluster, pair)
    if trace is not None:
        drafts = Acceptance(recorded(str(trace)).acceptance, trace=str(trace))
    else:
        drafts = read_acceptance(str(acceptance))
    setting = workload.convert(
        {"strategy": "", "nodes": nodes or where.ranks or 8, "acceptance": drafts.rate, "difficulty": drafts.difficulty,
         "trace": drafts.trace, "phases": drafts.phases, "seed": seed, "tokens": tokens, "prompt": prompt,
         "accounting": accounting, "width_cost": width_cost, "draft_ranks": draft_ranks or where.draft_ranks},
        Setting, "simulate:",
    )  # fmt: skip
    found = side_by_side(where.simulate, strategies or PAPER, setting, sweep)
    return SideBySide(where.models, where.title, setting, tuple(found), where.limits(setting))
