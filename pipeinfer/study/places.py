"""Places in words: where a trial was run, for a table's cell or a sentence."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from pipeinfer.modelling.platform import cluster_name

USUAL = ("prompt of 64", "1 at once")
"""Left out of sentences."""

UNUSUAL = {
    "accounting": ("same-ranks", "{}"), "width_cost": (1.0, "row cost {:g}"), "draft_cost": (1.0, "draft cost {:g}"),
    "bandwidth_gbps": (None, "{:g} Gbit/s"), "latency_ms": (None, "{:g} ms"),
}  # fmt: skip
"""What is said only where it is not as usual, or where others differ in it, and how."""


def shared(places: Iterable["Place"]) -> str:
    """What is the same of all of them, but for what is usual."""
    every = [place.parts() for place in places]
    return ", ".join(
        text for name, text in (every[0].items() if every else ())
        if text not in USUAL and all(other.get(name) == text for other in every)
    )  # fmt: skip


class Place(NamedTuple):
    """The columns that make a place (`pipeinfer.results.frame.PLACE`); None where they do not apply."""

    cluster: str
    pair: str
    nodes: int
    acceptance: float
    drafts: str
    accounting: str
    width_cost: float
    draft_cost: float
    bandwidth_gbps: float | None
    latency_us: float | None
    temperature: float | None
    prompt: int
    requests: int

    @classmethod
    def of(cls, row: Any) -> "Place":
        """That of a row of the table of trials."""
        values: list[Any] = [getattr(row, name) for name in cls._fields]
        known: list[Any] = [None if value != value else value for value in values]
        return cls(*known)

    @property
    def text(self) -> str:
        """For a sentence."""
        return ", ".join(text for text in self.parts().values() if text not in USUAL)

    @property
    def latency_ms(self) -> float | None:
        """Of links, where it is set."""
        return None if self.latency_us is None else self.latency_us / 1e3

    def parts(self, *, usual: bool = False) -> dict[str, str]:
        """Field by field; with those that are as `usual`."""
        unusual = {name: form.format(value) for name, (default, form) in UNUSUAL.items()
                   if (value := getattr(self, name)) is not None and (usual or value != default)}  # fmt: skip
        if self.temperature is not None and self.cluster:
            return {"cluster": self.cluster, "nodes": f"{self.nodes - 1} stages", **unusual}
        if self.temperature is not None:
            greedy = "greedy" if self.temperature == 0 else f"temperature {self.temperature:g}"
            return {"temperature": greedy, "requests": f"{self.requests} at once"}
        parts = {"pair": self.pair, "cluster": cluster_name(self.cluster), "nodes": f"{self.nodes} nodes"}
        parts["acceptance"] = f"{self.drafts} acceptance {self.acceptance:.2g}".strip()
        return parts | unusual | {"prompt": f"prompt of {self.prompt}", "requests": f"{self.requests} at once"}

    def differing(self, others: Iterable["Place"], without: Iterable[str] = ()) -> str:
        """What tells it from others, but for some fields (that a panel's title says)."""
        left_out = {"acceptance"} if {"drafts", "rate"} & {*without} else {*without}
        every = [other.parts(usual=True) for other in others]
        return ", ".join(
            text for name, text in self.parts(usual=True).items()
            if name not in left_out and any(other.get(name) != text for other in every)
        )  # fmt: skip
