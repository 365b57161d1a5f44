"""What was emulated beside what was simulated: the same cells, one in real time and one in virtual time."""

from collections.abc import Iterable

import numpy as np

from pipeinfer.reproduce.analysis import Analysis, Beside
from pipeinfer.reproduce.report import Block, Heading, Paragraph, Table
from pipeinfer.results import metrics


def beside(analysis: Analysis) -> list[Block]:
    """A row per variant of an emulated recipe. Empty for other recipes."""
    if not analysis.beside:
        return []
    text = f"Emulated beside simulated, of the same cells: {deviation(analysis.beside)}."
    differing = sum(not one.same_tokens for one in analysis.beside)
    tokens = "All token ids are the simulation's." if not differing else f"{differing} variants gave other token ids!"
    return [Heading("Beside the simulation", 3), Paragraph(f"{text} {tokens}"), _table(analysis.beside)]


def deviation(found: Iterable[Beside]) -> str:
    """How far measured speeds are from simulated ones, for a sentence."""
    sizes = [abs(size) for one in found if (size := one.deviation()) is not None]
    if not sizes:
        return "nothing to compare"
    return f"tokens/s deviate by {np.median(sizes):.1%} in the median, {max(sizes):.1%} at most ({len(sizes)} variants)"


def _table(found: Iterable[Beside]) -> Table:
    head = ["where", "strategy", "simulated, tokens/s", "emulated, tokens/s", "deviation", "of first token", "trials"]
    rows = [
        [
            one.emulated.place.text,
            f"{one.emulated.strategy} {one.emulated.label}".strip(),
            f"{one.simulated.speed:.2f}",
            f"{one.emulated.speed:.2f}",
            _signed(one.deviation()),
            _signed(one.deviation(metrics.ttft_s)),
            str(len(one.emulated.records)),
        ]
        for one in found
    ]
    return Table(head, rows, numbers=range(2, 7))


def _signed(size: float | None) -> str:
    return "-" if size is None else f"{size:+.1%}"
