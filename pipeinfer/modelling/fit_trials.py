"""Fit trials: a few real generations that a profile is fitted to (`pipeinfer.modelling.calibration_fit`), on two stages
and the draft, with links as they are and with slow ones; and what the draft is worth in their text."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.models import Models
from pipeinfer.cluster.plan import Plan
from pipeinfer.engine.sampling import Sampling
from pipeinfer.modelling.simulate import Setting
from pipeinfer.modelling.trace_recording import load_whole, record
from pipeinfer.plugins import open_strategy
from pipeinfer.results import metrics
from pipeinfer.results.trial import Trial
from pipeinfer.runtime.oracle import Trace

STAGES = 2
TOKENS, SLOW_TOKENS = 48, 24
"""Of a fit trial, and of one on slow links, of which each takes two or three times as long."""

WARM_UP = 8
"""Tokens of the generations that come first, which meet memory and code that nobody has touched."""

LEAST_ROUNDS, ROUNDS = 2, 4
SETTLED = 0.01
"""Rounds end where the standard error of each mean speed is below such a share of it."""

STRATEGIES = ("iterative", "speculative", "pipeinfer")

AT_ONCE = 8
"""Texts whose drafts are recorded at once: reading the weights for one takes as long as for all of them."""

SLOW_S = 2e-3
"""Latency of the slow links."""

SLOW = "iterative, slow links"


class FitTrials(NamedTuple):
    """Real trials by strategy (or SLOW), and what it takes to simulate the same: the setting of each, and the draft's
    trace."""

    by_strategy: dict[str, list[Trial]]
    settings: dict[str, Setting]
    trace: Trace


def run_fit_trials(plan: Plan, prompt: Sequence[int], sampling: Sampling) -> FitTrials:
    """Generate after `prompt` by every strategy in turn, on `plan` with STAGES stages."""
    plan = replace(plan, stages=STAGES, layers=None, bandwidth_bps=float("inf"), latency_s=0.0)
    what = {name: name for name in STRATEGIES} | {SLOW: "iterative"}
    trials: dict[str, list[Trial]] = {name: [] for name in what}
    with Cluster(plan) as cluster, Cluster(replace(plan, latency_s=SLOW_S)) as slow:

        def generate(name: str, tokens: int) -> Trial:
            return (slow if name == SLOW else cluster).generate(
                prompt, open_strategy(what[name], {}), max_tokens=tokens, sampling=sampling, stop_ids=(), margins=True
            )  # with margins, as what is predicted has them

        for name in what:
            generate(name, WARM_UP)
        while len(trials[SLOW]) < ROUNDS and not _settled(trials):
            for name in what:
                trials[name].append(generate(name, SLOW_TOKENS if name == SLOW else TOKENS))
    settings = {
        name: Setting(
            name, nodes=nodes(name, STAGES), tokens=TOKENS, prompt=len(prompt), prompt_chunk=plan.prompt_chunk
        )
        for name in STRATEGIES
    }
    settings[SLOW] = replace(settings["iterative"], tokens=SLOW_TOKENS, latency_us=SLOW_S * 1e6)
    return FitTrials(trials, settings, next(traces(plan, [prompt], TOKENS, sampling)))


def _settled(trials: Mapping[str, Sequence[Trial]]) -> bool:
    """Whether there is no need for another round."""
    speeds = np.array([[speed(trial) for trial in some] for some in trials.values()])
    rounds = speeds.shape[1]
    if rounds < LEAST_ROUNDS:
        return False
    errors = speeds.std(axis=1, ddof=1) / np.sqrt(rounds)
    return bool((errors < SETTLED * speeds.mean(axis=1)).all())


def nodes(strategy: str, stages: int) -> int:
    """Ranks of a strategy over that many stages of the target."""
    return stages + bool(open_strategy(strategy, {}).drafts)


def traces(plan: Plan, prompts: Iterable[Sequence[int]], tokens: int, sampling: Sampling) -> Iterator[Trace]:
    """What the draft is worth after each prompt, in a text of that many tokens."""
    assert plan.draft is not None
    prompts = list(prompts)
    models = Models(plan)
    assert models.draft is not None
    context = min(models.target.context, models.draft.context)
    limit = min(context, max(map(len, prompts), default=0) + tokens)
    target = load_whole(models.backend, plan.target, limit, texts=min(AT_ONCE, len(prompts)))
    draft = load_whole(models.backend, plan.draft, limit, models.shared_vocabulary)
    found = record(target, draft, prompts, tokens, sampling, limit=limit, source="fit trial", at_once=AT_ONCE)
    return (found.text(number, len(prompt)) for number, prompt in enumerate(prompts))


def speed(trial: Trial) -> float:
    return metrics.tokens_per_second(trial) or 0.0
