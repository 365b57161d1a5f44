"""Recipes: one TOML file of `reproduce/` per figure or table. A recipe is a sweep; its points are cells."""

from collections.abc import Iterator
from itertools import product
from typing import Annotated, Any, Literal

import msgspec

from pipeinfer.assets import asset
from pipeinfer.simulate import Accounting, Setting
from pipeinfer.workload import Count, Entry, WorkloadError, acceptance, load, suggest

Axis = Literal["nodes", "width_cost", "acceptance"]
Options = dict[str, list[Any]]
"""Option name to the values to sweep."""


class Simulated(Entry, frozen=True, kw_only=True):
    """A sweep in simulation: every combination of the lists."""

    pairs: list[str]
    clusters: list[str]
    nodes: list[Count]
    acceptance: list[str]
    seeds: list[int]
    tokens: Annotated[int, msgspec.Meta(ge=2)]
    prompt: Count
    accounting: list[Accounting] = msgspec.field(default_factory=lambda: ["same-ranks"])
    width_cost: list[Annotated[float, msgspec.Meta(ge=0)]] = msgspec.field(default_factory=lambda: [1.0])


class Live(Entry, frozen=True, kw_only=True):
    """Real generations on this machine: every strategy in turn, `repeats` times, per prompt and temperature."""

    backend: str
    target: str
    draft: str
    transport: str
    stages: Count
    prompts: list[str]
    temperatures: list[Annotated[float, msgspec.Meta(ge=0)]]
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)]
    seed: int
    tokens: Annotated[int, msgspec.Meta(ge=2)]
    repeats: Count


class Figure(Entry, frozen=True):
    """How a recipe is drawn: `lines` of speed along `x` with a panel for each value of `panels`, the single trials as
    `dots`, or the `timeline` of one draw."""

    kind: Literal["lines", "dots", "timeline"]
    x: Axis = "nodes"
    panels: tuple[Literal["cluster", "acceptance", "pair"], ...] = ()


class Recipe(Entry, frozen=True, kw_only=True):
    """What a file of `reproduce/` says. `claims` are ids of paper_figures/reference/claims.toml;
    without a `figure` there is a table only."""

    title: str
    about: str
    claims: list[str]
    expected: str
    minutes: float
    hardware: str
    strategies: dict[str, Options]
    figure: Figure | None = None
    simulated: Simulated | None = None
    live: Live | None = None
    name: str = ""

    @property
    def fidelity(self) -> str:
        """sim, or real where something is really run."""
        return "sim" if self.simulated else "real"


class SimCell(msgspec.Struct, frozen=True):
    """One point of a simulated sweep. `spans`: its timeline is kept."""

    cluster: str
    pair: str
    setting: Setting
    spans: bool = False


class LiveCell(msgspec.Struct, frozen=True):
    """One real generation. `repeat` counts from 0."""

    strategy: str
    options: dict[str, Any]
    prompt: str
    temperature: float
    repeat: int
    live: Live


Cell = SimCell | LiveCell


def recipe_names() -> list[str]:
    """Every recipe that there is."""
    return sorted(path.stem for path in asset("reproduce").glob("*.toml"))


def read_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises WorkloadError."""
    known = recipe_names()
    if name not in known:
        raise WorkloadError(f'no recipe "{name}"{suggest(name, known)}')
    path = asset("reproduce") / f"{name}.toml"
    recipe = load(path, Recipe)
    if (recipe.simulated is None) == (recipe.live is None):
        raise WorkloadError(f"{path}: expected either [simulated] or [live]")
    return msgspec.structs.replace(recipe, name=name)


def cells(recipe: Recipe) -> list[Cell]:
    """Every point of a recipe's sweep, in the order in which they are run."""
    if recipe.simulated is not None:
        return list(_simulated_cells(recipe, recipe.simulated))
    assert recipe.live is not None
    return list(_live_cells(recipe, recipe.live))


def variants(strategies: dict[str, Options]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each strategy with each combination of its options."""
    for strategy, options in strategies.items():
        for values in product(*options.values()):
            yield strategy, dict(zip(options, values, strict=True))


def _simulated_cells(recipe: Recipe, sweep: Simulated) -> Iterator[SimCell]:
    for cluster, pair, level, accounting, width, nodes in product(
        sweep.clusters, sweep.pairs, sweep.acceptance, sweep.accounting, sweep.width_cost, sweep.nodes
    ):
        for (strategy, options), seed in product(variants(recipe.strategies), sweep.seeds):
            setting = Setting(
                strategy=strategy, options=options, nodes=nodes, acceptance=acceptance(level), seed=seed,
                tokens=sweep.tokens, prompt=sweep.prompt, accounting=accounting, width_cost=width,
            )  # fmt: skip
            yield SimCell(cluster, pair, setting, spans=recipe.figure is not None and recipe.figure.kind == "timeline")


def _live_cells(recipe: Recipe, live: Live) -> Iterator[LiveCell]:
    # Strategies alternate within a repetition, so that what else the machine does hits all of them alike.
    for prompt, temperature, repeat in product(live.prompts, live.temperatures, range(live.repeats)):
        for strategy, options in variants(recipe.strategies):
            yield LiveCell(strategy, options, prompt, temperature, repeat, live)
