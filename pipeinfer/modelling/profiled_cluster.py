"""A calibrated cluster in the simulator: a profile's curves as costs, its hosts' cores, its links."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from math import inf

from pipeinfer.cluster.placement import LayerRange, even_split
from pipeinfer.core.effects import Request
from pipeinfer.core.generation import Strategy
from pipeinfer.modelling.costs import HIDDEN_BYTES, ID_BYTES, LOGIT_BYTES
from pipeinfer.modelling.profile import LinkProfile, ModelProfile, Profile, RankProfile
from pipeinfer.modelling.simulate import (
    Layout,
    Limits,
    Prepared,
    Setting,
    completed,
    draft_layout,
    layout,
    limits_of,
    pipeline_of,
    room,
    strategy_of,
)
from pipeinfer.results.trial import Trial
from pipeinfer.runtime.control import LinkLimit
from pipeinfer.runtime.oracle import Oracle
from pipeinfer.runtime.sim import HEADER_BYTES, ROW_BYTES, Hosts, SimulatedLink, Simulation
from pipeinfer.runtime.spans import Span
from pipeinfer.runtime.transports import HEAD
from pipeinfer.workload import WorkloadError


def simulate_one(
    profile: Profile, setting: Setting, spans: list[Span] | None = None, oracle: Oracle | None = None
) -> Trial:
    """One generation of the profile's pair on its cluster; links are as measured unless `setting` says otherwise. The
    `oracle` replaces the setting's. Raises WorkloadError when the setting cannot be simulated."""
    ready = prepare(profile, setting, oracle)
    layers, draft_rank = ready.layout
    drafting = len(layers) if draft_rank is None else draft_rank
    simulation = Simulation(
        ready.pipeline,
        ready.strategy,
        ready.costs,
        ready.oracle,
        link=links(profile, drafting, len(layers), setting),
        spans=spans,
        hosts=hosts(profile, layers, drafting),
    )
    return completed(simulation.generate(ready.request), ready, setting)


def prepare(profile: Profile, setting: Setting, oracle: Oracle | None = None) -> Prepared:
    """The same for every fidelity. Raises WorkloadError as `check` does."""
    strategy = strategy_of(setting)
    placed, held = _placed(profile, strategy, setting)
    stages, split = len(placed.layers), draft_split(profile, setting)
    drafting = stages if placed.draft_rank is None else placed.draft_rank
    return Prepared(
        strategy=strategy,
        layout=placed,
        draft_layers=split,
        widths=(profile.target.hidden_size, profile.draft_model.hidden_size),
        vocabulary=profile.target.vocabulary,
        pipeline=pipeline_of(stages, setting, _ranks_per_core(hosts(profile, placed.layers, drafting))),
        costs=ProfiledCosts(profile, placed.layers, setting, drafting),
        oracle=oracle or setting.oracle(setting.prompt + setting.tokens + room(setting)),
        memory=held,
        latency_s=0.0,
        bandwidth_bps=float("inf"),
        request=Request(tuple(range(setting.prompt)), setting.tokens),
        links=tuple(_limits(profile, stages, drafting, len(split), setting)),
    )


def check(profile: Profile, setting: Setting) -> None:
    """Raise WorkloadError if the setting cannot be simulated: models do not fit, or it changes what was measured."""
    _placed(profile, strategy_of(setting), setting)


def _placed(profile: Profile, strategy: Strategy, setting: Setting) -> tuple[Layout, list[int]]:
    """The layout, and the bytes of `memory`."""
    if setting.width_cost != 1:
        raise WorkloadError("what width costs was measured on a calibrated cluster: leave width_cost at 1")
    if setting.draft_cost != 1:
        raise WorkloadError("what the draft costs was measured on a calibrated cluster: leave draft_cost at 1")
    found = layout(strategy, setting, profile.target.layers, partial(_speed, profile, setting))
    return found, memory(profile, found.layers, draft_split(profile, setting), found.draft_rank)


def draft_split(profile: Profile, setting: Setting) -> list[LayerRange]:
    """Which layers of the draft lie on its ranks: as measured where there are as many, else evenly. Raises
    WorkloadError."""
    shares = profile.draft_shares
    if len(shares) == setting.draft_ranks:
        return [share.layers for share in shares]
    return draft_layout(profile.draft_model.layers, setting)


def _speed(profile: Profile, setting: Setting, rank: int) -> float:
    """Layers per second, one row at a time."""
    layer_s = rank_of(profile, rank).layer.at(1, setting.prompt)
    if layer_s == 0:
        raise WorkloadError(f"{profile.name}: its layers take no time on rank {rank}, so none can be split by speed: "
                            "leave split at even, or calibrate again")  # fmt: skip
    return 1 / layer_s


def limits(profile: Profile, setting: Setting) -> Limits:
    """As `pipeinfer.modelling.simulate.limits`."""
    layers = even_split(profile.target.layers, setting.nodes)
    return limits_of(ProfiledCosts(profile, layers, setting, setting.nodes - setting.draft_ranks), setting)


class ProfiledCosts:
    """Costs (`pipeinfer.runtime.sim.Costs`) of a profile's pair: `layers` of the target on ranks 0, 1, ..., the draft
    from rank `draft_rank` on, over links as `setting` says. Where there are more ranks than were measured, these are
    repeated."""

    def __init__(self, profile: Profile, layers: Sequence[LayerRange], setting: Setting, draft_rank: int) -> None:
        target, self._last = profile.target, len(layers) - 1
        self._profile = profile
        self._stages = [(rank_of(profile, stage), stop - start) for stage, (start, stop) in enumerate(layers)]
        self._draft = draft_split(profile, setting)
        self._draft_links = _draft_links(profile, draft_rank, len(self._draft), setting)
        # A draft forward brings no message with it, but its outcome is thought about all the same; of several ranks
        # each has a message from the one before it.
        self._draft_handling = len(self._draft) * profile.message_s
        self._row_bytes = [target.hidden_size * HIDDEN_BYTES] * self._last
        self._row_bytes.append(target.vocabulary * LOGIT_BYTES if setting.logits_on_wire else ID_BYTES)

    def stage_s(self, stage: int, rows: int, context: int) -> float:
        rank, layers = self._stages[stage]
        seconds = rank.run.at(rows, context) + layers * rank.layer.at(rows, context)
        return seconds + rank.head.at(rows, context) if stage == self._last else seconds

    def draft_s(self, rows: int, context: int) -> float:
        forwards = [self.draft_rank_s(rank, rows, context) for rank in range(len(self._draft))]
        computing = sum(forwards) + self._draft_handling
        if not self._draft_links:
            return computing
        *down, back = self._draft_links
        size = HEADER_BYTES + rows * (ROW_BYTES + self._profile.draft_model.hidden_size * HIDDEN_BYTES)
        hops = sum(link.alone(size) for link in down) + back.alone(HEADER_BYTES + rows * ROW_BYTES)
        return computing + hops

    def draft_shares(self, context: int) -> list[float]:
        """Which part of a forward of one row each of the draft's ranks computes; the hops are nobody's."""
        whole = self.draft_s(1, context)
        return [self.draft_rank_s(rank, 1, context) / whole for rank in range(len(self._draft))]

    def draft_rank_s(self, rank: int, rows: int, context: int) -> float:
        """Seconds for one forward on one of the draft's ranks, counted from 0; thinking about it is not in it."""
        return self._profile.draft_s(self._draft[rank], rows, context)

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


def _ranks_per_core(hosts: Hosts) -> float:
    """As the contention of the fullest host says; the head computes nothing."""
    full = Counter(hosts.names[:-1]).most_common(1)[0][1]
    return max(1.0, hosts.slowdown[min(full, len(hosts.slowdown)) - 1])


def links(profile: Profile, draft_rank: int, stages: int, setting: Setting) -> Callable[[int, int], SimulatedLink]:
    """The links as measured, `stages` being the rank that drafts; or shaped to a latency and a bandwidth, which does
    not make them faster than they are."""

    def link(source: int, target: int) -> SimulatedLink:
        source, target = (draft_rank if end == stages else end for end in (source, target))
        return _link(profile, source, target, setting)

    return link


def _draft_links(profile: Profile, draft_rank: int, count: int, setting: Setting) -> list[SimulatedLink]:
    """Along `count` ranks of the draft, and from the last back to the first; none for a single one."""
    if count == 1:
        return []
    ranks = [*range(draft_rank, draft_rank + count), draft_rank]
    return [_link(profile, source, target, setting) for source, target in pairwise(ranks)]


def _limits(profile: Profile, stages: int, draft_rank: int, count: int, setting: Setting) -> Iterator[LinkLimit]:
    """The links of a session as they are simulated: along the target's ranks and the draft's, with the head at the end
    of both. The draft's ranks are those after the target's, whichever they stand for."""
    pairs = [*((HEAD, rank) for rank in range(stages + 1)), *pairwise([*range(stages), HEAD]), (stages, HEAD)]
    link = links(profile, draft_rank, stages, setting)
    made = [(pair, link(*pair)) for pair in pairs]
    behind = [*range(stages, stages + count), stages]
    made += zip(pairwise(behind), _draft_links(profile, draft_rank, count, setting), strict=False)
    for (source, target), one in made:
        yield LinkLimit(source, target, one.latency_s, 8 / one.s_per_byte if one.s_per_byte else inf, one.floor_s)


def _link(profile: Profile, source: int, target: int, setting: Setting) -> SimulatedLink:
    found = [link for link in profile.links if (link.source, link.target) == (source, target)]
    real = found[0] if found else _like(profile, source, target)
    latency_us, bandwidth_gbps = setting.latency_us, setting.bandwidth_gbps
    if latency_us is None and bandwidth_gbps is None:
        return SimulatedLink(real.latency_s, real.bandwidth_bps)
    bandwidth = min((bandwidth_gbps or float("inf")) * 1e9, real.bandwidth_bps)
    return SimulatedLink((latency_us or 0.0) * 1e-6, bandwidth, real.latency_s)


def _like(profile: Profile, source: int, target: int) -> LinkProfile:
    """What stands for a link that was not measured: the slowest with the head at the same end, or the slowest."""
    found = [link for link in profile.links if (link.source == HEAD) == (source == HEAD)
             and (link.target == HEAD) == (target == HEAD)] or profile.links  # fmt: skip
    if not found:
        return LinkProfile(source, target, 0.0, float("inf"))
    return max(found, key=lambda link: link.latency_s)


def memory(
    profile: Profile, layers: Sequence[LayerRange], draft: Sequence[LayerRange], draft_rank: int | None
) -> list[int]:
    """Bytes of weights per target rank, then per draft rank. Raises WorkloadError where a rank has less."""
    needs = [_bytes(model, stop - start, head=stop == model.layers)
             for model, split in ((profile.target, layers), (profile.draft_model, draft))
             for start, stop in split]  # fmt: skip
    for rank in range(len(needs) if draft_rank == len(layers) else len(layers)):
        needed = needs[rank] + (needs[-1] if rank == draft_rank and rank < len(layers) else 0)
        free = rank_of(profile, rank).memory_bytes
        if needed > free:
            raise WorkloadError(
                f"{profile.name}: rank {rank} has {free / 1e9:.3g} GB of memory free and needs {needed / 1e9:.3g} GB: "
                "use more nodes or a smaller model"
            )
    return needs


def _bytes(model: ModelProfile, layers: int, *, head: bool) -> int:
    return layers * model.layer_bytes + head * model.head_bytes
