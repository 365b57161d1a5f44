"""What a recipe's analysis looks like in the report: its figure, its table, its errors."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeinfer.reproduce.analysis import REFERENCE, Analysis, Best, paired_ratio
from pipeinfer.reproduce.axes import percentile
from pipeinfer.reproduce.calibration_section import check_blocks, draw_scatter, summary
from pipeinfer.reproduce.emulated_simulated import beside
from pipeinfer.reproduce.figures import draw, figure_name, limit
from pipeinfer.reproduce.head_to_head import NOTES, head_to_head
from pipeinfer.reproduce.predictions import Prediction, predictions
from pipeinfer.reproduce.report import Block, Heading, Paragraph, Picture, Table
from pipeinfer.results import metrics


class Section(NamedTuple):
    """Heading, figures, table and errors of a recipe; and the `table` by itself, where there is one."""

    blocks: list[Block]
    table: Table | None


def section(analysis: Analysis, figures: Path) -> Section:
    """What the report says of a recipe; draws its figures into `figures`."""
    recipe = analysis.recipe
    blocks: list[Block] = [
        Heading(recipe.title + ", emulated" * (recipe.emulation is not None)),
        Paragraph(recipe.about),
        Paragraph(
            f"Tests: {', '.join(recipe.claims) or 'no claim by itself'}. Expected: {recipe.expected}. Needs: "
            f"{recipe.hardware}, about {recipe.minutes:g} min."
        ),
    ]
    if not analysis.best:
        return Section([*blocks, *_errors(analysis), Paragraph("Nothing to show: no trial passed.")], None)
    predicted = predictions(analysis)
    for figure in recipe.figures:
        if figure.kind == "scatter":
            draw_scatter(analysis, predicted, figures / figure_name(recipe, figure))
        else:
            draw(analysis, figure, figures)
        blocks.append(Picture(figure_name(recipe, figure), recipe.title))
    notes: list[Block] = [Paragraph(NOTES)] if recipe.artifact else []
    notes += check_blocks(predicted) if recipe.checked else []
    shown = table(analysis, predicted)
    return Section([*blocks, shown, *notes, *beside(analysis), *_errors(analysis)], shown)


def table(analysis: Analysis, predicted: list[Prediction]) -> Table:
    """A row per contender and place; beside what was measured what was `predicted`."""
    recipe = analysis.recipe
    if recipe.artifact:
        return head_to_head(analysis)
    if recipe.checked:
        return summary(predicted)
    simulated = recipe.simulated is not None
    title = f"{recipe.title} ({recipe.fidelity})"
    head = ["where", "strategy", "tokens/s", "of iterative", "of speculative", "mean gap", "p50", "p95", "p99",
            "first token", "first, decode only", "acceptance length", "largest rank", "trials"]  # fmt: skip
    rows = [
        [analysis.where(place) or place.text, f"{best.strategy} {analysis.chosen(best)}".strip(),
         *_figures(best, analysis.at(place)), *([_number(limit(best))] if simulated else [])]
        for place in analysis.places for best in analysis.at(place).values()
    ]  # fmt: skip
    if analysis.rehearsed:
        head.insert(3, "as simulated")
        said = {(one.best.place, one.best.strategy): f"{one.predicted:.2f} ({one.error:+.0%})" for one in predicted}
        every = [(place, strategy) for place in analysis.places for strategy in analysis.at(place)]
        for row, one in zip(rows, every, strict=True):
            row.insert(3, said.get(one, "-"))
    head += ["limit, tokens/s"] * simulated
    return Table(head, rows, range(2, len(head)), title)


def _figures(best: Best, there: dict[str, Best]) -> list[str]:
    return [
        f"{best.speed:.2f}",
        *[_ratio(best, there.get(other)) for other in (REFERENCE, "speculative")],
        *[_milliseconds(best.median(percentile(name))) for name in ("mean", "p50", "p95", "p99")],
        _milliseconds(best.median(metrics.ttft_s)),
        _milliseconds(best.median(metrics.ttft_decode_s)),
        _number(best.median(metrics.acceptance_length)),
        _gigabytes(best.median(metrics.largest_memory)),
        str(len(best.trials)),
    ]


def _errors(analysis: Analysis) -> Iterator[Block]:
    if analysis.rejected:
        yield Paragraph("These trials have no performance figure:")
        rows = [[one.place.text, one.strategy, str(one.options), one.draw, one.reason] for one in analysis.rejected]
        yield Table(["where", "strategy", "options", "draw", "why"], rows)
    if analysis.diverged:
        yield Paragraph(
            "These texts part from the iterative run's where its best two tokens were closer than the rounding of this "
            "arithmetic (pipeinfer/results/divergence.py). The schedule decides which rows are computed together and "
            "with it which of the two is taken, so they keep their figures:"
        )
        parted = [[one.place.text, one.strategy, str(one.options), one.draw, one.divergence.text]
                  for one in analysis.diverged]  # fmt: skip
        yield Table(["where", "strategy", "options", "draw", "first divergence"], parted)
    if analysis.missing:
        yield Paragraph(f"{analysis.missing} cells were not run.")


# Cells of tables


def _ratio(best: Best, other: Best | None) -> str:
    if other is None:
        return "-"
    value = paired_ratio(best, other)
    return "-" if value is None else f"{value:.2f}x"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _gigabytes(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e9:.2f} GB"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1e3:.0f} ms"
