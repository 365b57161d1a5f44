"""Captions: fidelity, models, cluster, workload, what was swept, and what band and dots are."""

from collections.abc import Collection, Sequence

import pandas as pd

from pipeinfer.modelling.acceptance import is_recorded
from pipeinfer.modelling.platform import platform_of
from pipeinfer.report.axes import X, Y, drafts_title
from pipeinfer.report.experiment import Experiment
from pipeinfer.results.frame import hosts_of
from pipeinfer.study.places import shared
from pipeinfer.study.recipes import Figure, Live, Recipe

BAND = "band: 95 % bootstrap interval"

_WHOLE = {
    "calibration": "how often drafts are right, by confidence", "stretches": "drafts in a row that are all right",
    "scatter": "simulated over measured speed", "league": "speed as a share of the fastest",
}  # fmt: skip
"""What figures show that draw no quantity of `Y` alone; others say it in the title of their recipe."""

_SWEPT = {"k": "K", "draft": "micro-batch", "cutoff": "cutoff"}


def title(recipe: Recipe, figure: Figure) -> str:
    """What is drawn of what: `Low bandwidth: speed over best speculative`."""
    shown = Y[figure.y].words if figure.kind in ("lines", "dots", "percentiles") else _WHOLE.get(figure.kind, "")
    return recipe.heading + f": {shown}" * bool(shown and not recipe.title.lower().startswith(shown))


def of_card(experiment: Experiment, *, banded: bool = True) -> str:
    """What a claim's small figure shows was run."""
    where = shared(experiment.places.values())
    runs = f"Experiment {experiment.recipe.name} ({experiment.recipe.fidelity})" + f": {where}" * bool(where)
    return f"{runs}. Medians; {BAND}." if banded else f"{runs}. Medians."


def setting(experiment: Experiment, pairs: Collection[str] = ()) -> str:
    """The first half of a caption: what was run on what; of some `pairs` where not all are drawn."""
    recipe = experiment.recipe
    sweep = recipe.simulated
    if sweep is None:
        return _real(experiment)
    platforms = [platform_of(cluster, pair) for cluster in sweep.clusters for pair in pairs or sweep.pairs]
    nodes = _listed(list(dict.fromkeys(node for where in platforms for node in where.nodes)))
    links = ", ".join(dict.fromkeys(where.link for where in platforms))
    links += ", its bandwidth as stated" * bool(sweep.bandwidth_gbps)
    links += ", its latency as stated" * bool(sweep.latency_us)
    count = f"{sweep.nodes[0]} of them" if len(sweep.nodes) == 1 else "as many for every strategy"
    models = "; ".join(dict.fromkeys(where.models for where in platforms))
    assumed = [
        drafts_title(place) + ", assumed" * (not is_recorded(place.drafts)) for place in experiment.places.values()
    ]
    drafts = "; ".join(dict.fromkeys(assumed))
    return (
        f"Fidelity: {recipe.fidelity}. {models}; nodes: {nodes}, {count}, the draft's included; {links}; "
        f"{', '.join(map(str, sweep.prompt_lengths))} + {sweep.tokens} tokens; acceptance: {drafts}."
    )


def _real(experiment: Experiment) -> str:
    live, best = experiment.recipe.live, experiment.best
    assert live is not None
    models = "Built-in pair" if live.target == "builtin:target" else f"{_short(live.target)} + {_short(live.draft)}"
    same = " All token ids equal the iterative run's." * bool((best.status == "passed").all())
    times = "once each" if live.repeats == 1 else f"{live.repeats} repetitions"
    others = len(live.tuned_on)
    briefly = "" if live.tuned_tokens is None else f" and {live.tuned_tokens} tokens"
    tuned = f" Options were chosen with {others} other prompt{'s' * (others > 1)}{briefly}." * (others > 0)
    return (
        f"Fidelity: real. {models}, backend {live.backend}, {live.stages} target stages and 1 draft over "
        f"{live.transport}, {_where(best)}{slowness(live)}. "
        f"{_texts(live, experiment.recipe.requests)}, {times} with the strategies in turn, {live.tokens} tokens"
        f"{' each' * bool(experiment.recipe.requests)}.{tuned}{same}"
    )


def _texts(live: Live, requests: Sequence[int]) -> str:
    """Whose prompts are continued."""
    long = f" of {live.prompt_tokens} tokens" * (live.prompt_tokens > 0)
    count = len(live.prompts)
    if not requests:
        return f"{count} prompt{'s' * (count > 1)}{long}"
    whose = "each with a prompt of its own" if count >= max(requests) else f"with {count} prompts in turn"
    return f"Loads of {', '.join(map(str, requests))} requests, {whose}{long}"


def slowness(live: Live) -> str:
    """What ranks, nodes and links were limited to."""
    parts = [f"each rank at {live.cpu_share:g} of its speed"] * (live.cpu_share < 1)
    parts += [] if live.node_cores is None else [f"nodes of {live.node_cores:g} cores each by control groups"]
    parts += [] if live.bandwidth_gbps is None else [f"links of {live.bandwidth_gbps:g} Gbit/s"]
    parts += [f"{live.latency_us / 1e3:g} ms"] * (live.latency_us > 0)
    return "".join(f", {part}" for part in parts)


def _short(model: str) -> str:
    """The last part of a model's path."""
    return model.rstrip("/").rpartition("/")[2]


def _where(best: pd.DataFrame) -> str:
    """The hosts on which the ranks were."""
    hosts = hosts_of(best)
    if len(hosts) > 1:
        return f"on {len(hosts)} hosts ({', '.join(hosts)})"
    return f"all on one machine with {best.cores.iloc[0]} cores ({best.processor.iloc[0]})"


def swept(recipe: Recipe, figure: Figure) -> str:
    """What was tried of which the best is shown; not what is on the x axis."""
    along = X[figure.x].columns if figure.kind == "lines" else ()
    every = [option for contender in recipe.strategies.values() for option in contender.options.items()]
    tried = {name for name, values in every if len(values) > 1}
    names = [text for name, text in _SWEPT.items() if name in tried and name not in along]
    if not names:
        return ""
    listed = _listed(names)
    return f"{listed[0].upper()}{listed[1:]} swept, the best shown."


def _listed(names: Sequence[str]) -> str:
    """Like `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def repeated(experiment: Experiment) -> str:
    """What a line is the median of."""
    sweep = experiment.recipe.simulated
    assert sweep is not None
    return f"Median of {draws(experiment)}, {BAND}." if len(sweep.seeds) > 1 else "One draw of what is accepted."


def draws(experiment: Experiment) -> str:
    """What is repeated: `3 draws of what is accepted`."""
    sweep = experiment.recipe.simulated
    assert sweep is not None
    kinds = {not is_recorded(place.drafts) for place in experiment.places.values()}
    what = (
        "draws of what is accepted" if kinds == {True} else "recorded texts" if kinds == {False} else "draws or texts"
    )
    return f"{len(sweep.seeds)} {what}"
