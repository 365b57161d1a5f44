"""A profile is fitted to a few real generations, the fit trials.

`pipeinfer calibrate` times every part by itself: layers one after another on a busy core, links on idle ones. In a
generation a stage starts after a pause, when its weights have left the caches; a message has to wake its rank; and work
that another core could have taken waits for a while on the one where it woke. How much that is depends on the machine
and is measured here, on two stages and the draft, with links as they are and with slow ones:

1. `cold`, how much longer a computation takes after a longer pause, and how much longer after any;
2. what further rows take: their share of a computation is not what it is on a busy core, for their activations have
   left the caches as the weights have, and each has its own token to choose;
3. what a message costs a rank, from links so slow that their own latency does not show;
4. the latency of the links in a generation;
5. how much more ranks of a host are in one another's way.

Each is seen best where the later ones do not matter, so they are fitted in this order.
"""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from msgspec.structs import replace

from pipeinfer.cluster.plan import Plan
from pipeinfer.engine.sampling import Sampling
from pipeinfer.modelling.fit_trials import SLOW, STAGES, FitTrials, run_fit_trials, speed
from pipeinfer.modelling.profile import Curve, Profile
from pipeinfer.modelling.profiled_cluster import simulate_one
from pipeinfer.results.trial import Trial
from pipeinfer.runtime.spans import Span

MOST_COLD, MOST_MESSAGE_S, MOST_HOP_S, MOST_CROWDING = 20.0, 3e-4, 1e-3, 2.0
ROUNDS_OF_FITTING = 6
"""How long a pause is depends on what is fitted after it."""

HALVINGS = 10
"""How far each is looked for, and how precisely: to as much as so many halvings of that leave."""

ABOUT, POINTS = 0.2, 9
"""How far from its zero, and where, the line of crowding is drawn."""

ENOUGH = 3e-4
"""A share of time so close to the measured one that nothing is changed."""

NOISE = 0.02
"""A share of time that may be chance: where pauses hardly differ, it could stand for any coldness."""


def fitted_to_trials(profile: Profile, plan: Plan, prompt: Sequence[int], sampling: Sampling) -> Profile:
    """The profile, fitted to trials that are run for it. Raises what `pipeinfer.cluster.launch.Cluster` does."""
    return fitted(profile, run_fit_trials(plan, prompt, sampling))


def fitted(profile: Profile, trials: FitTrials) -> Profile:
    """The profile, fitted to these trials."""
    for _ in range(ROUNDS_OF_FITTING):
        before = profile
        for step in (_with_cold, _with_computing, _with_width, _with_messages, _with_hops):
            profile = step(profile, trials)
        if profile == before:
            break
    return _with_crowding(profile, trials)


def _with_cold(profile: Profile, trials: FitTrials) -> Profile:
    """Pauses are longer where links are slow: so much longer does computing take there."""
    real = _over_trials(trials, SLOW, _stages_s) / _over_trials(trials, "iterative", _stages_s)
    if real < 1 + NOISE:
        return replace(profile, cold=0.0)

    def too_warm(cold: float) -> float:
        changed = replace(profile, cold=cold)
        slow, fast = (_stages_s(_simulated(changed, trials, name)) for name in (SLOW, "iterative"))
        return real - slow / fast

    return replace(profile, cold=_zero(too_warm, 0.0, MOST_COLD, profile.cold))


def _with_computing(profile: Profile, trials: FitTrials) -> Profile:
    """Where nothing overlaps, ranks are busy for as long as their computations take."""
    stages = _over_trials(trials, "iterative", _stages_s) / _stages_s(_simulated(profile, trials, "iterative"))
    spans: list[Span] = []
    _simulated(profile, trials, "speculative", spans)
    forwards = [span.end - span.start - profile.message_s for span in spans if span.rank == STAGES]
    draft = _over_trials(trials, "speculative", lambda trial: trial.ranks[-1].busy_s) / sum(forwards)
    assert isinstance(profile.draft, Curve), "fit trials have one draft rank"
    if max(abs(stages - 1), abs(draft - 1)) < ENOUGH:
        return profile
    scaled = _with_curves(profile, lambda curve: _scaled(curve, stages))
    return replace(scaled, draft=_scaled(profile.draft, draft))


def _with_width(profile: Profile, trials: FitTrials) -> Profile:
    """Where nothing overlaps and runs have several rows: so much more than one row do they take."""
    real = _over_trials(trials, "speculative", _stages_s)

    def simulated(factor: float) -> float:
        changed = _with_curves(profile, lambda curve: _widened(curve, factor))
        return _stages_s(_simulated(changed, trials, "speculative"))

    one_row, all_rows = simulated(0.0), simulated(1.0)
    if all_rows - one_row < NOISE * real or abs(all_rows - real) < ENOUGH * real:
        return profile
    factor = max(0.0, (real - one_row) / (all_rows - one_row))
    return _with_curves(profile, lambda curve: _widened(curve, factor))


def _with_curves(profile: Profile, changed: Callable[[Curve], Curve]) -> Profile:
    """The profile with other times of the target's layers."""
    ranks = [
        replace(rank, run=changed(rank.run), layer=changed(rank.layer), head=changed(rank.head))
        for rank in profile.ranks
    ]
    return replace(profile, ranks=tuple(ranks))


def _widened(curve: Curve, factor: float) -> Curve:
    """What more rows take beyond one, multiplied."""
    lines = [tuple([line[0] + factor * (value - line[0]) for value in line]) for line in curve.seconds]
    return replace(curve, seconds=tuple(lines))


def _stages_s(trial: Trial) -> float:
    """Seconds that the stages computed after the prompt."""
    return sum(sum(run.compute_s) for run in trial.runs if run.kind != "prompt")


def _scaled(curve: Curve, factor: float) -> Curve:
    return replace(curve, seconds=tuple([tuple([factor * value for value in line]) for line in curve.seconds]))


def _with_messages(profile: Profile, trials: FitTrials) -> Profile:
    """Where links are slow, what is neither computing nor links is messages."""

    def busier(more_s: float) -> Profile:
        return replace(
            profile, message_s=max(0.0, profile.message_s + more_s), head_s=max(0.0, profile.head_s + more_s)
        )

    return _fit(busier, -MOST_MESSAGE_S, MOST_MESSAGE_S, trials, [SLOW])


def _with_hops(profile: Profile, trials: FitTrials) -> Profile:
    """Where nothing overlaps, what is left is links."""

    def slower(hop_s: float) -> Profile:
        links = [replace(link, latency_s=max(0.0, link.latency_s + hop_s)) for link in profile.links]
        return replace(profile, links=tuple(links))

    return _fit(slower, -MOST_HOP_S, MOST_HOP_S, trials, ["iterative", "speculative"])


def _with_crowding(profile: Profile, trials: FitTrials) -> Profile:
    """Where everything overlaps, the rest is how much ranks are in one another's way, beyond the share of the cores
    that is left to each: which no measurement of seconds tells better than their number."""
    cores = min(profile.environment.get("cores", {}).values(), default=1)
    shared = [min(factor, max(1.0, k / cores)) for k, factor in enumerate(profile.contention, start=1)]

    def fuller(crowding: float) -> Profile:
        slowdown = [factor * (1 + crowding * (1 - 1 / k)) for k, factor in enumerate(shared, start=1)]
        return replace(profile, contention=tuple(slowdown))

    too_fast = _too_fast(fuller, trials, ["pipeinfer"])
    found = _zero(too_fast, 0.0, MOST_CROWDING, 0.0)
    return fuller(_on_a_line(too_fast, found) if found else 0.0)


def _on_a_line(too_fast: Callable[[float], float], found: float) -> float:
    """Where the line through values about a zero has its own. A little more crowding has runs cross in another order,
    and the speed jumps by a percent or two either way: there are several zeros, none of which says more."""
    about = np.linspace(max(0.0, found - ABOUT), found + ABOUT, POINTS)
    slope, start = np.polyfit(about, [too_fast(value) for value in about], 1)
    return float(np.clip(-start / slope, about[0], about[-1])) if slope < 0 else found


def _fit(
    changed: Callable[[float], Profile], low: float, high: float, trials: FitTrials, strategies: Sequence[str]
) -> Profile:
    """The change with which these are simulated as fast as they were; it slows them down."""
    return changed(_zero(_too_fast(changed, trials, strategies), low, high, 0.0))


def _too_fast(
    changed: Callable[[float], Profile], trials: FitTrials, strategies: Sequence[str]
) -> Callable[[float], float]:
    """How much too fast these are simulated with a change."""
    return lambda change: float(sum(np.log(_speed_ratio(changed(change), trials, name)) for name in strategies))


def _zero(too_small: Callable[[float], float], low: float, high: float, now: float) -> float:
    """Where `too_small`, which falls, is zero: `now` where that is near enough, and an end where it is beyond that."""
    from scipy.optimize import brentq  # which takes long to import

    @cache
    def beyond(value: float) -> float:
        amount = too_small(value)
        return 0.0 if abs(amount) < ENOUGH else amount

    if not beyond(now):
        return now
    low, high = (now, high) if beyond(now) > 0 else (low, now)
    if beyond(low) <= 0 or beyond(high) >= 0:
        return low if beyond(low) <= 0 else high
    return float(brentq(beyond, low, high, xtol=(high - low) / 2**HALVINGS))


def _speed_ratio(profile: Profile, trials: FitTrials, strategy: str) -> float:
    """Simulated over real tokens per second."""
    return speed(_simulated(profile, trials, strategy)) / _over_trials(trials, strategy, speed)


def _over_trials(trials: FitTrials, strategy: str, measure: Callable[[Trial], float]) -> float:
    return float(np.median([measure(trial) for trial in trials.by_strategy[strategy]]))


def _simulated(profile: Profile, trials: FitTrials, strategy: str, spans: list[Span] | None = None) -> Trial:
    return simulate_one(profile, trials.settings[strategy], spans, oracle=trials.trace)
