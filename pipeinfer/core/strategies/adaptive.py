"""Speculation that measures its pipeline as it goes, and decodes in whichever way would now be the fastest.

Every few verified runs the closed forms of `pipeinfer.core.forecast` are worked out with what was measured: seconds of
each stage by rows, of links and draft, and how often the draft was right. What really came of the way in use corrects
its forecasts, since ranks that share cores slow one another down in ways that no part shows by itself.
"""

from collections import deque
from collections.abc import Sequence
from math import ceil, log
from typing import NamedTuple

from pipeinfer.core.forecast import Forecast
from pipeinfer.core.generation import Generation, Order, Strategy
from pipeinfer.core.messages import DraftSettings, RunKind
from pipeinfer.core.strategies.options import require
from pipeinfer.core.strategies.ways import Way, every_way
from pipeinfer.core.strategies.window import that_fit, unsent
from pipeinfer.core.tree import Node, Run

SWITCH, SAME_KIND, TREE = 0.94, 0.97, 0.85
"""Another way is taken when it would need at most this share of the time; one that differs in width alone, earlier; a
tree, whose hits are not known beforehand, later, and not before EVIDENCE verdicts on drafts."""

EVIDENCE = 24

HOPELESS = 1e-4
"""Nothing is drafted that becomes text with a smaller chance."""

LEAST_TOKENS = 8
"""Of a segment whose speed corrects the forecast."""

PRIOR_LEVELS, PRIOR_BRANCH = 12.0, 0.5
"""Before levels of a width were seen: as if so many had been, each further branch as good as so much of a first."""


class Segment(NamedTuple):
    """What the way in use is held against: since when, and how many tokens there were."""

    began: float
    tokens: int


class Adaptive(Strategy):
    """Chooses anew after every `every` verified runs. `cutoff` and `decay` are those of `pipeinfer`, for its chains."""

    cancels = True
    drafting = "by-width"

    def __init__(self, every: int = 6, cutoff: float = 0.3, decay: float = 0.05) -> None:
        require("every", every, 1, 1000)
        require("cutoff", cutoff, 0, 1)
        require("decay", decay, 0, 1)
        self.every, self.cutoff, self.decay = every, cutoff, decay
        self.way = Way("chain", 2)
        self.forecast_s = 0.0
        """Seconds per token that the way in use should take, corrected by what came; 0 until it is known."""
        self._row_cost = 0.0
        self._window = 0
        self._waiting: deque[list[Node]] = deque()
        self._ready = False
        self._until = -1
        self._seen = 0
        self._corrections: dict[str, float] = {}
        self._segment = Segment(0.0, 0)
        self._levels: dict[int, tuple[float, float]] = {}
        """Per width of a tree: levels that held the target's token, and all that were judged."""

    def conclusion(self) -> str:
        if not self.forecast_s:
            return f"settled on {self.way}: nothing measured"
        row = f"a further row costs {self._row_cost:.2f} of one"
        return f"settled on {self.way}: {row}, {1 / self.forecast_s:.1f} tokens/s expected"

    # What to send

    def started(self, generation: Generation) -> None:
        self._window = 2 * generation.pipe.pipeline.stages + 2

    def next_run(self, generation: Generation) -> Sequence[Node] | None:
        if self.way.kind == "synchronous":
            return self._round(generation)
        if not generation.covered():
            return [generation.tip]
        return None if self.way.kind == "plain" else self._micro_batch(generation)

    def _round(self, generation: Generation) -> Sequence[Node] | None:
        if generation.covered() or not self._ready:
            return None
        drafted = [node for nodes in self._waiting for node in nodes if node.alive and not node.committed]
        nodes = [generation.tip, *drafted[: self.way.k]]
        while len(nodes) > 1 and not generation.fits(nodes):
            nodes.pop()
        return nodes

    def _micro_batch(self, generation: Generation) -> Sequence[Node] | None:
        while self._waiting:
            nodes = unsent(self._waiting[0])
            if nodes:
                return that_fit(generation, nodes) if len(generation.pipe.in_flight) < self._window else None
            self._waiting.popleft()
        return None

    # What to draft

    def next_order(self, generation: Generation) -> Order:
        tip, kind, k = generation.tip.position, self.way.kind, self.way.k
        if kind == "synchronous":
            return Order(tip + (k if generation.generated else 0), DraftSettings(k, once=True))
        if kind == "plain":
            return Order(tip, DraftSettings(1, once=True))
        if kind == "tree":
            return Order(tip + self._window, DraftSettings(1, width=k))
        # The draft is let on by whole micro-batches: each commit's one token more would make a batch of one.
        reach = tip + self._reach(generation)
        if reach >= self._until + k or reach < self._until - k:
            self._until = reach
        return Order(self._until, DraftSettings(k, self.cutoff, decay=self.decay))

    def _reach(self, generation: Generation) -> int:
        """How far ahead of the text to draft: as far as the pipeline takes runs, and as there is any hope."""
        hope = ceil(log(HOPELESS) / log(min(0.99, generation.pipe.measured.acceptance)))
        return max(self.way.k, min(self._window * self.way.k, hope))

    def proposed(self, generation: Generation, nodes: list[Node], stalled: bool) -> None:
        self._waiting.append(nodes)
        self._ready = stalled

    def advanced(self, generation: Generation) -> None:
        if self.way.kind == "synchronous":
            self._waiting = deque([[node for nodes in self._waiting for node in nodes
                                    if node.alive and not node.committed]])  # fmt: skip
        self._ready = False
        self._seen += 1
        if self._seen >= self.every:
            self._seen = 0
            self._choose(generation)

    # Choosing

    def _choose(self, generation: Generation) -> None:
        if not Forecast.ready(generation.pipe.measured):
            return
        forecast = self.forecast(generation)
        self._correct(generation, forecast)
        ways = {way: seconds * self._corrections.get(way.kind, 1.0) for way, seconds in every_way(forecast, self._hit)}
        if self.way.kind != "tree" and generation.pipe.measured.verdicts < EVIDENCE:
            ways = {way: seconds for way, seconds in ways.items() if way.kind != "tree"}
        best = min(ways, key=lambda way: ways[way])
        enough = SAME_KIND if best.kind == self.way.kind else TREE if best.kind == "tree" else SWITCH
        if best != self.way and ways[best] < enough * ways.get(self.way, float("inf")):
            generation.note(self._why(best, ways[best], forecast))
            self.way = best
            self._segment = _now(generation)
        self.forecast_s, self._row_cost = ways.get(self.way, 0.0), forecast.width_cost
        self._window = max(2, forecast.window(self.way.k, self.way.forwards))

    def forecast(self, generation: Generation) -> Forecast:
        """Of this pipeline with this draft, as measured."""
        return Forecast(generation.pipe.measured)

    def _correct(self, generation: Generation, forecast: Forecast) -> None:
        """Hold the last segment against what its rounds, or its hits and misses, should have taken.

        What luck the draft had is thereby left out: it is for the acceptance to say.
        """
        tokens = len(generation.text) - self._segment.tokens
        if not self._segment.tokens:
            self._segment = _now(generation)
        if not self._segment.tokens or tokens < LEAST_TOKENS:
            return
        returned = _returned(generation, self._segment.began)
        misses = sum(run.kind is RunKind.SINGLE for run in returned)
        if self.way.kind == "tree":
            hits, seen = self._levels.get(self.way.k, (0.0, 0.0))
            self._levels[self.way.k] = (0.7 * hits + max(0, tokens - misses), 0.7 * seen + tokens)
        expected = self._expected(returned, misses, forecast, tokens)
        if expected > 0:
            ratio = (generation.pipe.now - self._segment.began) / expected
            before = self._corrections.get(self.way.kind, 1.0)
            self._corrections[self.way.kind] = min(4.0, max(0.5, before + 0.5 * (ratio - before)))
        self._segment = _now(generation)

    def _expected(self, runs: Sequence[Run], misses: int, forecast: Forecast, tokens: int) -> float:
        """Seconds that a segment in which these runs came back should take in this way."""
        way = self.way
        if way.kind == "plain":
            return tokens * forecast.plain_s()
        if way.kind == "synchronous":
            return sum(forecast.round_s(run.rows - 1) for run in runs)
        hits = sum(run.accepted > 0 for run in runs)
        refill = forecast.traversal_s(1) + forecast.restart_s(way.k, way.forwards)
        return misses * refill + hits * forecast.pace_s(way.k, way.forwards)

    def _hit(self, width: int, acceptance: float) -> float:
        """The chance that a level of so many branches holds the target's token, by those that were judged."""
        prior: float = 1 - (1 - acceptance) ** (1 + PRIOR_BRANCH * (width - 1))
        hits, seen = self._levels.get(width, (0.0, 0.0))
        return (hits + PRIOR_LEVELS * prior) / (seen + PRIOR_LEVELS)

    def _why(self, way: Way, seconds: float, forecast: Forecast) -> str:
        return (
            f"{way}: {1 / max(seconds, 1e-9):.1f} tokens/s expected; acceptance {forecast.acceptance:.2f}, a further "
            f"row costs {forecast.width_cost:.2f} of one, slowest stage {1e3 * forecast.slowest_s(1):.2f} ms, links "
            f"{1e3 * forecast.links_s:.2f} ms, draft {1e3 * forecast.draft_s:.2f} ms"
        )


def _now(generation: Generation) -> Segment:
    return Segment(generation.pipe.now, len(generation.text))


def _returned(generation: Generation, since: float) -> list[Run]:
    """Runs that came back since then, newest first."""
    found: list[Run] = []
    for run in reversed(generation.runs):
        if run.finished_at is not None:
            if run.finished_at <= since:
                break
            found.append(run)
    return found
