"""What is simulated and on what: typed TOML files of models, clusters and pairs (`workloads/`).

Every problem is one `WorkloadError` that names the file, the place in it, and what was expected.
"""

import difflib
import re
from codecs import BOM_UTF8
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from pipeinfer.assets import asset

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Fraction = Annotated[float, msgspec.Meta(gt=0, le=1)]
Rate = Annotated[float, msgspec.Meta(ge=0, lt=1)]

T = TypeVar("T")


class WorkloadError(ValueError):
    """A workload cannot be used; one line."""


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what a file lists by name."""


class Model(FileEntry, frozen=True):
    """Dimensions of a decoder-only model; `quantised_gb` are 1e9 bytes of weights as they lie in memory."""

    title: str
    layers: Count
    hidden: Count
    feed_forward: Count
    heads: Count
    kv_heads: Count
    vocabulary: Count
    gated: bool
    tied: bool
    parameters: Positive
    quantised_gb: Positive
    source: str
    size_source: str

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer: query and output, key and value, and the feed-forward's two or three matrices."""
        attention = 2 * self.hidden**2 + 2 * self.hidden * self.kv_width
        return attention + (3 if self.gated else 2) * self.hidden * self.feed_forward

    @property
    def head_parameters(self) -> int:
        """Weights of the output head; the embedding has as many."""
        return self.vocabulary * self.hidden

    @property
    def kv_width(self) -> int:
        """Numbers per token in the keys of one layer; the values have as many."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def counted_parameters(self) -> int:
        """Parameters that follow from the dimensions (norms left out)."""
        return self.layers * self.layer_parameters + (1 if self.tied else 2) * self.head_parameters

    @property
    def bytes_per_weight(self) -> float:
        """Of the quantised file, over all its weights."""
        return self.quantised_gb * 1e9 / self.counted_parameters


class Computer(FileEntry, frozen=True):
    """One computer: what its data sheet says (1e9 bytes/s, 1e9 operations/s) and how much of it an engine gets."""

    title: str
    memory_bandwidth_gbs: Positive
    peak_gflops: Positive
    memory_gb: Positive
    bandwidth_efficiency: Fraction
    arithmetic_efficiency: Fraction
    overhead_us: Annotated[float, msgspec.Meta(ge=0)]
    source: str


class LinkKind(FileEntry, frozen=True):
    """A network: one-way latency in microseconds, bandwidth in 1e9 bit/s per direction."""

    title: str
    latency_us: Annotated[float, msgspec.Meta(ge=0)]
    bandwidth_gbps: Positive
    source: str


class _ClusterEntry(FileEntry, frozen=True):
    nodes: Annotated[list[str], msgspec.Meta(min_length=1)]
    link: str


class _PairEntry(FileEntry, frozen=True):
    target: str
    draft: str


class Hardware(msgspec.Struct, frozen=True):
    """Kinds of node, repeated over the ranks, on one kind of link."""

    name: str
    nodes: tuple[Computer, ...]
    link: LinkKind

    def node(self, rank: int) -> Computer:
        return self.nodes[rank % len(self.nodes)]

    @property
    def title(self) -> str:
        return f"{' / '.join(node.title for node in self.nodes)}, {self.link.title}"


class Pair(msgspec.Struct, frozen=True):
    """A target and its draft."""

    name: str
    target: Model
    draft: Model

    @property
    def title(self) -> str:
        return f"{self.target.title} + {self.draft.title}"


@cache
def cluster(name: str) -> Hardware:
    """A profile of workloads/clusters.toml, by name, or one of a file like it: `mine.toml`, `mine.toml:rack2`. Such a
    file may name nodes and links of workloads/clusters.toml beside its own."""
    path, entry_name = asset("workloads/clusters.toml"), name
    shared: dict[str, dict[str, Any]] = {}
    if (own := _OF_A_FILE.fullmatch(name)) is not None:
        shared = _sections(path, _CLUSTERS)
        path, entry_name = Path(own["path"]), own["name"] or ""
    file = _sections(path, _CLUSTERS)
    if not entry_name:
        entry_name = _only(file["cluster"], path)
    entry = pick(file["cluster"], entry_name, "cluster" if not shared else f"{path}: cluster")
    at = f"{path}: cluster.{entry_name}"
    kinds, links = ({**shared.get(section, {}), **file[section]} for section in ("node", "link"))
    nodes = tuple(pick(kinds, node, f"{at}.nodes: node") for node in entry.nodes)
    return Hardware(entry_name, nodes, pick(links, entry.link, f"{at}.link: link"))


def cluster_name(name: str) -> str:
    """What a cluster is called: the name itself, unless that is where a file lies."""
    return cluster(name).name if _OF_A_FILE.fullmatch(name) else name


_CLUSTERS: dict[str, type] = {"node": Computer, "link": LinkKind, "cluster": _ClusterEntry}
_OF_A_FILE = re.compile(r"(?P<path>.*\.toml)(:(?P<name>[^:/]+))?")


def _only(clusters: dict[str, Any], path: Path) -> str:
    if len(clusters) != 1:
        raise WorkloadError(f"{path}: expected one [cluster.NAME], or which of them as {path}:NAME; there are: "
                            f"{', '.join(sorted(clusters)) or 'none'}")  # fmt: skip
    return next(iter(clusters))


@cache
def pair(name: str) -> Pair:
    """A pair of workloads/pairs.toml, by name."""
    path = asset("workloads/pairs.toml")
    entry = pick(_sections(path, {"pair": _PairEntry})["pair"], name, "pair")
    models = _entries(asset("workloads/models.toml"), Model)
    at = f"{path}: pair.{name}"
    target = pick(models, entry.target, f"{at}.target: model")
    return Pair(name, target, pick(models, entry.draft, f"{at}.draft: model"))


def names(file: str, section: str) -> list[str]:
    """What a file of workloads/ lists in a section: names("clusters", "cluster")."""
    return sorted(_read(asset(f"workloads/{file}.toml")).get(section, {}))


def pick(entries: dict[str, T], name: str, what: str) -> T:
    """`entries[name]`, or a WorkloadError that says which there are."""
    if name not in entries:
        raise WorkloadError(f'no {what} "{name}"{suggest(name, entries)}')
    return entries[name]


def suggest(word: str, known: Iterable[str]) -> str:
    """How an error about an unknown word ends."""
    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=1)
    hint = f'; did you mean "{close[0]}"?' if close else ";"
    return f"{hint} there are: {', '.join(words)}"


def convert(value: Any, kind: type[T], where: str) -> T:
    """A TOML value as `kind`; problems are told with the place `where` and the path below it."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as problem:
        raise WorkloadError(_explain(str(problem), kind, where)) from None


def load(path: Path, kind: type[T]) -> T:
    """A whole TOML file as `kind`, as it is now."""
    return convert(_parsed(path), kind, f"{path}:")


def _explain(text: str, kind: type, where: str) -> str:
    """msgspec's message as ours: the path in the file first, the known keys after an unknown one."""
    text, _, place = text.partition(" - at ")
    steps = re.findall(r"\.(\w+)", place)
    path = ".".join([where, *steps]).replace(":.", ": ")
    unknown = re.search(r"unknown field `(.*)`", text)
    if unknown is None:
        return f"{path}: {text[0].lower()}{text[1:]}".replace("::", ":")
    return f'{path}: unknown key "{unknown[1]}"{suggest(unknown[1], _keys(kind, steps))}'.replace("::", ":")


def _keys(kind: Any, steps: list[str]) -> list[str]:
    for step in steps:
        kind = {field.name: field.type for field in msgspec.structs.fields(kind)}[step]
    return [field.name for field in msgspec.structs.fields(kind)]


@cache
def _read(path: Path) -> dict[str, Any]:
    return _parsed(path)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return msgspec.toml.decode(path.read_bytes().removeprefix(BOM_UTF8), type=dict[str, Any])
    except OSError as problem:
        raise WorkloadError(f"{path}: cannot be read: {problem.strerror}") from None
    except ValueError as problem:  # tomllib's and msgspec's errors alike
        raise WorkloadError(f"{path}: not TOML: {problem}") from None


def _entries(path: Path, kind: type[T]) -> dict[str, T]:
    return {name: convert(value, kind, f"{path}: {name}") for name, value in _read(path).items()}


def _sections(path: Path, kinds: dict[str, type]) -> dict[str, dict[str, Any]]:
    file = _read(path)
    for section in file:
        if section not in kinds:
            raise WorkloadError(f'{path}: unknown key "{section}"{suggest(section, kinds)}')
    return {
        section: {
            name: convert(entry, kind, f"{path}: {section}.{name}") for name, entry in file.get(section, {}).items()
        }
        for section, kind in kinds.items()
    }
