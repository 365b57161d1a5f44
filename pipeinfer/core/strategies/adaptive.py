"""Speculation that measures its pipeline as it goes, and decodes in whichever way would now be the fastest.

Every few verified runs the closed forms of `forecast` are worked out with what was measured: seconds of each stage by
rows, of links and draft, and how often the draft was right. What really came of the way in use corrects its forecasts,
since ranks that share cores slow one another down in ways that no part shows by itself.
"""

from collections.abc import Sequence
from math import inf

from pipeinfer.core.generation import Generation, Order, Strategy
from pipeinfer.core.messages import DraftSettings
from pipeinfer.core.strategies.forecast import Forecast
from pipeinfer.core.strategies.options import require
from pipeinfer.core.strategies.ways import PLAIN, Experience, Segment, Way, among_others, expected_s, least_chance
from pipeinfer.core.strategies.window import that_fit
from pipeinfer.core.tree import SURE, Node, chance

SWITCH = 0.97
"""Another way is taken when it would need at most this share of the time."""

DEEPEST = 32
"""Levels beyond the text to which a tree may grow."""

MOST_NODES = 256
"""Undecided tokens of a tree."""

HOPELESS = 0.01
"""Nothing is sent that becomes text with a smaller chance, even where rows are free."""

TO_DEPTH, LEAST_DISCOUNT, STEP = 0.75, 0.5, 0.05
"""The discount on the draft's confidences is what was measured to this power, since a tree that is too shallow costs
more than one that is too deep; no less than this; and rounded like all of an order, since each change is another."""

LEAST_TOKENS = 8
"""Of a segment whose speed corrects the forecast."""


class Adaptive(Strategy):
    """Chooses anew after every `every` verified runs; at first, as soon as one has come back."""

    cancels = True
    drafting = "frontier"

    def __init__(self, every: int = 6) -> None:
        require("every", every, 1, 1000)
        self.every = every
        self.way = Way("runs", 4)
        self.forecast_s = 0.0
        """Seconds per token that the way in use should take, corrected by what came; 0 until it is known."""
        self._times: Forecast | None = None
        self._width = 4
        self._least = HOPELESS
        self._window = 0
        self._rating = (1.0, 1.0)
        self._waiting: list[Node] = []
        self._chances: dict[Node, float] = {}
        """That nodes become text, by the rating and the text as they are now."""
        self._rests = False
        self._seen, self._first = 0, 1
        self._experience = Experience(shared=False)
        self._segment = self._advanced = Segment(0.0, 0)

    @property
    def sends_all(self) -> bool:  # type: ignore[override]
        return self.way.kind == "chain"

    def conclusion(self) -> str:
        if self._times is None:
            return f"settled on {self.way}: nothing measured"
        row = f"a further row costs {self._times.width_cost:.2f} of one"
        return f"settled on {self.way}: {row}, {1 / max(self.forecast_s, 1e-9):.1f} tokens/s expected"

    # What to send

    def started(self, generation: Generation) -> None:
        self._window = generation.pipe.measured.slots + 2
        self._rate(generation)
        pipeline = generation.pipe.pipeline
        begun = Experience(shared=pipeline.ranks_per_core > 1)
        self._experience = generation.pipe.measured.learned.setdefault(self.name, begun)
        if pipeline.stages == 1 and not pipeline.rationed:
            self.way, self._first = Way("chain", 4), self.every
        elif pipeline.ranks_per_core > 1:
            self.way, self._first = Way("synchronous", 3), 3  # Then one row was measured, and several.
        elif pipeline.rationed:
            self.way = PLAIN  # A wide run would use up the rations of those behind it.
        self._segment = self._advanced = Segment.now(generation)
        if Forecast.ready(generation.pipe.measured):
            self._choose(generation)  # What an earlier request measured holds for this one.

    def next_run(self, generation: Generation) -> Sequence[Node] | None:
        kind, rows = self.way
        if kind == "plain":
            return None if generation.covered() else [generation.tip]
        if kind != "runs":
            return self._round(generation, rows if kind == "rounds" else rows + 1, waits=kind != "chain")
        if not generation.covered():
            return that_fit(generation, [generation.tip, *self._likeliest(generation, rows - 1)]) or [generation.tip]
        if not self._waiting or len(generation.pipe.in_flight) >= self._window:
            return None
        if not generation.stalled and self._is_busy(generation):
            return None  # There may be a better choice by then.
        nodes = self._likeliest(generation, rows)
        if len(nodes) < rows and not generation.stalled and generation.pipe.pipeline.ranks_per_core > 1:
            return None  # What is under way has the cores meanwhile, and a run of few rows takes nearly as long.
        return that_fit(generation, nodes) if nodes else None

    def _is_busy(self, generation: Generation) -> bool:
        """The first stage will still be computing what was sent."""
        if self._times is None:
            return len(self._waiting) < self.way.rows
        free = 0.0
        for run in generation.in_flight:
            if run.cancel_sent_at is None:
                free = max(free, run.submitted_at) + self._times.first_s(run.rows)
        return free > generation.pipe.now

    def _round(self, generation: Generation, rows: int, *, waits: bool) -> Sequence[Node] | None:
        """One run at a time; it `waits` for as many rows as it may have, unless no more are coming."""
        if generation.covered() or generation.in_flight:
            return None
        if not generation.pipe.measured.rows:
            return [generation.tip]  # It tells what one row takes, while the draft reads the prompt.
        waits = waits and not generation.stalled
        if waits and len(self._waiting) < rows - 1:
            return None
        drafted = self._likeliest(generation, rows - 1)
        if waits and len(drafted) < rows - 1:
            return None
        return that_fit(generation, [generation.tip, *drafted]) or [generation.tip]

    def _likeliest(self, generation: Generation, most: int) -> list[Node]:
        """The nodes that were not sent, the likeliest first: a parent before its children, which are less likely."""
        waiting = [node for node in self._waiting if node.alive and node.run is None and not node.committed]
        chances = {node: self._chance(node) for node in waiting}
        self._waiting = waiting
        hopeful = [node for node in waiting if chances[node] >= self._least]
        return sorted(hopeful, key=lambda node: (-chances[node], node.position))[:most]

    def _chance(self, node: Node) -> float:
        """That it becomes text."""
        if node.committed or node.parent is None:
            return 1.0
        likely = self._chances.get(node)
        if likely is None:
            discount, power = self._rating
            first = next(iter(node.parent.children.values())).confidence
            likely = self._chance(node.parent) * discount * chance(node.confidence, first, power)
            self._chances[node] = likely
        return likely

    # What to draft

    def next_order(self, generation: Generation) -> Order | None:
        tip, (kind, rows) = generation.tip.position, self.way
        if kind == "plain":  # One order that nothing is wanted; then the draft takes no time from anybody.
            rests, self._rests = self._rests, True
            return None if rests else Order(tip, DraftSettings(1, once=True))
        self._rests = False
        if kind == "synchronous":
            until = tip + (rows if generation.begun else 0)
            return Order(until, self._settings(rows, 1, rows))
        if kind == "chain":
            return Order(tip + rows, self._settings(1, 1, rows))
        ahead = 0.5 + generation.pipe.measured.acceptance  # A good draft's branches are long: more of them come true.
        undecided = 6 * rows + 32 if kind == "rounds" else rows * (round(ahead * self._window) + 2)
        return Order(tip + DEEPEST, self._settings(1, self._width, min(MOST_NODES, undecided)))

    def _settings(self, micro_batch: int, width: int, nodes: int) -> DraftSettings:
        cutoff = self._least if self._least > HOPELESS else 0.0
        discount, power = self._rating
        return DraftSettings(micro_batch, cutoff, width=width, nodes=nodes, discount=discount, power=power)

    def proposed(self, generation: Generation, nodes: list[Node]) -> None:
        self._waiting += nodes
        if self._is_due and generation.in_flight:
            self._choose(generation)  # No stage waits for it now.

    @property
    def _is_due(self) -> bool:
        return self._seen >= (self.every if self.forecast_s else self._first)

    def advanced(self, generation: Generation) -> None:
        self._chances.clear()
        self._advanced = Segment.now(generation)
        if self._segment.tokens <= generation.prompt_length:  # A segment begins with a decoded token, not a prompt.
            self._segment = self._advanced
        overdue, self._seen = self._is_due, self._seen + 1
        alone = generation.pipe.running == 1
        until_more_is_drafted = self.forecast_s and self.way.kind == "chain" and alone
        if overdue or (self._is_due and not until_more_is_drafted):
            self._choose(generation)

    # Choosing

    def _choose(self, generation: Generation) -> None:
        self._seen = 0
        if not Forecast.ready(generation.pipe.measured):
            return
        self._rate(generation)
        forecast = self.forecast(generation)
        ways = among_others(generation.pipe.measured, generation.pipe.running)
        if ways:  # How long a token takes tells more of the others than of the way in use.
            self._segment = self._advanced
        else:
            self._correct(generation, forecast)
            ways = self._experience.seconds(forecast, self.way)
        best = min(ways, key=lambda way: ways[way])
        if best != self.way and (not self.forecast_s or ways[best] < SWITCH * ways.get(self.way, inf)):
            generation.note(self._why(best, ways[best], forecast))
            self.way, self._segment = best, self._advanced
        kind, rows = self.way
        self.forecast_s, self._times = ways[self.way], forecast
        self._width = forecast.width(rows) if kind == "rounds" else forecast.width_of_runs(rows)
        self._window = forecast.window(rows)
        least = least_chance(self.way, forecast, self.forecast_s)
        tells = generation.pipe.measured.mean_confidence() < SURE  # else no row is told from another
        self._least = max(HOPELESS, round(least / STEP) * STEP * tells)

    def _rate(self, generation: Generation) -> None:
        """What chances to make of the draft's confidences."""
        measured = generation.pipe.measured
        discount = max(LEAST_DISCOUNT, round(measured.discount**TO_DEPTH / STEP) * STEP)
        self._rating = discount, round(measured.power / STEP) * STEP
        self._chances.clear()

    def forecast(self, generation: Generation) -> Forecast:
        """Of this pipeline with this draft, as measured."""
        return Forecast(generation.pipe.measured, generation.pipe.pipeline.cores)

    def _correct(self, generation: Generation, forecast: Forecast) -> None:
        """Hold the last segment against what its rounds, or its hits and misses, should have taken.

        What luck the draft had is thereby left out: it is for the acceptance to say.
        """
        tokens = self._advanced.tokens - self._segment.tokens
        if tokens < LEAST_TOKENS:
            return
        expected = expected_s(self.way, forecast, self._segment.returned(generation), tokens)
        self._experience.learn(self.way, self._advanced.began - self._segment.began, expected, tokens)
        self._segment = self._advanced

    def _why(self, way: Way, seconds: float, forecast: Forecast) -> str:
        return (
            f"{way}: {1 / max(seconds, 1e-9):.1f} tokens/s expected; acceptance {forecast.acceptance:.2f}, a further "
            f"row costs {forecast.width_cost:.2f} of one, slowest stage {1e3 * forecast.slowest_s(1):.2f} ms, links "
            f"{1e3 * forecast.links_s:.2f} ms, draft {1e3 * forecast.draft_s:.2f} ms"
        )
