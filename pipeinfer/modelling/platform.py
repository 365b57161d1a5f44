"""What a cluster and a pair stand for where something is simulated: hardware and models from data sheets, or what was
measured of one pair on one cluster."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

from pipeinfer import workload
from pipeinfer.modelling import profiled_cluster, simulate
from pipeinfer.modelling.profile import Profile, read_profile
from pipeinfer.modelling.simulate import Limits, Prepared, Setting
from pipeinfer.results.trial import Trial
from pipeinfer.runtime.spans import Span
from pipeinfer.workload import Hardware, Pair, WorkloadError

USUAL_PAIR = "dolphin-tinyllama"


class ModelledPlatform(NamedTuple):
    """Files of workloads/, or of the user."""

    cluster: Hardware
    pair: Pair

    @property
    def name(self) -> str:
        """What the cluster is called."""
        return self.cluster.name

    @property
    def title(self) -> str:
        """After a number of nodes."""
        return f"nodes of {self.cluster.title}"

    @property
    def models(self) -> str:
        return self.pair.title

    @property
    def nodes(self) -> tuple[str, ...]:
        """The kinds there are."""
        return tuple(node.title for node in self.cluster.nodes)

    @property
    def link(self) -> str:
        return self.cluster.link.title

    @property
    def ranks(self) -> int | None:
        """As many as were measured; None: as many as you like."""
        return None

    @property
    def draft_ranks(self) -> int:
        """How many of them are the draft's, unless you say it."""
        return 1

    def check(self, setting: Setting) -> None:
        """Raise WorkloadError if it cannot be simulated."""
        simulate.check(self.cluster, self.pair, setting)

    def simulate(self, setting: Setting, spans: list[Span] | None = None) -> Trial:
        """One generation. Raises WorkloadError as `check` does."""
        return simulate.simulate_one(self.cluster, self.pair, setting, spans)

    def prepare(self, setting: Setting) -> Prepared:
        """What runs where, to run it in real time. Raises WorkloadError as `check` does."""
        return simulate.prepare(self.cluster, self.pair, setting)

    def limits(self, setting: Setting) -> Limits:
        """What theory allows."""
        return simulate.limits(self.cluster, self.pair, setting)


class CalibratedPlatform(NamedTuple):
    """The same of what `pipeinfer calibrate` measured."""

    profile: Profile

    @property
    def name(self) -> str:
        return self.profile.name

    @property
    def title(self) -> str:
        return f"ranks of {self.name}, calibrated"

    @property
    def models(self) -> str:
        return f"{self.pair}, {self.profile.backend}"

    @property
    def pair(self) -> str:
        """What the profile's own pair is called, where pairs have names."""
        return f"{self.profile.target.name} + {self.profile.draft_model.name}"

    @property
    def nodes(self) -> tuple[str, ...]:
        return (self.title,)

    @property
    def link(self) -> str:
        return "links as measured"

    @property
    def ranks(self) -> int | None:
        return len(self.profile.ranks)

    @property
    def draft_ranks(self) -> int:
        return len(self.profile.draft_shares)

    def check(self, setting: Setting) -> None:
        profiled_cluster.check(self.profile, setting)

    def simulate(self, setting: Setting, spans: list[Span] | None = None) -> Trial:
        return profiled_cluster.simulate_one(self.profile, setting, spans)

    def prepare(self, setting: Setting) -> Prepared:
        return profiled_cluster.prepare(self.profile, setting)

    def limits(self, setting: Setting) -> Limits:
        return profiled_cluster.limits(self.profile, setting)


def is_calibrated(cluster: str) -> bool:
    """Whether this is where a profile lies, and not a name or a TOML file."""
    return cluster.endswith(".json")


def platform_of(cluster: str, pair: str | None = None) -> ModelledPlatform | CalibratedPlatform:
    """A cluster as `--cluster` takes it, with a pair of workloads/pairs.toml; a calibrated one has its own. Raises
    WorkloadError or BadProfile."""
    if not is_calibrated(cluster):
        return ModelledPlatform(workload.cluster(cluster), workload.pair(pair or USUAL_PAIR))
    found = calibrated_platform(cluster)
    if pair not in (None, found.pair):
        raise WorkloadError(f"{cluster} was calibrated with its own pair, {found.pair}: there is no {pair} on it")
    return found


def cluster_name(cluster: str) -> str:
    """What a cluster is called, wherever its file lies. Raises as `platform` does."""
    return calibrated_platform(cluster).name if is_calibrated(cluster) else workload.cluster_name(cluster)


@cache
def calibrated_platform(path: str) -> CalibratedPlatform:
    """The profile in that file. Raises BadProfile."""
    return CalibratedPlatform(read_profile(Path(path)))
