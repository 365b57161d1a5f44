"""What figures are drawn over: quantities of trials along y, fields of places or options of strategies along x."""

from collections.abc import Callable
from typing import NamedTuple

from pipeinfer.modelling.acceptance import trace_title
from pipeinfer.modelling.platform import platform_of
from pipeinfer.reproduce.analysis import Best, Metric, Place
from pipeinfer.results import metrics
from pipeinfer.results.trial import Trial


def mean_gap(trial: Trial) -> float | None:
    """Mean inter-token latency (s)."""
    return metrics.itl_s(trial)["mean"]


def tail_gap(trial: Trial) -> float | None:
    """95th percentile of inter-token latency (s)."""
    return metrics.itl_s(trial)["p95"]


def percentile(name: str) -> Metric:
    """Mean, p50, p95 or p99 of inter-token latency (s)."""
    return lambda trial: metrics.itl_s(trial)[name]


def _gigabytes(trial: Trial) -> float | None:
    size = metrics.largest_memory(trial)
    return None if size is None else size / 1e9


class Quantity(NamedTuple):
    """What is drawn along y. `logarithmic`: its values span decades."""

    label: str
    metric: Metric
    logarithmic: bool = False


Y = {
    "speed": Quantity("generation speed (tokens/s)", metrics.tokens_per_second),
    "gain": Quantity("speed over best speculative", metrics.tokens_per_second),
    "gap": Quantity("mean inter-token latency (s)", mean_gap),
    "tail": Quantity("inter-token latency, p95 (s)", tail_gap),
    "gaps": Quantity("inter-token latency (s)", mean_gap),
    "first": Quantity("time to first token (s)", metrics.ttft_s, logarithmic=True),
    "utilisation": Quantity("utilisation of the ranks", metrics.mean_utilisation),
    "memory": Quantity("memory of the largest rank (GB)", _gigabytes),
    "per_memory": Quantity("tokens/s per GB of all ranks", metrics.speed_per_gigabyte),
}


class Variable(NamedTuple):
    """What is drawn along x. `base`: logarithmic to it. `of` gives its value, or None where something has none."""

    label: str
    of: Callable[[Best], float | None]
    base: int | None = None


def _field(name: str, unit: float = 1.0) -> Callable[[Best], float | None]:
    def of(best: Best) -> float | None:
        value = getattr(best.place, name)
        return None if value is None else float(value) / unit

    return of


def _option(*names: str) -> Callable[[Best], float | None]:
    return lambda best: next((float(best.options[name]) for name in names if name in best.options), None)


X = {
    "nodes": Variable("nodes", _field("nodes"), 2),
    "width_cost": Variable("cost of width (0: free, 1: roofline)", _field("width_cost")),
    "draft_cost": Variable("cost of a drafted token (1: TinyLlama 1.1B)", _field("draft_cost"), 2),
    "acceptance": Variable("acceptance per drafted token", _field("acceptance")),
    "bandwidth_gbps": Variable("link bandwidth (Gbit/s)", _field("bandwidth_gbps"), 10),
    "latency_us": Variable("link latency (ms)", _field("latency_us", 1e3), 10),
    "size": Variable("drafted tokens per run (K, or micro-batch)", _option("k", "draft"), 2),
    "cutoff": Variable("cutoff (confidence below which drafting stops)", _option("cutoff")),
}

OPTIONS = ("size", "cutoff")
"""Which of these are options: along them a line goes over what was tried in one place."""


def drafts_title(place: Place) -> str:
    """How a place's drafts come to be right."""
    if place.drafts in ("", "varied"):
        return {"": "i.i.d.", "varied": "position difficulty"}[place.drafts]
    return trace_title(place.drafts)


def _acceptance(place: Place) -> str:
    if place.drafts in ("", "varied"):
        return f"{place.drafts} acceptance {place.acceptance:.2g}".strip()
    return f"{trace_title(place.drafts)} ({place.acceptance:.2g})"


PANEL: dict[str, Callable[[Place], str]] = {
    "cluster": lambda place: platform_of(place.cluster, place.pair).link,
    "nodes": lambda place: f"{place.nodes} nodes",
    "node": lambda place: " / ".join(platform_of(place.cluster, place.pair).nodes),
    "pair": lambda place: platform_of(place.cluster, place.pair).models,
    "acceptance": _acceptance,
    "drafts": drafts_title,
    "rate": lambda place: f"mean acceptance {place.acceptance:.2g}",
    "accounting": lambda place: place.accounting,
    "prompt": lambda place: f"prompt of {place.prompt} tokens",
}
"""Titles of panels by what parts them."""
