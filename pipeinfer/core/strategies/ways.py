"""The ways of decoding among which `adaptive` chooses, with what each should take."""

from collections.abc import Sequence
from typing import NamedTuple

from pipeinfer.core.generation import Generation
from pipeinfer.core.measured import Measured
from pipeinfer.core.slots import seconds_of, slowest_s
from pipeinfer.core.strategies.forecast import Forecast
from pipeinfer.core.tree import Run

RUNS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
"""Rows per run of a pipelined tree that are considered."""

ROUNDS = (2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64)
"""Rows per round, the last committed token's among them, of verifying a tree that goes on growing meanwhile."""

AHEAD = (4, 6, 12, 32)
"""Drafted tokens beyond the text, at most, where the draft goes on while the target verifies what there is."""

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Drafted tokens per round in which draft and target take turns."""


class Way(NamedTuple):
    """How to decode.

    plain          one token per traversal
    synchronous    draft `rows` tokens, verify them, one after the other
    chain          verify what was drafted meanwhile, up to `rows` tokens, one run at a time; the draft goes on
    rounds         verify the likeliest `rows` nodes of a tree, one run at a time; the draft goes on meanwhile
    runs           the likeliest `rows` nodes that were not sent follow those before them down the pipeline
    """

    kind: str
    rows: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "plain" else f"{self.kind} of {self.rows}"


PLAIN = Way("plain")

AT_ONCE = ("chain", "rounds", "runs")
"""Kinds in which draft and target, or several stages, compute at the same time."""

UNTRIED = 0.85
"""So much of its forecast plain decoding is held to take until it has been tried: one row is mostly cheaper than it
looks from several, and trying costs less than never to know. Where cores are shared one row is computed first."""

WORTH, LIKELY = 0.5, 0.6
"""A row is worth its time from this share of the tokens that would else have come in it, since what rows take is known
from those that are tried; and with such a chance always."""

CROWDED = 1.15
"""So many times as long as by their work alone runs are held to take on shared cores, until some were tried: stages
that compute at once want the same memory and caches."""

HANDLING = 1.25
"""Trees are held to take so much longer there until some were tried, for all of a traversal's time that is not
computing: draft and head exchange several messages for each of their runs, on the same cores."""

CAUTION = 0.15
"""At most so much longer than what was tried any other kind of way is held to take there, for the same time: where it
is a good part of a traversal all ways take about as long, and to try one costs several tokens."""

STEADY, STEADY_SHARED = 64, 16
"""What is learned of the kind of way in use weighs as much as a segment of so many tokens, since fewer are a matter of
luck; less on shared cores, where forecasts are further off."""

KEPT = 0.98
"""Of what was learned of any other kind so much is kept from one choice to the next."""


def every_way(forecast: Forecast) -> dict[Way, float]:
    """Every way there is, with the seconds that it should take per token; runs much wider than any before are left out,
    since nothing tells what they take."""
    widest = forecast.widest
    return {
        PLAIN: forecast.plain_s(),
        **{Way("synchronous", k): forecast.synchronous_s(k) for k in LENGTHS if k < widest},
        **{Way("chain", most): forecast.chain_s(most) for most in AHEAD if most < widest},
        **{Way("rounds", rows): forecast.rounds_s(rows) for rows in ROUNDS if rows <= widest},
        **{Way("runs", rows): forecast.runs_s(rows) for rows in RUNS if rows <= widest},
    }


def among_others(measured: Measured, requests: int) -> dict[Way, float]:
    """Where so many requests fill the stages of a pipe with committed tokens alone, the seconds that a token of one of
    them takes, by ways that have one run at a time under way: what is sent ahead takes the place of others' tokens.
    Requests / slots of them go as one run, whose time on the slowest stage, or on the draft, passes once per slot."""
    if requests < max(2, measured.stages):
        return {}
    slots, a = measured.slots, min(0.99, measured.acceptance)
    together = max(1.0, requests / slots)
    known = {0: 0.0, **slowest_s(measured)}  # Fewer rows than any that were measured are worth a try.
    ways = {}
    for way, k in [(PLAIN, 0), *((Way("synchronous", k), k) for k in LENGTHS)]:
        seconds = max(seconds_of(known, together * (k + 1)), k * measured.draft_s)
        ways[way] = slots * seconds * (1 - a) / (1 - a ** (k + 1))
    return ways


def expected_s(way: Way, forecast: Forecast, runs: Sequence[Run], tokens: int) -> float:
    """Seconds that so many tokens, for which these runs came back, should take in this way."""
    if way.kind == "plain":
        return tokens * forecast.plain_s()
    if way.kind == "synchronous":
        return sum(forecast.round_s(run.rows - 1) for run in runs)
    if way.kind == "chain":
        return sum(forecast.chain_run_s(run.rows) for run in runs)
    if way.kind == "rounds":
        return sum(forecast.tree_round_s(run.rows) for run in runs)
    return tokens * forecast.runs_s(way.rows)


def least_chance(way: Way, forecast: Forecast, token_s: float) -> float:
    """With which a further row of a run, or token of a draft that is waited for, is worth its time where a token comes
    every `token_s`. Of N stages that a run passes the others compute for other runs meanwhile, if they have cores of
    their own, so that a row takes an N-th of its time from these."""
    if way == PLAIN:
        return 0.0
    seconds = forecast.row_s(max(2, way.rows + (way.kind == "synchronous")))
    if way.kind == "synchronous":
        seconds += forecast.draft_s
    elif way.kind == "runs":
        seconds = (seconds + forecast.node_s(way.rows)) / forecast.at_once
    return min(LIKELY, WORTH * seconds / max(token_s, 1e-9))


class Segment(NamedTuple):
    """What the way in use is held against: since when, and how many tokens there were."""

    began: float
    tokens: int

    @classmethod
    def now(cls, generation: Generation) -> "Segment":
        return cls(generation.pipe.now, len(generation.text))

    def returned(self, generation: Generation) -> list[Run]:
        """Runs that came back since then, newest first."""
        found: list[Run] = []
        for run in reversed(generation.runs):
            if run.finished_at is not None:
                if run.finished_at <= self.began:
                    break
                found.append(run)
        return found


class Experience:
    """What ways really took. Of plain decoding that is the seconds of a token, while no draft takes time from the
    target; of all others, by how much they exceed their forecast. While the target decodes plainly its times get
    shorter, which promises nothing to ways in which many compute at once.

    Before it is known that is as much as where draft and target take turns; on cores that are `shared` more than what
    was tried, above all for trees.
    """

    def __init__(self, *, shared: bool) -> None:
        self._shared = shared
        self._ratios: dict[str, float] = {}
        self._plain_s = 0.0
        self._at_once: dict[Way, float] = {}
        self._handling = 0.0
        """What a traversal of one row takes beside computing, over that."""

    def seconds(self, forecast: Forecast, used: Way) -> dict[Way, float]:
        """Of every way per token. What was learned about others than the way in use fades."""
        plain_s, self._handling = forecast.plain_s(), forecast.handling
        if used.kind != "plain" and self._plain_s:
            self._plain_s += (1 - KEPT) * (plain_s - self._plain_s)
        for kind, ratio in self._ratios.items():
            if kind != used.kind:
                self._ratios[kind] += (1 - KEPT) * (self._unknown(kind) - ratio)
        ratios = {kind: self._ratio(kind) for kind in ("plain", "synchronous", *AT_ONCE)}
        ways = {way: seconds * ratios[way.kind] for way, seconds in every_way(forecast).items()}
        if used == PLAIN:  # of others nothing is learned meanwhile
            for way, before in self._at_once.items():
                if way in ways:  # or it is wider than any of which something is known by now
                    self._at_once[way] = ways[way] = max(ways[way], before + (1 - KEPT) * (ways[way] - before))
        else:
            self._at_once = {way: seconds for way, seconds in ways.items() if way.kind in AT_ONCE}
        ways[PLAIN] = self._plain_s or (1.0 if self._shared else UNTRIED) * plain_s
        return ways

    def learn(self, way: Way, seconds: float, expected: float, tokens: int) -> None:
        """So many tokens took so long, where `expected` seconds were forecast."""
        newest = tokens / (tokens + (STEADY_SHARED if self._shared else STEADY))
        if way.kind == "plain":
            per_token = seconds / tokens
            self._plain_s += newest * (per_token - self._plain_s) if self._plain_s else per_token
        elif expected > 0:
            before = self._ratio(way.kind)
            self._ratios[way.kind] = min(4.0, max(0.5, before + newest * (seconds / expected - before)))

    def _ratio(self, kind: str) -> float:
        return self._ratios.get(kind) or self._unknown(kind)

    def _unknown(self, kind: str) -> float:
        if not self._shared:
            return 1.0 if kind == "synchronous" else self._ratios.get("synchronous", 1.0)
        known = [self._ratios[tried] for tried in ("chain", "synchronous") if tried in self._ratios and tried != kind]
        ratio = min(known, default=1.0)
        if known and kind != "chain":
            ratio *= 1 + min(CAUTION, self._handling)
        if kind in ("rounds", "runs"):
            ratio *= (CROWDED if kind == "runs" else 1.0) + HANDLING * self._handling
        return ratio
