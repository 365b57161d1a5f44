"""Distributed speculative inference as an oracle: every draft is verified at once, on hardware without end.

Source: arXiv 2405.14105. Simulated only.
"""

from pipeinfer.core import theory
from pipeinfer.core.strategies.pipeinfer import PipeInfer

ALL = 4096
"""Runs in flight: as good as no bound."""


class Dsi(PipeInfer):
    """Each drafted token is sent as a run of its own as soon as there is one, and finds every stage free, as if there
    were a copy of the target for each run. It is never slower than plain decoding or synchronous speculation with the
    same draft, and so bounds what may be expected of schedulers without such hardware."""

    simulated_only = "a copy of the target for each run"
    endless_stages = True
    sweeps = {}  # noqa: RUF012 - it has no options
    sweeps_by_confidence = {}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(draft=1, cutoff=0.0, decay=0.0, in_flight=ALL)

    def limit(self, a: float, stages: int, draft: float) -> float:
        return theory.unbounded(a, draft)
