"""What a recipe's sweep consists of: cells, each with all that decides its result, and points, which are cells with the
contender that they belong to."""

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec

from pipeinfer.modelling.acceptance import Acceptance, acceptance
from pipeinfer.modelling.simulate import Setting
from pipeinfer.study.recipes import (
    BUILD,
    LLAMA_CPP,
    Artifact,
    Contender,
    Emulation,
    Live,
    Recipe,
    Simulated,
    Site,
)
from pipeinfer.workload import Count, FileEntry, WorkloadError, convert

PromptChunk: TypeAlias = Count | Literal["auto", "whole"]


class SimCell(msgspec.Struct, frozen=True):
    """One point of a simulated sweep. `spans`: its timeline is kept."""

    cluster: str
    pair: str
    setting: Setting
    spans: bool = False


class EmulatedCell(SimCell, frozen=True):
    """The same in real time: ranks of their own on shaped links, which wait where they would compute."""

    emulation: Emulation = Emulation()


class LiveCell(msgspec.Struct, frozen=True):
    """One real generation. `repeat` counts from 0."""

    strategy: str
    options: dict[str, Any]
    prompt: str
    temperature: float
    repeat: int
    live: Live
    prompt_chunk: PromptChunk = "auto"

    @property
    def tokens(self) -> int:
        """How many are generated."""
        return (self.live.tuned_tokens if self.prompt in self.live.tuned_on else None) or self.live.tokens


class LoadCell(SimCell, frozen=True):
    """The simulated generation `number` (from 0) of `requests` that begin at the same moment in one pipeline."""

    requests: int = 1
    number: int = 0


class LiveLoadCell(LiveCell, frozen=True):
    """The same, really run."""

    requests: int = 1
    number: int = 0


L = TypeVar("L", LoadCell, LiveLoadCell)


class ProgramCell(msgspec.Struct, frozen=True):
    """One generation by a compiled program, the authors' or llama.cpp's own, where `live` says what ours does."""

    program: str
    arguments: list[str]
    options: dict[str, Any]
    prompt: str
    temperature: float
    repeat: int
    live: Live
    artifact: Artifact

    @property
    def words(self) -> list[str]:
        """Arguments and options, for a command line."""
        return [*self.arguments, *(word for name, value in self.options.items() for word in (f"--{name}", str(value)))]


class PredictorCell(msgspec.Struct, frozen=True):
    """What it takes to predict generations of `live`: a calibration, fit trials, and the draft's traces."""

    live: Live


Cell = SimCell | LiveCell | ProgramCell | PredictorCell


class Point(NamedTuple):
    """A cell, and which contender of its recipe it belongs to."""

    contender: str
    cell: Cell


def simulated_twin(cell: EmulatedCell) -> SimCell:
    """The same cell, simulated."""
    return SimCell(cell.cluster, cell.pair, cell.setting, cell.spans)


def cells(recipe: Recipe) -> list[Cell]:
    """Every cell of a recipe's sweep, in the order in which they are run: first the simulated ones, for an emulated
    recipe too, whose results are held against them; and what is predicted right after its predictor."""
    if recipe.checked is not None or (recipe.live is not None and recipe.live.predicted):
        return list(_with_predictors(recipe))
    return cells_of(points(recipe))


def cells_of(some: Iterable[Point]) -> list[Cell]:
    """The cells of points, after those that emulated ones are held against."""
    found = [point.cell for point in some]
    return [*[simulated_twin(cell) for cell in found if isinstance(cell, EmulatedCell)], *found]


def points(recipe: Recipe) -> list[Point]:
    """The cells that a recipe is about, with their contenders: without those that an emulated one is held against."""
    return [*_planned(recipe), *recipe.grown]


def _planned(recipe: Recipe) -> list[Point]:
    if recipe.requests:
        return [point for count in recipe.requests for point in _loads(recipe, count)]
    if recipe.simulated is not None:
        found = list(_simulated_points(recipe, recipe.simulated))
        if recipe.emulation is None:
            return found
        return [
            Point(name, EmulatedCell(cell.cluster, cell.pair, cell.setting, cell.spans, recipe.emulation))
            for name, cell in found if isinstance(cell, SimCell)
        ]  # fmt: skip
    if recipe.checked is not None:
        check = recipe.checked
        lives = [check.live(*one) for one in product(check.backends, check.stages, check.links)]
        return [point for live in lives for point in _live_points(recipe, live)]
    assert recipe.live is not None
    return list(_live_points(recipe, recipe.live))


DRAWS = 1024
"""Requests of one load draw by seeds that are as far from those of the next."""


def _loads(recipe: Recipe, requests: int) -> Iterator[Point]:
    """Of each point of a sweep, `requests` at once: each with a draw or a prompt of its own."""
    one = msgspec.structs.replace(recipe, requests=[])
    if recipe.live is not None:  # Which prompts there are is for the requests to share.
        one = msgspec.structs.replace(one, live=msgspec.structs.replace(recipe.live, prompts=recipe.live.prompts[:1]))
    for contender, cell in _planned(one):
        load: list[Any] = []
        if isinstance(cell, LiveCell):
            assert recipe.live is not None
            load = whole(LiveLoadCell(
                cell.strategy, cell.options, cell.prompt, cell.temperature, cell.repeat, recipe.live,
                cell.prompt_chunk, requests,
            ))  # fmt: skip
        elif isinstance(cell, SimCell):
            setting = msgspec.structs.replace(cell.setting, seed=DRAWS * cell.setting.seed)
            load = whole(LoadCell(cell.cluster, cell.pair, setting, False, requests))
        yield from (Point(contender, request) for request in load)


def whole(cell: L) -> list[L]:
    """Every request of the load that a cell is one of."""
    replace, every = msgspec.structs.replace, range(cell.requests)
    if isinstance(cell, LiveLoadCell):
        prompts = cell.live.prompts
        return [replace(cell, number=number, prompt=prompts[number % len(prompts)]) for number in every]
    first = cell.setting.seed - cell.number
    return [replace(cell, number=number, setting=replace(cell.setting, seed=first + number)) for number in every]


def predictor_of(live: Live) -> PredictorCell:
    """The one for these generations: the same for all depths and links, so that it says nothing about any of them."""
    return PredictorCell(
        msgspec.structs.replace(live, stages=PREDICTOR_STAGES, repeats=1, bandwidth_gbps=None, latency_us=0.0)
    )


PREDICTOR_STAGES = 2
"""Stages of fit trials."""


def _with_predictors(recipe: Recipe) -> Iterator[Cell]:
    predictor = None
    for point in points(recipe):
        assert isinstance(point.cell, LiveCell)
        if predictor != (predictor := predictor_of(point.cell.live)):
            yield predictor
        yield point.cell


def _variants(recipe: Recipe) -> Iterator[tuple[str, Contender, dict[str, Any]]]:
    """Each contender with each combination of its options."""
    for name, contender in recipe.strategies.items():
        for values in product(*contender.options.values()):
            yield name, contender, dict(zip(contender.options, values, strict=True))


def _simulated_points(recipe: Recipe, sweep: Simulated) -> Iterator[Point]:
    bandwidths: list[float | None] = [*sweep.bandwidth_gbps] or [None]
    latencies: list[float | None] = [*sweep.latency_us] or [None]
    for cluster, pair, level, accounting, width, draft, bandwidth, latency, prompt, nodes in product(
        sweep.clusters, sweep.pairs, sweep.acceptance, sweep.accounting, sweep.width_cost, sweep.draft_cost,
        bandwidths, latencies, sweep.prompt_lengths, sweep.nodes,
    ):  # fmt: skip
        if Site(cluster, pair, nodes, accounting) in recipe.left_out:
            continue
        drafts = acceptance(level)
        place = {
            "nodes": nodes, "acceptance": drafts.rate, "difficulty": drafts.difficulty, "trace": drafts.trace,
            "phases": drafts.phases,
            "accounting": accounting, "width_cost": width, "draft_cost": draft, "bandwidth_gbps": bandwidth,
            "latency_us": latency, "tokens": sweep.tokens, "prompt": prompt, "draft_ranks": sweep.draft_ranks,
        }  # fmt: skip
        for (name, contender, options), seed in product(_meant(_variants(recipe), drafts), sweep.seeds):
            fields = {**place, "strategy": contender.of or name, "options": options, "seed": seed, **contender.setting}
            setting = convert(fields, Setting, f"{recipe.source}: strategies.{name}.setting")
            yield Point(name, SimCell(cluster, pair, setting, recipe.draws("timeline")))


def _meant(
    variants: Iterable[tuple[str, Contender, dict[str, Any]]], drafts: Acceptance
) -> list[tuple[str, Contender, dict[str, Any]]]:
    """The variants without their cutoffs where the draft's confidence tells nothing: there they would do nothing."""
    if drafts.difficulty is not None or drafts.trace is not None:
        return list(variants)
    found = []
    for name, contender, options in variants:
        without = {option: value for option, value in options.items() if option != "cutoff"}
        if (name, contender, without) not in found:
            found.append((name, contender, without))
    return found


class _LiveSetting(FileEntry, frozen=True):
    prompt_chunk: PromptChunk = "auto"


def _live_points(recipe: Recipe, live: Live) -> Iterator[Point]:
    # Strategies alternate within a repetition, so that what else the machine does hits all of them alike.
    for prompt, temperature, repeat in product(live.tuned_on or live.prompts, live.temperatures, range(live.repeats)):
        for name, contender, options in _variants(recipe):
            where = f"{recipe.source}: strategies.{name}.setting"
            chunk = convert(contender.setting, _LiveSetting, where).prompt_chunk
            cell = LiveCell(contender.of or name, options, prompt, temperature, repeat, live, chunk)
            yield Point(name, _by_program(recipe, contender, cell) if contender.program else cell)


def _by_program(recipe: Recipe, contender: Contender, cell: LiveCell) -> ProgramCell:
    if recipe.artifact is None and recipe.beside_llama_cpp:
        raise WorkloadError(f'recipe "{recipe.name}" runs llama.cpp\'s programs: give --llama-cpp DIR; {LLAMA_CPP}')
    if recipe.artifact is None:
        raise WorkloadError(f'recipe "{recipe.name}" runs the authors\' programs: give --artifact DIR; {BUILD}')
    return ProgramCell(
        contender.program, contender.arguments, cell.options, cell.prompt, cell.temperature, cell.repeat, cell.live,
        recipe.artifact,
    )  # fmt: skip
