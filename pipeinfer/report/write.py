"""From tables to a folder that is read: figures, claims.json, report.html and report.md."""

import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeinfer.assets import PACKAGE
from pipeinfer.report.appendix import Appendix, appendix
from pipeinfer.report.cards import with_card
from pipeinfer.report.claims import Claim, judge
from pipeinfer.report.crate import write_crate
from pipeinfer.report.drawn import Drawings, Others
from pipeinfer.report.experiment import Experiment
from pipeinfer.report.figures import draw
from pipeinfer.report.inline import Inline, beside_one_another, inline
from pipeinfer.report.overview import FirstScreen, first_screen
from pipeinfer.report.page import Block, Table
from pipeinfer.report.paper_figures import paper_figures
from pipeinfer.report.prediction import predictions
from pipeinfer.report.tables import notes, results
from pipeinfer.results.frame import Tables
from pipeinfer.results.records import Store
from pipeinfer.study.growth import grown
from pipeinfer.study.recipes import Recipe
from pipeinfer.study.table import tables_in
from pipeinfer.workload import WorkloadError

FIGURES = "figures"
PAPER = "paper_figures"
ABOUT = (
    "Published values are those of the abstract; the paper's tables could not be obtained, so where none is known it "
    "says so. Simulated clusters and acceptance rates are assumptions, labelled so in workloads/; limits are closed "
    "forms. What makes the comparison fair, every definition and both node accountings are in docs/fairness.md."
)

WORDS = {
    "iterative, speculative": "plain decoding, and synchronous speculation, which drafts K tokens, verifies them in "
    "one run, and drafts again",
    "k, draft": "drafted tokens per run: of synchronous speculation (K), and of PipeInfer's micro-batches",
    "cutoff": "confidence of the draft below which it stops",
    "acceptance": "chance that a drafted token is right when all before it were; i.i.d.: the same for each, varied: by "
    "position",
    "acceptance length": "tokens made known per verified speculative run",
    "further row, row cost": "what it takes to verify one more token in the same run: of a run of one where it was "
    "measured; where it was simulated, 0 is free and 1 what a roofline model of the node says",
    "over iterative, over speculative": "speed, of that of the best of these in the same place and draw",
    "first token, decode only": "from the request to the first token, and from the first to the second",
    "mean gap, p50, p95, p99": "time between tokens: mean, median and percentiles",
    "limit": "closed form for free width and links",
    "same-ranks, as-published": "as many ranks for every strategy, or the layouts of the authors' scripts",
}
"""For readers who are new to the field."""


class Section(NamedTuple):
    """An experiment in the report; `pictures`: the names of its figures."""

    recipe: Recipe
    pictures: list[str]
    table: Table | None
    blocks: list[Block]
    tables_s: float = 0.0

    @property
    def plan(self) -> str:
        """What it is for and what it takes."""
        recipe = self.recipe
        return (
            f"Fidelity: {recipe.fidelity}." + f" Bears on: {', '.join(recipe.claims)}." * bool(recipe.claims)
            + f" Expected: {recipe.expected}. Needs: {recipe.hardware}; about {recipe.minutes:g} min."
        )  # fmt: skip

    @property
    def shown(self) -> Table | None:
        """Its table for a terminal, on which nothing stands above; of what was simulated there is too much."""
        if self.table is None or self.recipe.fidelity == "sim":
            return None
        title = f"{self.recipe.heading} ({self.recipe.fidelity})"
        return msgspec.structs.replace(self.table, title=f"{title}: {self.table.title}".removesuffix(": "))


class Conclusion(NamedTuple):
    """What a person wants to see at once: the verdicts, the tables of what was run in real time, and a line for each
    recipe in which something went wrong."""

    claims: list[Claim]
    tables: list[Table]
    problems: list[str]


def conclude(
    recipes: Sequence[Recipe], store: Store, folder: Path, remarks: Sequence[str] = (), others: Others | None = None
) -> Conclusion:
    """Tables, figures, claims.json, report.md and report.html from the records in `folder`; nothing is run again.
    `others`: processes that help to draw."""
    recipes = [grown(recipe, store.records) for recipe in recipes]
    try:
        found = tables_in(folder, recipes, store)
    except OSError as problem:  # Arrow's own words are longer.
        words = os.strerror(problem.errno) if problem.errno else str(problem)
        raise WorkloadError(f"{folder}: the report cannot be written: {words}") from None
    return report(recipes, found, folder, remarks, others)


def report(
    recipes: Sequence[Recipe], found: Tables, folder: Path, remarks: Sequence[str] = (), others: Others | None = None
) -> Conclusion:
    """Write the report of these recipes, from the tables alone. Raises WorkloadError when a file cannot be written."""
    experiments = {recipe.name: Experiment(recipe, found) for recipe in recipes}
    try:
        with Drawings(others) as drawings:
            sections = [section(drawings, one, folder / FIGURES) for one in experiments.values()]
            claims = [with_card(drawings, claim, experiments, folder / FIGURES) for claim in judge(experiments)]
            paper = paper_figures(drawings, experiments.get("pairs"), folder / PAPER)
            first = first_screen(drawings, claims, experiments, folder / FIGURES)
        _keep_in_checkout(paper, folder)
        ends = appendix(experiments, {one.recipe.name: _took_s(one, drawings, folder) for one in sections}, claims)
        (folder / "claims.json").write_bytes(msgspec.json.format(msgspec.json.encode(claims)) + b"\n")
        _render(folder, first, claims, sections, paper, ends, remarks)
        write_crate(folder, shlex.join(["pipeinfer", *sys.argv[1:]]))
    except OSError as problem:
        raise WorkloadError(f"{folder}: the report cannot be written: {problem.strerror}") from None
    shown = [one.shown for one in sections if one.shown is not None]
    return Conclusion(claims, shown, [line for one in experiments.values() for line in _problem(one)])


def section(drawings: Drawings, experiment: Experiment, figures: Path) -> Section:
    """What the report says of an experiment; has its figures drawn."""
    start = time.perf_counter()
    recipe = experiment.recipe
    nothing = (
        "no trial passed" if experiment.best.empty
        else "what would predict it failed" if recipe.checked and predictions(experiment).empty else ""
    )  # fmt: skip
    if nothing:
        return Section(recipe, [], None, [*notes(experiment), f"Nothing to show: {nothing}."])
    drawn = [draw(drawings, experiment, figure, figures) for figure in recipe.figures]
    table, blocks = results(experiment), list(notes(experiment))
    return Section(recipe, [path.name for path in drawn], table, blocks, time.perf_counter() - start)


def _took_s(section: Section, drawings: Drawings, folder: Path) -> float:
    """Tables and figures."""
    return section.tables_s + sum(drawings.seconds.get(folder / FIGURES / name, 0.0) for name in section.pictures)


def _problem(experiment: Experiment) -> list[str]:
    wrong = experiment.trials[experiment.trials.status.isin(("failed", "differs", "no reference"))]
    if wrong.empty:
        return []
    return [f"{experiment.recipe.name}: {len(wrong)} trials have no figure, the first because {wrong.why.iloc[0]}"]


def _keep_in_checkout(paper: Sequence[str], folder: Path) -> None:
    """The paper's figures lie there too."""
    rendered = PACKAGE.parent / PAPER / "rendered"
    if paper and (PACKAGE.parent / "pyproject.toml").exists():
        rendered.mkdir(exist_ok=True)
        for path in sorted((folder / PAPER).iterdir()):
            shutil.copy(path, rendered / path.name)


# Pages

OF_MARKDOWN = re.compile(r"[\\`*|]|(?<!\w)_|_(?!\w)|(?<=\])\(")
"""Characters that it would take for its own; a _ between letters is none."""


def _render(
    folder: Path, first: FirstScreen, claims: Sequence[Claim], sections: Sequence[Section], paper: Sequence[str],
    ends: Appendix, remarks: Sequence[str],
) -> None:  # fmt: skip
    @cache
    def drawing(name: str, below: str = FIGURES) -> Inline:
        return inline(folder / below / f"{name}.svg")

    def drawings(names: Sequence[str], below: str = FIGURES) -> tuple[str, list[Inline]]:
        return beside_one_another([drawing(name, below) for name in names])

    said: dict[str, Any] = {
        "title": "PipeInfer (SC'24): reproduction report", "about": ABOUT, "words": WORDS, "first": first,
        "claims": claims, "sections": sections, "paper": paper, "appendix": ends, "remarks": remarks,
        "drawing": drawing, "drawings": drawings, "row": row_of_markdown,
        "is_table": lambda block: isinstance(block, Table),
    }  # fmt: skip
    for name, finalize in (("report.html", None), ("report.md", markdown)):
        pages = Environment(loader=PackageLoader("pipeinfer.report"), undefined=StrictUndefined, trim_blocks=True,
                            lstrip_blocks=True, autoescape=True, finalize=finalize)  # fmt: skip
        text = pages.get_template(f"{name}.jinja").render(said)
        (folder / name).write_text(text.rstrip() + "\n", encoding="utf-8")


def markdown(said: object) -> Markup:
    """What names files, tokens and errors, as a line of Markdown: nothing of it is a tag, emphasis or a cell's end."""
    if isinstance(said, Markup):
        return said
    return Markup(" ".join(OF_MARKDOWN.sub(r"\\\g<0>", str(said)).replace("<", "&lt;").splitlines()))


def row_of_markdown(cells: Sequence[str]) -> Markup:
    """A line of a table."""
    return Markup("| ") + Markup(" | ").join(map(markdown, cells)) + Markup(" |")
