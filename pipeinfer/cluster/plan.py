"""What to bring up, before any model is opened or rank started."""

from typing import Any

import msgspec

from pipeinfer.core.prompt import PromptChunk
from pipeinfer.core.strategies.options import require
from pipeinfer.runtime.control import LinkLimit

AUTO = "auto"
"""The `layers` of a plan whose target is split by the speed and memory of the ranks."""

FITTING = "fitting"
"""As evenly as the memory of the ranks allows: of a plan for those that are left."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to bring up. `layers` is `0.5,0.5` or `4,4` (None: evenly over `stages`), and `draft_layers` is the same for
    the draft (None: all on one rank); `cells` 0: for texts of `longest` tokens and some, 0: of the model's context.

    `workers` are the addresses of running ranks, in rank order (then `key` is their key file), and `spares` of others
    that take the places of lost ones; without them the ranks are started here. With `layers` "auto" they are split by
    the speed and memory of the ranks, which are measured first, or were by `calibrate`, as the file `profile` says.
    `bandwidth_bps` (bit/s) and `latency_s` shape every link
    that `links` does not.
    `cpu_share` is the share of the time in which each rank computes, so that it is as slow as a node of that much of
    this one's speed. `node_cores`: so many has a node, where each target rank has a node and the draft one with the
    head; None: all share this machine's. `exact`: a row of the target has the same bits whatever it is computed with,
    so that no text parts from another strategy's or split's.
    """

    backend: str = "numpy"
    backend_options: dict[str, Any] = {}
    target: str = "builtin:target"
    draft: str | None = "builtin:draft"
    stages: int = 3
    layers: str | None = None
    draft_layers: str | None = None
    profile: str | None = None
    transport: str = "tls"
    bandwidth_bps: float = float("inf")
    latency_s: float = 0.0
    links: tuple[LinkLimit, ...] = ()
    cpu_share: float = 1.0
    node_cores: float | None = None
    exact: bool = False
    cells: int = 0
    longest: int = 0
    sequences: int = 64
    prompt_chunk: PromptChunk = "auto"
    workers: tuple[str, ...] = ()
    spares: tuple[str, ...] = ()
    key: str | None = None
    trace: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError on what is out of range."""
        require("cells", self.cells, 0, 2**31 - 1)
        require("sequences", self.sequences, 1, 2**16)
        require("cpu_share", self.cpu_share, 0.01, 1)
        require("latency in seconds", self.latency_s, 0, 3600)
