"""Recipes: one TOML file of `reproduce/` per figure or table. A recipe is a sweep; its points are cells."""

from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from pipeinfer.assets import asset
from pipeinfer.engine import model_cache
from pipeinfer.modelling.acceptance import Acceptance, acceptance
from pipeinfer.modelling.simulate import Accounting, Setting
from pipeinfer.prompt_sets import expanded
from pipeinfer.workload import Count, FileEntry, Fraction, Positive, WorkloadError, convert, load, suggest

Axis = Literal["nodes", "width_cost", "draft_cost", "acceptance", "bandwidth_gbps", "latency_us", "size", "cutoff"]
Field = Literal["cluster", "nodes", "node", "acceptance", "drafts", "rate", "pair", "accounting", "prompt"]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Quantity = Literal["speed", "gain", "gap", "tail", "gaps", "first", "utilisation", "processor", "memory", "per_memory"]

ARTIFACT = "artifact"
"""The recipe that needs programs which the user has built."""

PEERS = "peers"
"""The recipe that needs llama.cpp's programs."""

PEER_SERVER, PEERS_PLAIN, PEERS_DRAFT = "ggml-rpc-server", "llama-completion", "llama-speculative-simple"
"""A node of llama.cpp's cluster, and the programs that decode plainly and speculate over such nodes."""

PEER_PROGRAMS = (PEERS_PLAIN, PEERS_DRAFT)

ASKED = {ARTIFACT, PEERS, "calibration-engines", "categories", "load-live"}
"""Recipes that run only where they are asked for."""

BUILD = (
    "to build them, in a clone of github.com/AutonomicPerfectionist/PipeInfer: cmake -B build "
    "-DCMAKE_C_COMPILER=mpicc -DCMAKE_CXX_COMPILER=mpicxx -DLLAMA_MPI=1 && "
    "cmake --build build --config Release --target main speculative_orig speculative"
)
"""What to do where they are missing; docs/artifact.md has the whole way."""


LLAMA_CPP = (
    "to build them, in llama.cpp's sources, which llama-cpp-python's source distribution has in vendor/llama.cpp: "
    f"cmake -B build -DGGML_RPC=ON && cmake --build build --target {PEER_SERVER} {PEERS_PLAIN} {PEERS_DRAFT}"
)


class Simulated(FileEntry, frozen=True, kw_only=True):
    """A sweep in simulation: every combination of the lists. `acceptance` are words of
    `pipeinfer.modelling.acceptance`; of a recorded trace, `seeds` pick the texts. Empty lists
    of bandwidths (1e9 bit/s) and latencies: the clusters' own."""

    pairs: list[str]
    clusters: list[str]
    nodes: list[Count]
    acceptance: list[str]
    seeds: list[int]
    tokens: Annotated[int, msgspec.Meta(ge=2)]
    prompt: Count | list[Count]
    accounting: list[Accounting] = msgspec.field(default_factory=lambda: ["same-ranks"])
    width_cost: list[NotNegative] = msgspec.field(default_factory=lambda: [1.0])
    draft_cost: list[Positive] = msgspec.field(default_factory=lambda: [1.0])
    bandwidth_gbps: list[Positive] = msgspec.field(default_factory=list)
    latency_us: list[NotNegative] = msgspec.field(default_factory=list)
    draft_ranks: Count = 1

    @property
    def prompt_lengths(self) -> list[int]:
        """In tokens."""
        return self.prompt if isinstance(self.prompt, list) else [self.prompt]


class Contender(FileEntry, frozen=True):
    """A strategy as a recipe runs it. `of` names the strategy (default: what the contender is called); every
    combination of `options` is tried and the best is shown; `setting` changes fields of the simulated setting, or
    `prompt_chunk` where it is really run.
    With a `program`, the authors' compiled program of that name runs in its place, with these `arguments`."""

    of: str = ""
    options: dict[str, list[Any]] = msgspec.field(default_factory=dict)
    setting: dict[str, Any] = msgspec.field(default_factory=dict)
    program: str = ""
    arguments: list[str] = msgspec.field(default_factory=list)


class Live(FileEntry, frozen=True, kw_only=True):
    """Real generations: every strategy in turn, `repeats` times, per prompt and temperature. On this machine, or on
    `workers`, the addresses of running ranks. The `backend_options` are those of `--backend-option`. `prompts` are
    names of prompts or of whole sets (pipeinfer/prompt_sets.py). A prompt that is shorter than `prompt_tokens` gets the
    suite's other prompts before it, up to that many. With a `cpu_share` below 1 every rank is as slow as a node of that
    share of the speed, and links can be limited: slow nodes on one machine, whose cores they then do not take from one
    another. `node_cores`: of a plan's nodes, and of llama.cpp's beside them. `predicted`: the simulator says how fast
    each should be, from fit trials. `exact`: no ties."""

    backend: str
    target: str
    draft: str
    transport: str
    stages: Count
    prompts: list[str]
    temperatures: list[NotNegative]
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)]
    seed: int
    tokens: Annotated[int, msgspec.Meta(ge=2)]
    repeats: Count
    backend_options: dict[str, Any] = msgspec.field(default_factory=dict)
    workers: tuple[str, ...] = ()
    prompt_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    cpu_share: Fraction = 1.0
    node_cores: Positive | None = None
    exact: bool = False
    bandwidth_gbps: Positive | None = None
    latency_us: NotNegative = 0.0
    predicted: bool = False


class Shape(FileEntry, frozen=True):
    """What links are limited to."""

    bandwidth_gbps: Positive
    latency_us: NotNegative


class Checked(FileEntry, frozen=True, kw_only=True):
    """The simulator held against generations of several backends (name to options), on every number of stages and every
    shape of links: each backend is calibrated, fitted and then run, `repeats` times in turn."""

    backends: dict[str, dict[str, Any]]
    target: str
    draft: str
    transport: str
    stages: list[Count]
    links: list[Shape]
    prompt: str
    seed: int
    tokens: Annotated[int, msgspec.Meta(ge=2)]
    repeats: Count

    def live(self, backend: str, stages: int, link: Shape) -> Live:
        """The generations of one backend, depth and kind of link."""
        return Live(
            backend=backend, backend_options=self.backends[backend], target=self.target, draft=self.draft,
            transport=self.transport, stages=stages, prompts=[self.prompt], temperatures=[0.0], top_p=1.0,
            seed=self.seed, tokens=self.tokens, repeats=self.repeats, bandwidth_gbps=link.bandwidth_gbps,
            latency_us=link.latency_us, predicted=True,
        )  # fmt: skip


class Emulation(msgspec.Struct, frozen=True):
    """Over what the ranks of an emulated sweep talk; `workers` are the addresses of running ones."""

    transport: str = "tcp"
    workers: tuple[str, ...] = ()


class Site(NamedTuple):
    """What decides whether a point of a sweep can be: the models have to fit the ranks."""

    cluster: str
    pair: str
    nodes: int
    accounting: str


class Figure(FileEntry, frozen=True):
    """How a recipe is drawn: `lines` of `y` along `x` with a panel for each value of `panels`, the single trials as
    `dots`, the `percentiles` of the gaps between tokens, the `timeline` of one draw; the `league` of many
    strategies over many places; or the drafts themselves, by `calibration` of their confidence and by `stretches` of
    right ones; or the `scatter` of what is predicted over what is measured; or gains and drafts by the prompts'
    `categories`; or speed and latency by how many `requests` are in the pipe at once."""

    kind: Literal[
        "lines", "dots", "percentiles", "timeline", "league", "calibration", "stretches", "scatter", "categories",
        "requests",
    ]
    x: Axis = "nodes"
    y: Quantity = "speed"
    panels: tuple[Field, ...] = ()


class Artifact(msgspec.Struct, frozen=True):
    """Where the authors' programs are, the command that starts an MPI world of them, and what the user adds to their
    command lines."""

    folder: str
    launcher: str = "mpirun"
    arguments: str = ""


class Recipe(FileEntry, frozen=True, kw_only=True):
    """What a file of `reproduce/`, or a `file` of the user's own, says. `claims` are ids of
    paper_figures/reference/claims.toml. There is a table in any case, besides the `figures`.

    `emulated` is the part of the sweep that may be run in real time: lists that replace those of `simulated`, and the
    `strategies` if not all of them. `emulation`, which no file has, says that this recipe *is* that part; `left_out`
    are points of the sweep that the cluster has no room for; `requests`: how many are in the pipeline at once, where it
    is about that; `artifact` is what the user has built; `grown` are the
    `Point`s that were added to sweeps whose best was at their edge (`pipeinfer.study.growth`)."""

    title: str
    about: str
    claims: list[str]
    expected: str
    minutes: float
    hardware: str
    strategies: dict[str, Contender]
    figures: tuple[Figure, ...] = ()
    simulated: Simulated | None = None
    emulated: dict[str, Any] | None = None
    live: Live | None = None
    checked: Checked | None = None
    requests: list[Count] = msgspec.field(default_factory=list)
    name: str = ""
    file: str = ""
    emulation: Emulation | None = None
    left_out: tuple[Site, ...] = ()
    artifact: Artifact | None = None
    grown: tuple[Any, ...] = ()

    @property
    def fidelity(self) -> str:
        """sim, emulated, or real where something is really run."""
        return "real" if self.live or self.checked else "emulated" if self.emulation else "sim"

    @property
    def source(self) -> str:
        """The file, for messages."""
        return self.file or f"reproduce/{self.name}.toml"

    @property
    def beside_llama_cpp(self) -> bool:
        """llama.cpp's own programs are contenders."""
        return any(one.program in PEER_PROGRAMS for one in self.strategies.values())

    @property
    def beside_artifact(self) -> bool:
        """The authors' programs are contenders."""
        return any(one.program and one.program not in PEER_PROGRAMS for one in self.strategies.values())

    def draws(self, kind: str) -> bool:
        """Whether one of the figures is of that kind."""
        return any(figure.kind == kind for figure in self.figures)


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
    prompt_chunk: Annotated[int, msgspec.Meta(ge=1)] | Literal["auto", "whole"] = "auto"


class LoadCell(SimCell, frozen=True):
    """The simulated generation `number` (from 0) of `requests` that begin at the same moment in one pipeline."""

    requests: int = 1
    number: int = 0


class LiveLoadCell(LiveCell, frozen=True):
    """The same, really run."""

    requests: int = 1
    number: int = 0


class ProgramCell(msgspec.Struct, frozen=True):
    """One generation by a program of the artifact, where `live` says what ours does."""

    program: str
    arguments: list[str]
    options: dict[str, Any]
    prompt: str
    temperature: float
    repeat: int
    live: Live
    artifact: Artifact


class PredictorCell(msgspec.Struct, frozen=True):
    """What it takes to predict generations of `live`: a calibration, fit trials, and the draft's traces."""

    live: Live


Cell = SimCell | LiveCell | ProgramCell | PredictorCell


class Point(NamedTuple):
    """A cell, and which contender of its recipe it belongs to."""

    contender: str
    cell: Cell


def recipe_names() -> list[str]:
    """Every recipe that runs without being asked for."""
    return sorted({path.stem for path in asset("reproduce").glob("*.toml")} - ASKED)


def read_recipe(name: str) -> Recipe:
    """The recipe of that name, or in a file of the user's own, which ends in .toml. Raises WorkloadError or
    BadModel."""
    path = _recipe_file(name)
    recipe = load(path, Recipe)
    if [recipe.simulated, recipe.live, recipe.checked].count(None) != 2:
        raise WorkloadError(f"{path}: expected one of [simulated], [live] and [checked]")
    recipe = msgspec.structs.replace(recipe, name=path.stem, file="" if _is_ours(path) else str(path))
    if recipe.live is not None:
        named = [prompt for word in recipe.live.prompts for prompt in expanded(word)]
        recipe = msgspec.structs.replace(recipe, live=msgspec.structs.replace(recipe.live, prompts=named))
    if recipe.emulated is not None:
        emulated(recipe, Emulation())  # which says what is wrong with it
    return recipe


def _recipe_file(name: str) -> Path:
    """Where a recipe is. One of the user's own has a name of its own, by which its results are known."""
    known = [*recipe_names(), *sorted(ASKED)]
    if name in known:
        return asset("reproduce") / f"{name}.toml"
    if not name.endswith(".toml"):
        raise WorkloadError(f'no recipe "{name}"{suggest(name, known)}, or FILE.toml for one of your own')
    path = model_cache.expanded(name).resolve()
    if path.stem in known and not _is_ours(path):
        raise WorkloadError(f'{name}: there is a recipe "{path.stem}" already: give the file another name')
    return path


def _is_ours(path: Path) -> bool:
    return path.resolve().parent == asset("reproduce").resolve()


def emulated(recipe: Recipe, emulation: Emulation) -> Recipe:
    """The part of a recipe that is run in real time. Raises WorkloadError."""
    where = f"{recipe.source}: emulated"
    if recipe.simulated is None or recipe.emulated is None:
        raise WorkloadError(f"{where}: there is no such table")
    lists = dict(recipe.emulated)
    some = lists.pop("strategies", None)
    strategies = recipe.strategies if some is None else convert(some, dict[str, Contender], f"{where}.strategies")
    sweep = convert({**msgspec.to_builtins(recipe.simulated), **lists}, Simulated, where)
    return msgspec.structs.replace(recipe, simulated=sweep, strategies=strategies, emulation=emulation)


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
        return [_in_real_time(point, recipe.emulation) for point in found] if recipe.emulation else found
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
        for number in range(requests):
            if isinstance(cell, LiveCell):
                assert recipe.live is not None
                prompt = recipe.live.prompts[number % len(recipe.live.prompts)]
                yield Point(contender, LiveLoadCell(
                    cell.strategy, cell.options, prompt, cell.temperature, cell.repeat, recipe.live, cell.prompt_chunk,
                    requests, number,
                ))  # fmt: skip
            elif isinstance(cell, SimCell):
                setting = msgspec.structs.replace(cell.setting, seed=DRAWS * cell.setting.seed + number)
                yield Point(contender, LoadCell(cell.cluster, cell.pair, setting, False, requests, number))


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


def _in_real_time(point: Point, emulation: Emulation) -> Point:
    cell = point.cell
    assert isinstance(cell, SimCell)
    return Point(point.contender, EmulatedCell(cell.cluster, cell.pair, cell.setting, cell.spans, emulation))


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
    prompt_chunk: Annotated[int, msgspec.Meta(ge=1)] | Literal["auto", "whole"] = "auto"


def _live_points(recipe: Recipe, live: Live) -> Iterator[Point]:
    # Strategies alternate within a repetition, so that what else the machine does hits all of them alike.
    for prompt, temperature, repeat in product(live.prompts, live.temperatures, range(live.repeats)):
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
