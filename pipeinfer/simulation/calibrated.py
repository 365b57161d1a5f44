"""A calibrated cluster in the simulator: a profile's curves as costs, its hosts' cores, its links."""

from collections.abc import Callable, Sequence
from functools import partial

from pipeinfer.calibration.profile import LinkProfile, ModelProfile, Profile, RankProfile
from pipeinfer.core.effects import Request
from pipeinfer.core.head import Strategy
from pipeinfer.drivers.sim import Hosts, Link, Simulation
from pipeinfer.oracle import Oracle
from pipeinfer.placement import LayerRange, even_split
from pipeinfer.results import Trial
from pipeinfer.simulation.costs import HIDDEN_BYTES, ID_BYTES, LOGIT_BYTES
from pipeinfer.simulation.simulate import (
    Layout,
    Limits,
    Setting,
    layout,
    limits_of,
    pipeline_of,
    room,
    strategy_of,
    with_ranks,
)
from pipeinfer.spans import Span
from pipeinfer.transports import HEAD
from pipeinfer.workload import WorkloadError


def simulate_one(
    profile: Profile, setting: Setting, spans: list[Span] | None = None, oracle: Oracle | None = None
) -> Trial:
    """One generation of the profile's pair on its cluster; links are as measured unless `setting` says otherwise. The
    `oracle` replaces the setting's. Raises WorkloadError when the setting cannot be simulated."""
    strategy = strategy_of(setting)
    (layers, draft_rank), held = _placed(profile, strategy, setting)
    drafting = len(layers) if draft_rank is None else draft_rank
    simulation = Simulation(
        pipeline_of(strategy, len(layers), setting),
        strategy,
        Calibrated(profile, layers, logits_on_wire=setting.logits_on_wire),
        oracle or setting.oracle(setting.prompt + setting.tokens + room(setting)),
        link=links(profile, drafting, len(layers), setting),
        spans=spans,
        hosts=hosts(profile, layers, drafting),
    )
    trial = simulation.run(Request(tuple(range(setting.prompt)), setting.tokens))
    return with_ranks(trial, [*layers, (0, profile.draft_model.layers)], held, setting)


def check(profile: Profile, setting: Setting) -> None:
    """Raise WorkloadError if the setting cannot be simulated: models do not fit, or it changes what was measured."""
    _placed(profile, strategy_of(setting), setting)


def _placed(profile: Profile, strategy: Strategy, setting: Setting) -> tuple[Layout, list[int]]:
    """The layout, and the bytes of `memory`."""
    if setting.width_cost != 1:
        raise WorkloadError("what width costs was measured on a calibrated cluster: leave width_cost at 1")
    if setting.draft_cost != 1:
        raise WorkloadError("what the draft costs was measured on a calibrated cluster: leave draft_cost at 1")
    if setting.draft_ranks > 1:
        raise WorkloadError("a calibrated cluster has one draft rank: leave draft_ranks at 1")
    found = layout(strategy, setting, profile.target.layers, partial(_speed, profile, setting))
    return found, memory(profile, found.layers, found.draft_rank)


def _speed(profile: Profile, setting: Setting, rank: int) -> float:
    """Layers per second, one row at a time."""
    layer_s = rank_of(profile, rank).layer.at(1, setting.prompt)
    if layer_s == 0:
        raise WorkloadError(f"{profile.name}: its layers take no time on rank {rank}, so none can be split by speed: "
                            "leave split at even, or calibrate again")  # fmt: skip
    return 1 / layer_s


def limits(profile: Profile, setting: Setting) -> Limits:
    """As `pipeinfer.simulation.simulate.limits`."""
    return limits_of(Calibrated(profile, even_split(profile.target.layers, setting.nodes)), setting)


class Calibrated:
    """Costs (`pipeinfer.drivers.sim.Costs`) of a profile's pair: `layers` of the target on ranks 0, 1, ... Where there
    are more stages than ranks were measured, these are repeated."""

    def __init__(self, profile: Profile, layers: Sequence[LayerRange], *, logits_on_wire: bool = False) -> None:
        target, self._last = profile.target, len(layers) - 1
        self._stages = [(rank_of(profile, stage), stop - start) for stage, (start, stop) in enumerate(layers)]
        self._draft = profile.draft
        # A draft forward brings no message with it, but its outcome is thought about all the same.
        self._draft_handling = profile.message_s
        self._row_bytes = [target.hidden_size * HIDDEN_BYTES] * self._last
        self._row_bytes.append(target.vocabulary * LOGIT_BYTES if logits_on_wire else ID_BYTES)

    def stage_s(self, stage: int, rows: int, context: int) -> float:
        rank, layers = self._stages[stage]
        seconds = rank.run.at(rows, context) + layers * rank.layer.at(rows, context)
        return seconds + rank.head.at(rows, context) if stage == self._last else seconds

    def draft_s(self, rows: int, context: int) -> float:
        return self._draft.at(rows, context) + self._draft_handling

    def row_bytes(self, stage: int) -> int:
        return self._row_bytes[stage]


def rank_of(profile: Profile, rank: int) -> RankProfile:
    """What was measured of a rank, or of the one that stands for it."""
    return profile.ranks[rank % len(profile.ranks)]


def hosts(profile: Profile, layers: Sequence[LayerRange], draft_rank: int) -> Hosts:
    """Which ranks share cores, the head being on rank 0's host, and between how many layers each looks up."""
    ranks = [*range(len(layers)), draft_rank, 0]
    return Hosts(
        names=[rank_of(profile, rank).host for rank in ranks],
        slowdown=profile.contention,
        message_s=profile.message_s,
        head_s=profile.head_s,
        cold=profile.cold,
        steps=[*[stop - start for start, stop in layers], profile.draft_model.layers],
    )


def links(profile: Profile, draft_rank: int, stages: int, setting: Setting) -> Callable[[int, int], Link]:
    """The links as measured; or shaped to a latency and a bandwidth, which does not make them faster than they are."""
    known = {(link.source, link.target): link for link in profile.links}
    latency_us, bandwidth_gbps = setting.latency_us, setting.bandwidth_gbps

    def link(source: int, target: int) -> Link:
        source, target = (draft_rank if end == stages else end for end in (source, target))
        real = known.get((source, target)) or _like(profile, source, target)
        if latency_us is None and bandwidth_gbps is None:
            return Link(real.latency_s, real.bandwidth_bps)
        bandwidth = min((bandwidth_gbps or float("inf")) * 1e9, real.bandwidth_bps)
        return Link((latency_us or 0.0) * 1e-6, bandwidth, real.latency_s)

    return link


def _like(profile: Profile, source: int, target: int) -> LinkProfile:
    """What stands for a link that was not measured: the slowest with the head at the same end, or the slowest."""
    found = [link for link in profile.links if (link.source == HEAD) == (source == HEAD)
             and (link.target == HEAD) == (target == HEAD)] or profile.links  # fmt: skip
    if not found:
        return LinkProfile(source, target, 0.0, float("inf"))
    return max(found, key=lambda link: link.latency_s)


def memory(profile: Profile, layers: Sequence[LayerRange], draft_rank: int | None) -> list[int]:
    """Bytes of weights per target rank, then those of the draft. Raises WorkloadError where a rank has less."""
    target, draft = profile.target, profile.draft_model
    needs = [_bytes(target, stop - start, head=stop == target.layers) for start, stop in layers]
    needs.append(_bytes(draft, draft.layers, head=True))
    for rank in range(len(layers) + (draft_rank == len(layers))):
        needed = needs[rank] + (needs[-1] if rank == draft_rank != len(layers) else 0)
        free = rank_of(profile, rank).memory_bytes
        if needed > free:
            raise WorkloadError(
                f"{profile.name}: rank {rank} has {free / 1e9:.3g} GB of memory free and needs {needed / 1e9:.3g} GB: "
                "use more nodes or a smaller model"
            )
    return needs


def _bytes(model: ModelProfile, layers: int, *, head: bool) -> int:
    return layers * model.layer_bytes + head * model.head_bytes
