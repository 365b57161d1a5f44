"""A calibrated cluster: what `pipeinfer calibrate` measured of a pair on real ranks, in one JSON file.

The simulator reads it as a cost model, the emulated backend as what to wait for, and the `auto` split as how fast each
rank is and what it can hold.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import msgspec

from pipeinfer.cluster.placement import LayerRange
from pipeinfer.engine.backend import ModelInfo
from pipeinfer.files import write_whole


class BadProfile(ValueError):  # noqa: N818 - reads as what happened
    """The file is not a profile, or not one of this pair; one line."""


class Curve(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds over rows (ascending) and context (positions attended to, ascending): `seconds[c][r]`."""

    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        for points in (self.rows, self.contexts):
            if not points or any(left >= right for left, right in pairwise(points)):
                raise ValueError(f"expected rows and contexts that ascend, came {points}")
        if len(self.seconds) != len(self.contexts) or any(len(line) != len(self.rows) for line in self.seconds):
            raise ValueError(f"expected seconds for {len(self.contexts)} contexts by {len(self.rows)} rows")

    def at(self, rows: int, context: int) -> float:
        """Linear between what was measured, and beyond it along the last two points; never negative, and never less for
        more rows or context than for the most that were measured: such a fall is noise."""
        lines = [_along(self.rows, line, rows) for line in self.seconds]
        return max(0.0, _along(self.contexts, lines, context))


def _along(points: Sequence[int], values: Sequence[float], at: float) -> float:
    if len(points) == 1:
        return values[0]
    right = min(max(bisect_right(points, at), 1), len(points) - 1)
    left = right - 1
    share = (at - points[left]) / (points[right] - points[left])
    rise = values[right] - values[left]
    return values[left] + share * rise if at <= points[right] else values[right] + (share - 1) * max(0.0, rise)


class RankProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rank. `run` is what a forward costs beside its layers, `layer` one target layer, `head` the output head with
    sampling, all in seconds by rows and context; `memory_bytes` is what is free for a model."""

    host: str
    memory_bytes: int
    run: Curve
    layer: Curve
    head: Curve


class LinkProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One direction between two ranks (-1 is the head): one-way seconds of a small message, bit/s of large ones."""

    source: int
    target: int
    latency_s: float
    bandwidth_bps: float


class ModelProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What placement and the wire need to know of a model; bytes of weights."""

    name: str
    layers: int
    hidden_size: int
    vocabulary: int
    layer_bytes: int
    head_bytes: int


class DraftShare(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the draft's ranks: seconds of a forward of its layers [i, j), with choosing candidates after the last."""

    layers: LayerRange
    forward: Curve


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pair on a cluster. `draft` is one whole forward of the draft model, with choosing its candidates; or, where the
    draft has several ranks, the share of each of them, in order. They are the last of `ranks`.

    `contention[k - 1]` is by how much a computation slows down while k ranks of its host compute (1.0 for k = 1).
    `message_s` is the CPU time that a rank spends on one message (unpack, decide, send), `head_s` the head's on one
    event. `cold`: after a pause of p seconds a computation takes cold * sqrt(p) of what one row takes longer, for its
    weights have left the caches.
    """

    name: str
    backend: str
    target: ModelProfile
    draft_model: ModelProfile
    ranks: tuple[RankProfile, ...]
    draft: Curve | tuple[DraftShare, ...]
    links: tuple[LinkProfile, ...]
    contention: tuple[float, ...] = (1.0,)
    message_s: float = 0.0
    head_s: float = 0.0
    cold: float = 0.0
    environment: dict[str, Any] = {}

    def __post_init__(self) -> None:
        shares = [range(*share.layers) for share in self.draft_shares]
        if not all(shares) or [*chain(*shares)] != [*range(self.draft_model.layers)]:
            came = ", ".join(f"[{share.start}, {share.stop})" for share in shares)
            raise ValueError(f"expected shares of the draft's {self.draft_model.layers} layers in order, came {came}")

    @property
    def draft_shares(self) -> tuple[DraftShare, ...]:
        """Of each of the draft's ranks; one where it has one rank."""
        if isinstance(self.draft, Curve):
            return (DraftShare((0, self.draft_model.layers), self.draft),)
        return self.draft

    def part_of_draft(self, share: DraftShare) -> str:
        """For people: `all`, `layer 0` or `layers 0-3`, to go before "of" and the draft's name."""
        start, stop = share.layers
        if stop - start == self.draft_model.layers:
            return "all"
        return f"layer {start}" if stop - start == 1 else f"layers {start}-{stop - 1}"

    def draft_s(self, layers: LayerRange, rows: int, context: int) -> float:
        """Seconds for layers [i, j) of the draft: of a rank's whole share as measured, of a part in proportion."""
        seconds = 0.0
        for share in self.draft_shares:
            start, stop = max(layers[0], share.layers[0]), min(layers[1], share.layers[1])
            if start < stop:
                part = (stop - start) / (share.layers[1] - share.layers[0])
                seconds += share.forward.at(rows, context) * part
        return seconds


def read_profile(path: Path) -> Profile:
    """A profile that `pipeinfer calibrate` wrote. Raises BadProfile."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Profile)
    except OSError as problem:
        raise BadProfile(f"cannot read the profile {path}: {problem.strerror}") from problem
    except msgspec.DecodeError as problem:
        raise BadProfile(f"{path} is not a profile, as `pipeinfer calibrate` writes them: {problem}") from problem


def check_profile(profile: Profile, path: Path, backend: str, target: ModelInfo, ranks: int) -> None:
    """Raise BadProfile unless it was measured with this backend and target on as many ranks."""
    found = (profile.backend, profile.target.layers, profile.target.hidden_size, profile.target.vocabulary)
    wanted = (backend, target.layers, target.hidden_size, target.vocabulary)
    if found != wanted:
        one, other = ("{} with {} layers of width {} and {} tokens".format(*of) for of in (found, wanted))
        raise BadProfile(f"{path} is a profile of {one}, and the target is {other}: calibrate with this one")
    if len(profile.ranks) < ranks:
        raise BadProfile(
            f"{path} is a profile of {len(profile.ranks)} ranks, and the target is on {ranks}: calibrate again"
        )


def write_profile(profile: Profile, path: Path) -> None:
    """Raises OSError."""
    write_whole(path, msgspec.json.format(msgspec.json.encode(profile)) + b"\n")
