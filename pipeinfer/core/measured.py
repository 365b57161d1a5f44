"""What the scheduler sees of its pipeline as it goes: seconds of stages by rows, of links and draft; acceptance.

Averages forget: what matters is how things are now (another rank may share the core, the text may change its kind).
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from copy import copy
from math import ceil
from typing import Any

from pipeinfer.core.messages import RunKind
from pipeinfer.core.tree import Run

FORGET = 0.2
"""Weight of the newest value in an average; the first ones count in full."""

WINDOW = 40
"""Verdicts that are kept per place in a run."""

MOST_NEW = 256
"""Results that are kept until somebody asks for an average. Older ones would have next to no weight in it."""

RISE = 0.1
"""By so much of the difference what links take at least is raised when a run that was alone takes longer: one that was
uncommonly fast is not remembered for ever."""

PRIOR_RIGHT, PRIOR_SEEN = 3.0, 4.5
"""As if the draft had been right in so many of so many cases before any verdict."""

LEAST_POWER = 0.2
"""Of the draft's confidences, beyond which they would say next to nothing."""

PRIOR_OTHERS = 6.0
"""As if its second choice had been held against the target's so often, where the first was wrong."""


class StageTimes:
    """Of each stage, an average that forgets of the seconds that so many rows take, and how many it is of."""

    __slots__ = ("counts", "seconds")

    def __init__(self, stages: int) -> None:
        self.seconds = [0.0] * stages
        self.counts = [0] * stages

    def add(self, seconds: Iterable[float | None]) -> None:
        """One computation of every stage; None: of so many rows this one had none."""
        for stage, value in enumerate(seconds):
            if value is not None:
                self.counts[stage] = count = self.counts[stage] + 1
                self.seconds[stage] += (value - self.seconds[stage]) * max(FORGET, 1 / count)

    def scaled(self, factor: float) -> "StageTimes":
        """The same with this share of the seconds."""
        found = StageTimes(len(self.counts))
        found.counts, found.seconds = self.counts, [factor * seconds for seconds in self.seconds]
        return found


class Measured:
    """Seconds per stage of a pipeline of `stages`, keyed by rows; of its links; of the draft; and acceptance. Where its
    ranks share cores (`shared`), seconds are those of a rank that computes while no other does, as far as there were
    any: how much longer it takes among others hangs on how many they are."""

    def __init__(self, stages: int, *, shared: bool = False) -> None:
        self.learned: dict[str, Any] = {}
        """What strategies found out of the pipeline by themselves, by their names."""
        self._expected = PRIOR_RIGHT / PRIOR_SEEN
        """How often the draft is held to be right before any verdict."""
        self._shared = shared
        self._rows: dict[int, StageTimes] = {}
        self._crowded: dict[int, StageTimes] = {}
        """On shared cores, of runs that were not alone in the pipe."""
        self._known = self._rows
        self._links: dict[int, float] = {}
        self._new: deque[tuple[Sequence[int], Run, bool]] = deque(maxlen=MOST_NEW)
        self.right: dict[int, deque[bool]] = defaultdict(lambda: deque(maxlen=WINDOW))
        """Newest verdicts on drafted tokens whose predecessors were right, by how many of their run came before."""
        self.prompt: list[tuple[int, float]] = []
        """Of each stage, rows and seconds of the widest part of a prompt."""
        self._others: deque[bool] = deque(maxlen=WINDOW)
        self._confidences: deque[float] = deque(maxlen=WINDOW)
        self.stages = stages
        self._forwards: dict[int, tuple[float, int]] = {}
        """Of the draft, per number of rows an average that forgets of their seconds, and how many it is of."""

    def for_another_text(self) -> "Measured":
        """What is known of the pipeline when another text begins on it: all that takes time. The draft may be better or
        worse at that one, and is held to be as good as at the last until a few verdicts say otherwise."""
        self._take_in()
        found = copy(self)
        found._new = deque(maxlen=MOST_NEW)
        found._expected = self.acceptance
        found.right = defaultdict(lambda: deque(maxlen=WINDOW))
        found._others, found._confidences = deque(maxlen=WINDOW), deque(maxlen=WINDOW)
        return found

    def run(self, run: Run, computed: Sequence[int], *, alone: bool = True) -> None:
        """A run came back whole, of which each stage has computed so many rows. `alone`: no other was under way with
        it."""
        self._new.append((computed, run, alone))

    @property
    def rows(self) -> dict[int, StageTimes]:
        """Per number of rows, each stage's computation."""
        self._take_in()
        return self._known

    @property
    def links_s(self) -> float:
        """All links of a traversal together, messages handled: about the least that a run was under way beside
        computing."""
        self._take_in()
        return min(self._links.values(), default=float("inf"))

    @property
    def links_row_s(self) -> float:
        """What they take longer for each row more, by the least for each number of rows."""
        self._take_in()
        narrow = min(self._links, key=lambda rows: (self._links[rows], rows), default=0)
        more = [(least - self._links[narrow]) / (rows - narrow) for rows, least in self._links.items() if rows > narrow]
        return min(more, default=0.0)

    def _take_in(self) -> None:
        """Average what has come since somebody last asked: for every result it would be a good part of handling it."""
        for computed, run, alone in self._new:
            if len(run.compute_s) != len(computed) or len(computed) != self.stages:
                continue
            assert run.finished_at is not None
            beside = run.finished_at - run.submitted_at - sum(run.compute_s)
            least = self._links.get(computed[0], beside)
            if beside > least:  # Waiting for runs before it tells nothing of the links.
                beside = least + RISE * (beside - least) if alone else least
            self._links[computed[0]] = beside
            taken = list(zip(computed, run.compute_s, strict=True))
            if run.kind is not RunKind.PROMPT:
                known = self._crowded if self._shared and not alone else self._rows
                for rows in set(computed):
                    times = known.setdefault(rows, StageTimes(self.stages))
                    times.add([seconds if one == rows else None for one, seconds in taken])
            elif not self.prompt or computed[0] >= self.prompt[0][0]:
                self.prompt = taken
        if self._new and self._crowded:
            self._known = as_if_alone(self._rows, self._crowded)
        self._new.clear()

    def draft(self, seconds: float, rows: float = 1.0, *, alone: bool = True) -> None:
        """A forward of the draft over so many rows took so long. `alone`: no run was under way."""
        if alone or not self._shared or not self._forwards:
            mean, count = self._forwards.get(round(rows), (0.0, 0))
            mean += (seconds - mean) * max(FORGET, 1 / (count + 1))
            self._forwards[round(rows)] = mean, count + 1

    @property
    def draft_s(self) -> float:
        """One forward of the draft over few rows; 0 until it is known."""
        return self._forwards[min(self._forwards)][0] if self._forwards else 0.0

    @property
    def draft_row_s(self) -> float | None:
        """What each further row of it takes; None: not known."""
        if len(self._forwards) < 2:
            return None
        few, many = min(self._forwards), max(self._forwards)
        return max(0.0, self._forwards[many][0] - self._forwards[few][0]) / (many - few)

    def traversal_s(self, rows: int) -> float:
        """Seconds from submission to result of a run of about so many rows, in an empty pipe; 0 until it is known."""
        if not self.rows:
            return 0.0
        nearest = min(self.rows, key=lambda known: (abs(known - rows), known))
        return sum(self.rows[nearest].seconds) + self.links_s

    def verdict(self, depth: int, right: bool, confidence: float = 1.0) -> None:
        """The target spoke about a drafted token with `depth` drafted ones before it in its run."""
        self._confidences.append(confidence)
        self.right[depth].append(right)

    def second(self, right: bool) -> None:
        """The target spoke about the draft's second choice, its first being wrong."""
        self._others.append(right)

    @property
    def other(self) -> float:
        """The chance that the second choice is right where the first is not. Before there were any, as good as the
        first."""
        return (sum(self._others) + PRIOR_OTHERS * self.acceptance) / (len(self._others) + PRIOR_OTHERS)

    @property
    def discount(self) -> float:
        """By which the draft's confidences have to be multiplied to say how often it is right; not above 1."""
        return min(1.0, self.acceptance / max(self.mean_confidence(1.0), 1e-3))

    @property
    def power(self) -> float:
        """To which they have to be raised where it is right more often than they say: `LEAST_POWER` to 1. A target that
        takes the likeliest token takes it for sure, however many others might follow."""
        low, high = LEAST_POWER, 1.0
        if self.mean_confidence(high) >= self.acceptance:
            return high
        for _ in range(5):
            middle = (low + high) / 2
            low, high = (middle, high) if self.mean_confidence(middle) > self.acceptance else (low, middle)
        return high

    def mean_confidence(self, power: float = 1.0) -> float:
        """Of the draft's first choices, each raised to this power."""
        total: float = sum([confidence**power for confidence in self._confidences])
        return (total + PRIOR_SEEN) / (len(self._confidences) + PRIOR_SEEN)

    @property
    def slots(self) -> int:
        """Runs that a traversal has room for."""
        return ceil(self.traversal)

    @property
    def traversal(self) -> float:
        """Links and all, in times of the slowest stage. As many as there are stages before anything was measured."""
        runs = float(self.stages)
        for times in self.rows.values():
            slowest = max(times.seconds)
            if min(times.counts) and slowest > 0:
                runs = max(runs, (sum(times.seconds) + self.links_s) / slowest)
        return min(runs, 4.0 * self.stages)

    @property
    def acceptance(self) -> float:
        """The chance that a drafted token is right where its predecessors were."""
        right, seen = sum(map(sum, self.right.values())), sum(map(len, self.right.values()))
        return (right + PRIOR_SEEN * self._expected) / (seen + PRIOR_SEEN)


def as_if_alone(alone: dict[int, StageTimes], crowded: dict[int, StageTimes]) -> dict[int, StageTimes]:
    """Of numbers of rows that were only computed among others, what they would take alone: as much less as others took
    that were computed in both ways. Where there are none, nothing is known of these."""
    if not alone:
        return crowded
    both = [rows for rows in crowded if rows in alone]
    if not both:
        return alone
    less = min(1.0, sum(sum(alone[rows].seconds) for rows in both) / sum(sum(crowded[rows].seconds) for rows in both))
    return {**{rows: times.scaled(less) for rows, times in crowded.items()}, **alone}
