"""A cluster and its models as people describe them: by options of commands, a cluster file, or arguments in Python."""

from pathlib import Path
from typing import Any, TypedDict

import msgspec

from pipeinfer.cluster.mpi_world import settle
from pipeinfer.cluster.plan import AUTO, Plan
from pipeinfer.core.prompt import PromptChunk
from pipeinfer.engine.model_cache import expanded
from pipeinfer.modelling.profile import read_profile
from pipeinfer.runtime.transports import scheme_of
from pipeinfer.units import bandwidth_bps, seconds
from pipeinfer.workload import load


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which models, on which ranks, over which links.

    `nodes` counts all ranks, the draft's included (None: as many as `layers` or `workers` say, else 4 or MPI's).
    `layers` is like "4,4/1", with the draft's after the slash, or "auto"; `profile` is a file of `calibrate` that
    goes with it. `bandwidth` is like "1Gbit" and `latency` like "0.2ms", of every link. `cpu_share` is the share of
    the time in which each rank computes. `exact`: no text parts from another one at a tie, at a price.
    `prompt_chunk` is a number of tokens, "auto" or "whole"; `cells` (0: as the model's context wants) and
    `sequences` are KV cells and sequence ids of each rank. `workers` are addresses of running workers in rank
    order, and `key` is their key file.
    """

    backend: str = "numpy"
    backend_options: dict[str, Any] = {}
    target: str = "builtin:target"
    draft: str = "builtin:draft"
    nodes: int | None = None
    layers: str | None = None
    profile: str | None = None
    transport: str | None = None
    launcher: str | None = None
    bandwidth: str | None = None
    latency: str | None = None
    cpu_share: float = 1.0
    exact: bool = False
    prompt_chunk: str | int = "auto"
    cells: int = 0
    sequences: int = 64
    workers: tuple[str, ...] = ()
    key: str | None = None

    def __post_init__(self) -> None:
        if self.nodes is not None and self.nodes < 1:
            raise ValueError(f"nodes = {self.nodes}: expected 1 or more")

    def settle(self) -> tuple[str, int]:
        """The transport and how many ranks there are. Does not return in an MPI process that is not the head."""
        nodes = self.nodes or rank_count(self.layers, drafts=True)
        return settle(self.launcher, scheme_of(self.workers[0]) or "tcp" if self.workers else self.transport, nodes)

    def plan(self, transport: str, nodes: int, *, drafts: bool, trace: bool = False) -> Plan:
        """What to bring up: of `nodes` ranks the last are the draft's, where the strategy drafts. Raises ValueError
        where the settings do not go together."""
        nodes = len(self.workers) or nodes
        self._check_agreement(drafts=drafts)
        split, slash, draft_split = (self.layers or "").partition("/")
        if self.profile is not None and not slash and "," in (measured := calibrated_draft(self.profile)):
            slash, draft_split = "/", measured
        draft_ranks = (draft_split.count(",") + 1) * drafts
        if drafts and split in ("", AUTO) and nodes <= draft_ranks:
            own = "a rank" if draft_ranks == 1 else f"{draft_ranks} ranks"
            raise ValueError(
                f"this strategy drafts, which takes {own} of its own: expected --nodes {draft_ranks + 1} or more"
            )
        return Plan(
            backend=self.backend, backend_options=self.backend_options, target=self.target,
            draft=self.draft if drafts else None, stages=nodes - draft_ranks, layers=split or None,
            draft_layers=draft_split if slash and drafts else None, profile=self.profile, transport=transport,
            bandwidth_bps=bandwidth_bps(self.bandwidth) if self.bandwidth else float("inf"),
            latency_s=seconds(self.latency) if self.latency else 0.0, cpu_share=self.cpu_share, exact=self.exact,
            cells=self.cells, sequences=self.sequences, prompt_chunk=parse_chunk(str(self.prompt_chunk)),
            workers=self.workers, key=self.key, trace=trace,
        )  # fmt: skip

    def _check_agreement(self, *, drafts: bool) -> None:
        if self.key is not None and not self.workers:
            raise ValueError("--key is the key file of running workers: give their addresses with --workers")
        ranks = rank_count(self.layers, drafts=drafts)
        if self.nodes is not None and ranks not in (None, self.nodes):
            raise ValueError(f"--layers {self.layers} is for {ranks} ranks in all, and --nodes says {self.nodes}")
        if self.profile is not None and (self.layers or "").partition("/")[0] != AUTO:
            raise ValueError("--profile says how fast each rank is: it goes with --layers auto")


class ClusterFile(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a cluster file may say: settings, and for `serve`, where a rank is lost, whether to `recover` and which
    workers are `spares`."""

    spares: tuple[str, ...] = ()
    recover: bool = True


class SettingsFields(TypedDict, total=False):
    """The fields of `Settings` but for the draft, as keyword arguments."""

    backend: str
    backend_options: dict[str, Any]
    target: str
    nodes: int | None
    layers: str | None
    profile: str | None
    transport: str | None
    launcher: str | None
    bandwidth: str | None
    latency: str | None
    cpu_share: float
    exact: bool
    prompt_chunk: str | int
    cells: int
    sequences: int
    workers: tuple[str, ...]
    key: str | None


def rank_count(layers: str | None, *, drafts: bool) -> int | None:
    """How many ranks a layer split is for; None where it does not say how many the target has."""
    split, _, draft_split = (layers or "").partition("/")
    return split.count(",") + 1 + (draft_split.count(",") + 1) * drafts if split not in ("", AUTO) else None


def calibrated_draft(profile: str) -> str:
    """How the draft was split when this cluster was calibrated, as `--layers` says it. Raises BadProfile."""
    shares = read_profile(Path(profile)).draft_shares
    return ",".join(str(stop - start) for start, stop in (share.layers for share in shares))


def read_settings(path: Path) -> dict[str, Any]:
    """What a cluster file says: the fields of `ClusterFile` by name. Paths of the key and the profile are from the
    file's own folder on. Raises WorkloadError on what is no such file, with a suggestion for a key that is unknown;
    BadModel where a path is in a home folder that there is not."""
    found = load(path, ClusterFile)
    given = {name: getattr(found, name) for name in load(path, dict[str, Any])}
    for name in ("key", "profile"):
        if given.get(name):
            given[name] = str(path.parent / expanded(given[name]))
    return given


def parse_chunk(text: str) -> PromptChunk:
    """`auto`, `whole` or a number of tokens. Raises ValueError."""
    if text == "auto":
        return "auto"
    if text == "whole":
        return "whole"
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f'prompt chunk "{text}": expected a number of tokens from 1 on, auto or whole')
    return int(text)
