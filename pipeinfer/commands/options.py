"""Options that several commands share, each declared once: frozen dataclasses, one per subject.

A command takes such dataclasses as parameters, and `with_options` shows typer their fields instead.
"""

import dataclasses
import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from pipeinfer.cluster.settings import Settings
    from pipeinfer.engine.sampling import Sampling

TEXT, MODELS, PIPELINE, SAMPLING, OUTPUT = "Text", "Models", "Pipeline", "Sampling", "Output"
SIMULATION, ARTIFACT, STATISTICS = "Simulation", "Others' programs", "Statistics"
"""The panels of `--help`."""


def option(panel: str, text: str, *names: str, **more: Any) -> Any:
    """A typer option in a panel. Its default is told in the text, if at all."""
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False, **more)


AsJson = Annotated[bool, option(OUTPUT, "Print JSON instead of text.", "--json")]


def user_path(text: str) -> Path:
    """A path as a user writes it, perhaps in quotes that keep the shell from reading a ~."""
    from pipeinfer.engine.model_cache import expanded

    try:
        return expanded(text)
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from None


def path_option(panel: str, text: str, *names: str, metavar: str = "FILE") -> Any:
    """The same for a file, or a folder."""
    return option(panel, text, *names, parser=user_path, metavar=metavar)


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` as typer wants it: with the fields of its dataclasses as parameters of its own."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name not in groups:
            parameters.append(parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        group = groups[parameter.name]
        fields = get_type_hints(group, include_extras=True)
        parameters += [
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default,
                              annotation=fields[field.name])
            for field in dataclasses.fields(group)
        ]  # fmt: skip

    @wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        command(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Which models, and who computes them. What is None was not given."""

    backend: Annotated[str | None, option(MODELS, "Who computes: numpy (default), emulated, or a plug-in's.")] = None
    backend_option: Annotated[
        list[str] | None, option(MODELS, "An option of it, like threads=4. May be given again.", metavar="NAME=VALUE")
    ] = None
    target: Annotated[str | None, option(MODELS, "The model: a name the backend knows, or a path.")] = None
    draft: Annotated[str | None, option(MODELS, "The draft model.")] = None

    def given(self) -> dict[str, Any]:
        """Fields of `Settings` that were given."""
        options = key_values(self.backend_option)
        named = {"backend": self.backend, "target": self.target, "draft": self.draft}
        return {name: value for name, value in named.items() if value is not None} | (
            {"backend_options": options} if options else {})  # fmt: skip


@dataclasses.dataclass(frozen=True)
class WorkerOptions(ModelOptions):
    """And on which running workers, or as a cluster file says."""

    cluster_file: Annotated[
        Path | None, path_option(PIPELINE, "A TOML file of such settings; options win over it.")
    ] = None
    workers: Annotated[str | None, option(PIPELINE, "Addresses of running workers, in rank order.")] = None
    key: Annotated[Path | None, path_option(PIPELINE, "The workers' key file.")] = None

    def given(self) -> dict[str, Any]:
        """Fields of `Settings` that were given, here or in the cluster file. Raises ValueError."""
        from pipeinfer.cluster.settings import Settings

        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        given = {name: named[name] for name in Settings.__struct_fields__ if named.get(name) is not None}
        given |= {name: str(given[name]) for name in ("profile", "key") if name in given}
        if self.workers is not None:
            given["workers"] = tuple(address.strip() for address in self.workers.split(","))
        filed = {name: value for name, value in self.filed().items() if name in Settings.__struct_fields__}
        given |= super().given()
        there = filed.get("backend", "numpy")
        if given.get("backend", there) != there:
            filed.pop("backend_options", None)  # They are another backend's.
        if options := filed.get("backend_options", {}) | given.get("backend_options", {}):
            given["backend_options"] = options
        return {**filed, **given}

    def filed(self) -> dict[str, Any]:
        """What the cluster file says, also of what is no setting. Raises ValueError."""
        from pipeinfer.cluster.settings import read_settings

        return read_settings(self.cluster_file) if self.cluster_file is not None else {}


@dataclasses.dataclass(frozen=True)
class ClusterOptions(WorkerOptions):
    """And how many ranks there are, with which layers, over which links."""

    nodes: Annotated[int | None, option(PIPELINE, "Ranks, the draft's included; default: 4, or MPI's.")] = None
    layers: Annotated[str | None, option(PIPELINE, "Layers per rank, / before the draft's: 4,4/1; or auto.")] = None
    profile: Annotated[Path | None, path_option(PIPELINE, "Split as this cluster was calibrated.")] = None
    transport: Annotated[str | None, option(PIPELINE, "tls, tcp, inproc, mpi; default: tls; with mpirun, mpi.")] = None
    launcher: Annotated[str | None, option(PIPELINE, "mpi: start the ranks here by mpiexec.")] = None
    bandwidth: Annotated[str | None, option(PIPELINE, "Limit every link, like 1Gbit.")] = None
    latency: Annotated[str | None, option(PIPELINE, "Delay every link, like 0.2ms.")] = None
    cpu_share: Annotated[float | None, option(PIPELINE, "Compute this share of the time, as on slower nodes.")] = None
    exact: Annotated[
        bool | None, option(PIPELINE, "Row by row: no text parts at a tie, at a price in speed.", "--exact")
    ] = None
    prompt_chunk: Annotated[str | None, option(PIPELINE, "Tokens of the prompt at a time; auto (default), whole.")] = (
        None
    )
    cells: Annotated[int | None, option(PIPELINE, "KV cells per rank; default: as the text takes.")] = None
    sequences: Annotated[int | None, option(PIPELINE, "KV sequence ids per rank; default: 64.")] = None

    def settings(self) -> "Settings":
        """From the cluster file and what was given besides. Raises ValueError."""
        from pipeinfer.cluster.settings import Settings

        return Settings(**self.given())


@dataclasses.dataclass(frozen=True)
class CellOptions:
    """What recipes are changed to: which cells they have."""

    fidelity: Annotated[
        str | None, option(SIMULATION, "sim, emulated or real; default: sim, and real where a recipe is real.")
    ] = None
    cluster: Annotated[
        str | None, option(SIMULATION, "Another cluster there: a name, a TOML file, a calibrated JSON.")
    ] = None
    prompts: Annotated[
        str | None, option(TEXT, "Of what is really run: a set, or a public set's file; FILE:20 for some of it.")
    ] = None
    mpi: Annotated[bool, option(PIPELINE, "Of jobs: over MPI, with a node for each rank.", "--mpi")] = False

    def live(self) -> dict[str, Any]:
        """Fields of what is really run. Raises WorkloadError."""
        from pipeinfer.prompt_sets import expanded

        prompts = {} if self.prompts is None else {"prompts": expanded(self.prompts)}
        return prompts | ({"transport": "mpi"} if self.mpi else {})

    def words(self) -> list[str]:
        """As they were given."""
        given = {"--fidelity": self.fidelity, "--cluster": self.cluster, "--prompts": self.prompts}
        return words(given) + ["--mpi"] * self.mpi


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen."""

    temperature: Annotated[float, option(SAMPLING, "0 (default) is greedy.")] = 0.0
    top_k: Annotated[int, option(SAMPLING, "Among the k likeliest tokens; 0 (default): all.")] = 0
    top_p: Annotated[float, option(SAMPLING, "Within this probability mass; default: 1.")] = 1.0

    def sampling(self) -> "Sampling":
        """Raises ValueError on what is out of range."""
        from pipeinfer.engine.sampling import Sampling

        return Sampling(self.temperature, self.top_k, self.top_p)


@dataclasses.dataclass(frozen=True)
class SeededSampling(SamplingOptions):
    """And by which noise."""

    seed: Annotated[int, option(SAMPLING, "Same seed, same tokens, whatever the strategy; default: 0.")] = 0

    def sampling(self) -> "Sampling":
        from pipeinfer.engine.sampling import Sampling

        return Sampling(self.temperature, self.top_k, self.top_p, self.seed)


def words(given: dict[str, str | None]) -> list[str]:
    """Options with a value, as they are written."""
    return [word for name, value in given.items() if value is not None for word in (name, value)]


def model_words(given: dict[str, Any]) -> list[str]:
    """The options that give these fields of `Settings`, where they are those of `ModelOptions`."""
    import msgspec

    options = {name: msgspec.json.encode(value).decode() for name, value in given.get("backend_options", {}).items()}
    named = words({f"--{name}": given.get(name) for name in ("backend", "target", "draft")})
    return named + [word for name, value in options.items() for word in ("--backend-option", f"{name}={value}")]


def key_values(pairs: list[str] | None) -> dict[str, Any]:
    """`k=6` and the like; values are read as JSON where they are, else taken as text. Raises ValueError."""
    import msgspec

    found: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ValueError(f'option "{pair}": expected name=value')
        try:
            found[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            found[name] = value
    return found
