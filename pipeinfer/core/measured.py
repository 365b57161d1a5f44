"""What the scheduler sees of its pipeline as it goes: seconds of stages by rows, of links and draft; acceptance.

Averages forget: what matters is how things are now (another rank may share the core, the text may change its kind).
"""

from collections import deque
from collections.abc import Sequence

from pipeinfer.core.messages import RunKind
from pipeinfer.core.tree import Node, Run

FORGET = 0.2
"""Weight of the newest value in an average; the first ones count in full."""

WINDOW = 40
"""Verdicts that are kept per place in a run."""

PRIOR_RIGHT, PRIOR_SEEN = 1.2, 2.0
"""As if the draft had been right in so many of so many cases before any verdict."""


class Average:
    """An average that forgets."""

    __slots__ = ("count", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.count = 0

    def add(self, value: float) -> None:
        self.count += 1
        self.value += (value - self.value) * max(FORGET, 1 / self.count)


class Measured:
    """Seconds per stage of a pipeline of `stages`, keyed by rows; of its links; of the draft; and acceptance."""

    def __init__(self, stages: int) -> None:
        self.rows: dict[int, tuple[Average, ...]] = {}
        """Per number of rows, each stage's computation."""
        self.links_s = float("inf")
        """All links of a traversal together, messages handled: the least that a run was under way beside computing."""
        self.draft_s = 0.0
        """One forward of the draft over few rows; 0 until it is known."""
        self.right: dict[int, deque[bool]] = {}
        """Newest verdicts on drafted tokens whose predecessors were right, by how many of their run came before."""
        self._stages = stages
        self._draft = Average()

    def run(self, run: Run, computed: Sequence[int]) -> None:
        """A run came back whole, of which each stage has computed so many rows."""
        if run.kind is RunKind.PROMPT or len(run.compute_s) != len(computed) or run.finished_at is None:
            return
        if len(computed) != self._stages:
            return
        for stage, (rows, seconds) in enumerate(zip(computed, run.compute_s, strict=True)):
            averages = self.rows.setdefault(rows, tuple([Average() for _ in range(self._stages)]))
            averages[stage].add(seconds)
        self.links_s = min(self.links_s, run.finished_at - run.submitted_at - sum(run.compute_s))

    def draft(self, seconds: float) -> None:
        """A forward of the draft took so long."""
        self._draft.add(seconds)
        self.draft_s = self._draft.value

    def traversal_s(self, rows: int) -> float:
        """Seconds from submission to result of a run of about so many rows, in an empty pipe; 0 until it is known."""
        if not self.rows:
            return 0.0
        nearest = min(self.rows, key=lambda known: (abs(known - rows), known))
        return sum(average.value for average in self.rows[nearest]) + self.links_s

    def verdict(self, depth: int, right: bool) -> None:
        """The target spoke about a drafted token with `depth` drafted ones before it in its run."""
        self.right.setdefault(depth, deque(maxlen=WINDOW)).append(right)

    @property
    def verdicts(self) -> int:
        """How many are remembered."""
        return sum(len(verdicts) for verdicts in self.right.values())

    @property
    def acceptance(self) -> float:
        """The chance that a drafted token is right where its predecessors were."""
        right = sum(sum(verdicts) for verdicts in self.right.values())
        return (right + PRIOR_RIGHT) / (self.verdicts + PRIOR_SEEN)

    def survival(self, tip: Node, node: Node) -> float:
        """The chance that a node becomes text, by its distance from the tip."""
        return float(self.acceptance ** (node.position - tip.position))
