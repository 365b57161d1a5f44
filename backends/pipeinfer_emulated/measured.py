"""A rank of a calibrated cluster to emulate: it takes what was measured there, and has as much memory."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeinfer.engine.backend import BadModel, ModelInfo
from pipeinfer.modelling.profile import ModelProfile, Profile, RankProfile, read_profile

Seconds = Callable[[int, int], float]
"""What a forward takes, by rows and context (the highest position attended to, plus one)."""


class MeasuredRank:
    """Rank `rank` of the profile in the file `path`. Raises BadProfile."""

    def __init__(self, path: str, rank: int) -> None:
        self.profile: Profile = read_profile(Path(path))
        self._path = path
        self._number = rank

    def model(self, role: str) -> ModelProfile:
        """The target or the draft that was measured."""
        return self.profile.target if role == "target" else self.profile.draft_model

    def describe(self, role: str, info: ModelInfo) -> ModelInfo:
        """`info` with the dimensions of the model that was measured."""
        from msgspec.structs import replace

        model = self.model(role)
        return replace(info, layers=model.layers, hidden_size=model.hidden_size, layer_bytes=model.layer_bytes,
                       head_bytes=model.head_bytes)  # fmt: skip

    @property
    def memory_bytes(self) -> int:
        return self._rank().memory_bytes

    def seconds(self, role: str, first: int, stop: int) -> Seconds:
        """What a forward of layers [first, stop) takes there; of the draft, what they take where it was measured."""
        if role == "draft":
            return partial(self.profile.draft_s, (first, stop))
        count, layers = stop - first, self.profile.target.layers
        rank = self._rank()
        has_head = stop == layers

        def share(rows: int, context: int) -> float:
            head = rank.head.at(rows, context) if has_head else 0.0
            return rank.run.at(rows, context) + count * rank.layer.at(rows, context) + head

        return share

    def _rank(self) -> RankProfile:
        ranks = self.profile.ranks
        if self._number >= len(ranks):
            raise BadModel(
                f"{self._path} is of {len(ranks)} ranks, and this is rank {self._number}: emulate at most as"
                " many, or calibrate again"
            )
        return ranks[self._number]
