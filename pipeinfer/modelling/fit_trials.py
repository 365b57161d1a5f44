"""Fit trials: a few real generations that a profile is fitted to (`pipeinfer.modelling.calibration_fit`), on two stages
and the draft, with links as they are and with slow ones; and what the draft is worth in their text."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

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
TOKENS = 48
ROUNDS = 4
"""Of fit trials: over some seconds, since the speed of many a machine drifts."""

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
        for turn, (name, strategy) in product(range(ROUNDS + 1), what.items()):
            trial = (slow if name == SLOW else cluster).generate(
                prompt, open_strategy(strategy, {}), max_tokens=TOKENS, sampling=sampling, stop_ids=(), margins=True
            )  # with margins, as what is predicted has them
            if turn > 0:  # The first meets memory and code that nobody has touched.
                trials[name].append(trial)
    settings = {
        name: Setting(
            name, nodes=nodes(name, STAGES), tokens=TOKENS, prompt=len(prompt), prompt_chunk=plan.prompt_chunk
        )
        for name in STRATEGIES
    }
    settings[SLOW] = replace(settings["iterative"], latency_us=SLOW_S * 1e6)
    return FitTrials(trials, settings, next(traces(plan, [prompt], TOKENS, sampling)))


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
