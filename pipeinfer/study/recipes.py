"""Recipes: one TOML file of `reproduce/` per figure or table. A recipe is a sweep; its points are cells."""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from pipeinfer.assets import asset
from pipeinfer.engine import model_cache
from pipeinfer.modelling.simulate import Accounting
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
    With a `program`, the compiled one of that name, the authors' or llama.cpp's, runs in its place, with these
    `arguments`."""

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
    each should be, from fit trials. `exact`: no ties. `tuned_on`: prompts with which options are chosen; then only
    the best of each strategy is run with `prompts`, all in turn. Generations that choose have `tuned_tokens` where that
    is given. Without `tuned_on`, every option is run with `prompts` and the fastest is shown, which is partly luck."""

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
    tuned_on: list[str] = msgspec.field(default_factory=list)
    tuned_tokens: Annotated[int, msgspec.Meta(ge=2)] | None = None


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
    """Where the programs are that the user has built: the authors', with the command that starts an MPI world of them
    and what the user adds to their command lines; or llama.cpp's, which take neither."""

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
    def heading(self) -> str:
        """The title, with whether it is emulated."""
        return self.title + ", emulated" * (self.emulation is not None)

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
        named = {
            field: [prompt for word in getattr(recipe.live, field) for prompt in expanded(word)]
            for field in ("prompts", "tuned_on")
        }
        live = msgspec.structs.replace(recipe.live, **named)
        recipe = msgspec.structs.replace(recipe, live=live)
        _check_tuning(recipe, live)
    if recipe.emulated is not None:
        emulated(recipe, Emulation())  # which says what is wrong with it
    return recipe


def _check_tuning(recipe: Recipe, live: Live) -> None:
    """Raises WorkloadError where options could not be chosen with prompts of their own."""
    if both := set(live.tuned_on) & set(live.prompts):
        raise WorkloadError(
            f'{recipe.source}: live.tuned_on: "{min(both)}" is among the prompts too: expected others than those '
            "on which strategies are compared"
        )
    if live.tuned_tokens is not None and not live.tuned_on:
        raise WorkloadError(f"{recipe.source}: live.tuned_tokens: expected `tuned_on` beside it, or nothing is tuned")
    if live.tuned_on and (recipe.requests or any(one.program for one in recipe.strategies.values())):
        raise WorkloadError(
            f"{recipe.source}: live.tuned_on: expected strategies of ours, one request at a time: leave it out beside "
            "`requests` or a `program`"
        )


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
