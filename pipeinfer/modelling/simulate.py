"""Simulated generations: strategies on a cluster with a model pair, same ranks for all of them.

Node accountings (docs/fairness.md):

- `same-ranks`: every strategy gets N ranks. `iterative` runs the target on all N; strategies that draft run it on N - 1
  and the draft on the last.
- `as-published`: the layouts of the authors' scripts. `iterative` and the synchronous `speculative` run the target on
  all N, the draft of the latter living on the head's rank beside the first stage; `pipeinfer` runs the target on N - 1
  with a light first stage (0.1 of the layers; 0.1, 0.4, 0.5 at N = 4) and the draft on the last.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import msgspec

from pipeinfer.cluster.placement import BadSplit, LayerRange, even_split, parse_split
from pipeinfer.core import theory
from pipeinfer.core.effects import Request
from pipeinfer.core.generation import PipelineShape, Strategy
from pipeinfer.core.strategies.options import COUNTS
from pipeinfer.core.strategies.pipeinfer import PipeInfer
from pipeinfer.modelling.acceptance import Acceptance
from pipeinfer.modelling.costs import Roofline, check_memory, memory_bytes
from pipeinfer.modelling.sweeps import Options, at_largest, first_options, further_options
from pipeinfer.plugins import open_strategy
from pipeinfer.results import metrics
from pipeinfer.results.trial import Trial
from pipeinfer.runtime.control import LinkLimit
from pipeinfer.runtime.oracle import Difficulty, Oracle, Phases
from pipeinfer.runtime.sim import Costs, SimulatedLink, Simulation
from pipeinfer.runtime.spans import Span
from pipeinfer.workload import Hardware, Pair, WorkloadError

Accounting = Literal["same-ranks", "as-published"]


class Setting(msgspec.Struct, frozen=True):
    """One generation to simulate. `acceptance`, `difficulty`, `trace` and `phases` are those of
    `pipeinfer.modelling.acceptance`: i.i.d., by position, recorded, or in phases. `seed` draws which tokens are
    accepted, or picks the trace's text.
    `width_cost` scales the arithmetic that the model charges per row: 1 as modelled, 0 for width that costs nothing.
    `draft_cost` scales the draft's time.
    `bandwidth_gbps` and `latency_us` replace those of the cluster's links. `prompt_chunk` is how many tokens of the
    prompt are sent at a time (`pipeinfer.core.prompt`). `split`: layers evenly over the ranks, or in proportion to
    their memory bandwidth. `draft_ranks`: the draft's layers evenly over so many of the nodes."""

    strategy: str
    options: dict[str, Any] = {}
    nodes: int = 4
    acceptance: float = 0.79
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    tokens: int = 128
    prompt: int = 64
    accounting: Accounting = "same-ranks"
    logits_on_wire: bool = False
    width_cost: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 1.0
    draft_cost: float = 1.0
    bandwidth_gbps: float | None = None
    latency_us: float | None = None
    prompt_chunk: Annotated[int, msgspec.Meta(ge=1)] | Literal["auto", "whole"] = "auto"
    split: Literal["even", "speed"] = "even"
    difficulty: Difficulty | None = None
    trace: str | None = None
    phases: Phases | None = None
    draft_ranks: Annotated[int, msgspec.Meta(ge=1)] = 1

    @property
    def drafts(self) -> Acceptance:
        return Acceptance(self.acceptance, self.difficulty, self.trace, self.phases)

    def oracle(self, length: int) -> Oracle:
        """What decides which drafts are accepted. Raises ValueError when the trace cannot be read."""
        return self.drafts.oracle(seed=self.seed, start=self.prompt, length=length)


class Layout(NamedTuple):
    """Which layers of the target lie on ranks 0, 1, ..., and which rank has the draft (None: nobody drafts)."""

    layers: tuple[LayerRange, ...]
    draft_rank: int | None


class RankCosts(Costs, Protocol):
    """Costs that tell the draft's ranks apart."""

    def draft_shares(self, context: int) -> list[float]:
        """Which part of a forward of one row each of them computes."""

    def draft_rank_s(self, rank: int, rows: int, context: int) -> float:
        """Seconds for one forward on one of them, counted from 0."""


class Prepared(NamedTuple):
    """A setting made out: what runs on which ranks, what it takes there, and what it is asked. `draft_layers` are those
    of each of the draft's ranks, `widths` of hidden states the target's and the draft's. `memory` is bytes per
    target rank, then those of the draft. Links: one-way seconds, bit/s, for all of them but `links`, in which the draft
    has the ranks after the target's."""

    strategy: Strategy
    layout: Layout
    draft_layers: list[LayerRange]
    widths: tuple[int, int]
    vocabulary: int
    pipeline: PipelineShape
    costs: RankCosts
    oracle: Oracle
    memory: list[int]
    latency_s: float
    bandwidth_bps: float
    request: Request
    links: tuple[LinkLimit, ...] = ()


def layout(strategy: Strategy, setting: Setting, target_layers: int, speed: Callable[[int], float]) -> Layout:
    """Where a strategy's models lie on the ranks; how fast each computes is asked where the split goes by `speed`.
    Raises WorkloadError when the layers cannot be split so."""
    nodes, tail = setting.nodes, strategy.drafts_on_last_stage
    published = strategy.as_published if setting.accounting == "as-published" else ""
    together = not strategy.drafts or tail or published == "draft-on-head"
    if setting.accounting == "as-published" and setting.draft_ranks > 1:
        raise WorkloadError("the layouts as published have one draft rank")
    stages = nodes if together else nodes - setting.draft_ranks
    draft_rank = None if not strategy.drafts else stages - 1 if tail else 0 if together else stages
    try:
        if published == "light-head" and stages > 1:
            layers = parse_split(_published_split(stages), target_layers)
        elif setting.split == "speed":
            layers = parse_split(_proportional_split([speed(rank) for rank in range(stages)]), target_layers)
        else:
            layers = even_split(target_layers, stages)
    except BadSplit as problem:
        raise WorkloadError(f"{nodes} nodes for {setting.strategy}: {problem}") from None
    return Layout(tuple(layers), draft_rank)


def draft_layout(draft_layers: int, setting: Setting) -> list[LayerRange]:
    """Which layers of the draft lie on its ranks. Raises WorkloadError."""
    try:
        return even_split(draft_layers, setting.draft_ranks)
    except BadSplit as problem:
        raise WorkloadError(f"the draft: {problem}") from None


def _proportional_split(speeds: Sequence[float]) -> str:
    return ",".join(repr(speed / sum(speeds)) for speed in speeds)


def _published_split(stages: int) -> str:
    """0.1 of the layers on the head, the rest even, which is what the 8-node script has; the 4-node one of the README
    is 0.1, 0.4, 0.5."""
    shares = [0.1, 0.4, 0.5] if stages == 3 else [0.1, *[0.9 / (stages - 1)] * (stages - 1)]
    return ",".join(map(repr, shares))


def check(cluster: Hardware, pair: Pair, setting: Setting) -> None:
    """Raise WorkloadError if the setting cannot be simulated: the models do not fit, an option is out of range."""
    _memory(cluster, pair, _placed(cluster, pair, strategy_of(setting), setting), setting)


def _placed(cluster: Hardware, pair: Pair, strategy: Strategy, setting: Setting) -> Layout:
    """The split by speed goes by memory bandwidth, which bounds a narrow run."""
    return layout(strategy, setting, pair.target.layers, lambda rank: cluster.node(rank).memory_bandwidth_gbs)


def simulate_one(cluster: Hardware, pair: Pair, setting: Setting, spans: list[Span] | None = None) -> Trial:
    """One generation. Raises WorkloadError as `check` does."""
    ready = prepare(cluster, pair, setting)
    simulation = Simulation(
        ready.pipeline,
        ready.strategy,
        ready.costs,
        ready.oracle,
        link=lambda _source, _target: SimulatedLink(ready.latency_s, ready.bandwidth_bps),
        spans=spans,
    )
    return completed(simulation.generate(ready.request), ready, setting)


def prepare(cluster: Hardware, pair: Pair, setting: Setting) -> Prepared:
    """The same for every fidelity. Raises WorkloadError as `check` does."""
    strategy = strategy_of(setting)
    placed = _placed(cluster, pair, strategy, setting)
    length = setting.prompt + setting.tokens
    memory = _memory(cluster, pair, placed, setting)
    latency_us = cluster.link.latency_us if setting.latency_us is None else setting.latency_us
    latency_s, bandwidth_bps = latency_us * 1e-6, (setting.bandwidth_gbps or cluster.link.bandwidth_gbps) * 1e9
    return Prepared(
        strategy=strategy,
        layout=placed,
        draft_layers=draft_layout(pair.draft.layers, setting),
        widths=(pair.target.hidden, pair.draft.hidden),
        vocabulary=pair.target.vocabulary,
        pipeline=pipeline_of(len(placed.layers), setting),
        costs=Roofline(
            pair,
            cluster,
            placed.layers,
            placed.draft_rank or 0,
            logits_on_wire=setting.logits_on_wire,
            width_cost=setting.width_cost,
            draft_cost=setting.draft_cost,
            draft_layers=draft_layout(pair.draft.layers, setting),
            latency_s=latency_s,
            bandwidth_bps=bandwidth_bps,
        ),
        oracle=setting.oracle(length + room(setting)),
        memory=memory,
        latency_s=latency_s,
        bandwidth_bps=bandwidth_bps,
        request=Request(tuple(range(setting.prompt)), setting.tokens),
    )


def room(setting: Setting) -> int:
    """Tokens beside the text: for everything in flight."""
    return 16 * setting.nodes + 64


def pipeline_of(stages: int, setting: Setting, ranks_per_core: float = 1.0) -> PipelineShape:
    """Of that many stages, with room for everything in flight, and sequence ids to match."""
    length, spare = setting.prompt + setting.tokens, room(setting)
    return PipelineShape(
        stages, cells=length + 4 * spare, sequences=4 * spare, prompt_chunk=setting.prompt_chunk,
        ranks_per_core=ranks_per_core,
    )  # fmt: skip


def strategy_of(setting: Setting) -> Strategy:
    """Raises WorkloadError."""
    try:
        strategy: Strategy = open_strategy(setting.strategy, setting.options)
    except ValueError as problem:
        raise WorkloadError(str(problem)) from None
    strategy.foreseen = partial(setting.drafts.chance, start=setting.prompt)
    return strategy


def _memory(cluster: Hardware, pair: Pair, placed: Layout, setting: Setting) -> list[int]:
    """Bytes per target rank, then those of the draft's; checked against the nodes."""
    length = setting.prompt + setting.tokens
    target = [memory_bytes(pair.target, layers, length) for layers in placed.layers]
    drafts = [memory_bytes(pair.draft, layers, length) for layers in draft_layout(pair.draft.layers, setting)]
    for rank, needed in enumerate(target):
        shared = rank == placed.draft_rank
        check_memory(cluster, rank, needed + drafts[0] * shared, pair.target.title + " and the draft" * shared)
    if placed.draft_rank is not None and placed.draft_rank >= len(target):
        for rank, needed in enumerate(drafts, start=placed.draft_rank):
            check_memory(cluster, rank, needed, pair.draft.title)
    return [*target, *drafts]


def completed(trial: Trial, ready: Prepared, setting: Setting) -> Trial:
    """The simulated trial with what is not known where no model is: the draft's ranks, and layers and memory of all."""
    found = _with_draft_ranks(trial, ready.costs.draft_shares(setting.prompt + setting.tokens // 2))
    return with_ranks(found, ready, setting)


def _with_draft_ranks(trial: Trial, shares: Sequence[float]) -> Trial:
    """The trial whose draft, simulated as one rank, lies on several, which were busy for these shares of its time."""
    if len(shares) == 1 or trial.ranks[-1].role != "draft":
        return trial
    *target, draft = trial.ranks
    drafts = [msgspec.structs.replace(draft, rank=rank, busy_s=draft.busy_s * share, bytes_sent={}, messages_sent={})
              for rank, share in enumerate(shares, start=draft.rank)]  # fmt: skip
    drafts[0] = msgspec.structs.replace(drafts[0], bytes_sent=draft.bytes_sent, messages_sent=draft.messages_sent)
    return msgspec.structs.replace(trial, ranks=(*target, *drafts))


def with_ranks(trial: Trial, ready: Prepared, setting: Setting) -> Trial:
    """The trial with its setting, and the layers and bytes of each rank (as modelled), the draft's last."""
    known = zip(trial.ranks, [*ready.layout.layers, *ready.draft_layers], ready.memory, strict=False)
    ranks = tuple(msgspec.structs.replace(rank, layers=held, peak_memory=size) for rank, held, size in known)
    return msgspec.structs.replace(trial, ranks=ranks, config=msgspec.to_builtins(setting))


# Strategies side by side


class BestFound(msgspec.Struct, frozen=True):
    """A strategy at its best: over the options tried, the one with the highest decoding speed; `at_edge` are those of
    its swept options whose largest value that is, beyond which nothing is tried."""

    strategy: str
    options: dict[str, Any]
    trial: Trial
    tried: int
    at_edge: tuple[str, ...] = ()

    @property
    def tokens_per_second(self) -> float:
        return metrics.tokens_per_second(self.trial) or 0.0


def side_by_side(
    run: Callable[[Setting], Trial], strategies: Iterable[str], setting: Setting, sweep: bool
) -> list[BestFound]:
    """Each strategy under `setting`, at the best of what is swept for it (or with its defaults, without `sweep`); `run`
    runs a setting. Raises WorkloadError."""
    return [_at_its_best(run, msgspec.structs.replace(setting, strategy=name), sweep) for name in strategies]


def _at_its_best(run: Callable[[Setting], Trial], setting: Setting, sweep: bool) -> BestFound:
    """Sweeps go on while the best is the largest tried."""
    strategy = strategy_of(setting)
    confident = setting.difficulty is not None or setting.trace is not None
    further = first_options(strategy, confident=confident) if sweep else [setting.options]
    tried: list[Options] = []
    trials: list[Trial] = []
    while further:
        trials += [run(msgspec.structs.replace(setting, options=options)) for options in further]
        tried += further
        speeds = [metrics.tokens_per_second(trial) or 0.0 for trial in trials]
        best = speeds.index(max(speeds))
        further = further_options(strategy.sweeps, tried, best)
    edge = tuple(name for name in strategy.sweeps if at_largest(tried, best, name))
    return BestFound(setting.strategy, tried[best], trials[best], len(trials), edge)


class Limits(msgspec.Struct, frozen=True):
    """Closed-form tokens/s for a setting (`pipeinfer.core.theory`): of plain decoding, of synchronous speculation at
    its best K, and what no chain of drafts passes. They follow from the acceptance, the number of `stages` beside the
    draft, and the share of a traversal that drafting a token takes."""

    iterative: float
    synchronous: float
    synchronous_k: int
    ceiling: float
    acceptance: float
    stages: int
    draft_share: float

    def of(self, strategy: Strategy) -> float | None:
        """A strategy's own, with its options; None where none is known."""
        speedup = strategy.limit(self.acceptance, self.stages, self.draft_share)
        return None if speedup is None else speedup * self.iterative

    def shared(self, strategy: Strategy, requests: int) -> float | None:
        """A strategy's own for each of several requests in one pipeline; known where each run is of one token."""
        if requests > self.stages or not (isinstance(strategy, PipeInfer) and strategy.draft == 1):
            return None
        return shared_chain(self.acceptance, self.stages, requests) * self.iterative


def shared_chain(a: float, stages: int, requests: int) -> float:
    """The chain in runs of one token where up to N requests share the pipeline: their tokens together, over those of as
    many requests without speculation. A right token costs a request one of N slots, a wrong one a traversal."""
    return 1 / (a * requests / stages + 1 - a)


def limits(cluster: Hardware, pair: Pair, setting: Setting) -> Limits:
    """What theory allows where width, links and cancellation are free: T is the traversal of one row halfway through
    the generation, links left out, d one forward of the draft."""
    stages = tuple(even_split(pair.target.layers, setting.nodes))
    costs = Roofline(pair, cluster, stages, setting.nodes - 1, draft_cost=setting.draft_cost)
    return limits_of(costs, setting)


def limits_of(costs: Costs, setting: Setting) -> Limits:
    """The same, from costs with a stage on every node."""
    a, nodes = setting.acceptance, setting.nodes
    context = setting.prompt + setting.tokens // 2
    traversal = sum(costs.stage_s(stage, 1, context) for stage in range(nodes))
    share = costs.draft_s(1, context) / traversal
    k, speedup = theory.best_synchronous(a, share, COUNTS[-1])
    return Limits(
        iterative=1 / traversal,
        synchronous=speedup / traversal,
        synchronous_k=k,
        ceiling=1 / (1 - a) / traversal,
        acceptance=a,
        stages=nodes - setting.draft_ranks,
        draft_share=share,
    )
