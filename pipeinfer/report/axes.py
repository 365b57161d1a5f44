"""What figures are drawn over: columns of the table of trials along y, places' fields or options along x."""

from collections.abc import Callable
from typing import NamedTuple

from pipeinfer.modelling.acceptance import is_recorded, trace_title
from pipeinfer.modelling.platform import platform_of
from pipeinfer.study.places import Place


class Quantity(NamedTuple):
    """What is drawn along y: a column, and whether `more` or `less` of it is better. `logarithmic`: its values span
    decades."""

    label: str
    column: str
    better: str = "more"
    logarithmic: bool = False

    @property
    def words(self) -> str:
        """Without the unit."""
        return self.label.partition(" (")[0]

    @property
    def title(self) -> str:
        """In two lines, for an axis with room for them."""
        return f"{self.label}\n{self.better} is better"


Y = {
    "speed": Quantity("generation speed (tokens/s)", "tokens_per_s"),
    "gain": Quantity("speed over best speculative", "over_speculative"),
    "gap": Quantity("mean inter-token latency (s)", "itl_mean_s", "less"),
    "tail": Quantity("inter-token latency, p95 (s)", "itl_p95_s", "less"),
    "gaps": Quantity("inter-token latency (s)", "itl_mean_s", "less"),
    "first": Quantity("time to first token (s)", "ttft_s", "less", logarithmic=True),
    "utilisation": Quantity("utilisation (share of the time)", "utilisation"),
    "processor": Quantity("processor time per token (s)", "processor_s_per_token", "less"),
    "memory": Quantity("memory of the largest rank (GB)", "largest_rank_gb", "less"),
    "per_memory": Quantity("tokens/s per GB of all ranks", "tokens_per_s_per_gb"),
}


class Variable(NamedTuple):
    """What is drawn along x: a column, or the first of several that has a value, over `unit`. `base`: logarithmic."""

    label: str
    columns: tuple[str, ...]
    base: int | None = None
    unit: float = 1.0


X = {
    "nodes": Variable("nodes", ("nodes",), 2),
    "width_cost": Variable("cost of a further row (0: free, 1: roofline)", ("width_cost",)),
    "draft_cost": Variable("cost of a drafted token (1: TinyLlama 1.1B)", ("draft_cost",), 2),
    "acceptance": Variable("acceptance per drafted token", ("acceptance",)),
    "bandwidth_gbps": Variable("link bandwidth (Gbit/s)", ("bandwidth_gbps",), 10),
    "latency_us": Variable("link latency (ms)", ("latency_us",), 10, 1e3),
    "size": Variable("drafted tokens per run (K, or micro-batch)", ("k", "draft"), 2),
    "cutoff": Variable("cutoff (confidence below which drafting stops)", ("cutoff",)),
}

OPTIONS = ("size", "cutoff")
"""Which of these are options: along them a line goes over what was tried in one place."""


def drafts_title(place: Place) -> str:
    """How a place's drafts come to be right."""
    if is_recorded(place.drafts):
        return trace_title(place.drafts)
    return {"": "i.i.d.", "varied": "varied by position"}.get(place.drafts, f"{place.drafts} phases")


def _acceptance(place: Place) -> str:
    if not is_recorded(place.drafts):
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
