"""Predictors: what the simulator has to know of real generations to say how fast they are, measured and fitted."""

import time
from collections.abc import Iterator

import msgspec

from pipeinfer.cluster.plan import Plan
from pipeinfer.engine.sampling import Sampling
from pipeinfer.errors import LaunchError, RankLost, one_line
from pipeinfer.modelling.profile import Profile
from pipeinfer.plugins import open_backend
from pipeinfer.prompt_sets import prompt_named
from pipeinfer.results.records import Record
from pipeinfer.runtime.oracle import Trace
from pipeinfer.runtime.transports import TransportError
from pipeinfer.study.cells import live_plan, sampling_of
from pipeinfer.study.identity import record_of
from pipeinfer.study.points import PredictorCell
from pipeinfer.study.predictions import Predictor, text_of

PART_S = 0.2
"""How long each part of a model is timed. What comes of it is fitted to trials anyway."""

SHORT, LONG = 32, 256
"""Tokens of the two contexts in which models are timed; the longer one reaches as far as the texts."""

_measured: dict[bytes, Profile] = {}
"""By ranks and what they generate: recipes of a command that run on alike ranks share what has been measured."""

BEYOND = 32
"""Tokens of a trace beyond the text: what is drafted before the generation is known to have ended."""


def run_predictor(cell: PredictorCell, key: str | None = None) -> Iterator[Record]:
    """Its record; one with an error, where ranks or an engine cannot be had."""
    start = time.perf_counter()
    predictor, problem = None, ""
    try:
        predictor = msgspec.to_builtins(_make_predictor(cell, key))
    except (LaunchError, RankLost, TransportError, ValueError, OSError) as failed:
        problem = one_line(failed)
    yield record_of(cell, None, time.perf_counter() - start, error=problem, predictor=predictor)


def _make_predictor(cell: PredictorCell, key: str | None) -> Predictor:
    from pipeinfer.modelling.fit_trials import traces

    live = cell.live
    plan = live_plan(live, key)
    tokenizer = open_backend(plan.backend, plan.backend_options).tokenizer(plan.target)
    prompts = {name: tokenizer.encode(prompt_named(name).text) for name in (*live.prompts, *live.tuned_on)}
    greedy = sampling_of(live, 0.0)
    reach = max(live.prompt_tokens, *map(len, prompts.values())) + live.tokens + BEYOND
    profile = _profile(plan, next(iter(prompts.values())), greedy, max(LONG, reach))
    found: dict[str, Trace] = {}
    shown = [prompts[name] for name in live.prompts]
    for temperature in live.temperatures:
        recorded = traces(plan, shown, live.tokens + BEYOND, sampling_of(live, temperature))
        found |= {text_of(name, temperature): trace for name, trace in zip(live.prompts, recorded, strict=True)}
    return Predictor(profile, found)


def _profile(plan: Plan, prompt: list[int], sampling: Sampling, reach: int) -> Profile:
    """Of these ranks, for texts of up to `reach` tokens. Those that are started here are alike."""
    from pipeinfer.cluster.models import Models
    from pipeinfer.modelling.calibrate import calibrate
    from pipeinfer.modelling.calibration_fit import fitted_to_trials

    key = msgspec.json.encode((plan, prompt, sampling, reach))
    if key not in _measured:
        found = calibrate(
            Models(plan), sampling, lambda _what: None, PART_S, contexts=(SHORT, reach), alike=not plan.workers
        )
        _measured[key] = fitted_to_trials(found, plan, prompt, sampling)
    return _measured[key]
