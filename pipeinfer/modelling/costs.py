"""What computing takes: a roofline with a constant, from a model's dimensions and a node's data sheet.

For a run of R rows that attend to C positions, a stage with L layers takes

    L * overhead + max(bytes / bandwidth, operations / arithmetic)

    bytes       weights of the L layers + their keys and values for C positions (+ the output head on the last stage)
    operations  R * (2 * weights + 4 * C * hidden * L)       two per weight; scores and values of attention

where bandwidth and arithmetic are the data sheet's peaks times the node's efficiencies. Weights are read once per run
and serve all its rows, which is why verifying several tokens costs less than as many traversals; from the row count on
at which arithmetic takes longer than memory, width is no longer free. Keys and values are float16, hidden states on the
wire float32, as in llama.cpp.
"""

from collections.abc import Sequence
from typing import NamedTuple

from pipeinfer.cluster.placement import LayerRange
from pipeinfer.workload import Computer, Hardware, Model, Pair, WorkloadError

KV_BYTES = 2
HIDDEN_BYTES = 4
LOGIT_BYTES = 4
ID_BYTES = 4


class _Rank(NamedTuple):
    """The roofline of one rank, in seconds."""

    overhead: float
    weight_read: float
    kv_read: float
    """Per position attended to."""
    row: float
    row_attention: float
    """Per row and position attended to."""

    def seconds(self, rows: int, context: int) -> float:
        # Without `max` and names of fields: this is called for every computation of a sweep.
        overhead, weight_read, kv_read, row, row_attention = self
        memory = weight_read + kv_read * context
        arithmetic = rows * (row + row_attention * context)
        return overhead + (memory if memory > arithmetic else arithmetic)


class Roofline:
    """Costs (`pipeinfer.runtime.sim.Costs`) of a pair on a cluster: `layers` of the target on ranks 0, 1, ..., the
    draft from rank `draft_rank` on: all of it there, or `draft_layers` on one rank after the other, each hop over a
    link of `latency_s` and `bandwidth_bps`. `logits_on_wire`: the last stage sends logits, as the artifact does,
    instead of ids. `width_cost` scales the time of arithmetic; at 0 verifying many rows costs as much as one.
    `draft_cost` scales the time of the draft."""

    def __init__(
        self,
        pair: Pair,
        cluster: Hardware,
        layers: Sequence[LayerRange],
        draft_rank: int,
        *,
        logits_on_wire: bool = False,
        width_cost: float = 1.0,
        draft_cost: float = 1.0,
        draft_layers: Sequence[LayerRange] = (),
        latency_s: float = 0.0,
        bandwidth_bps: float = float("inf"),
    ) -> None:
        target, draft = pair.target, pair.draft
        last = len(layers) - 1
        self._stages = [
            _roofline(target, stop - start, stage == last, cluster.node(stage), width_cost)
            for stage, (start, stop) in enumerate(layers)
        ]
        self._draft = [
            _roofline(draft, stop - start, stop == draft.layers, cluster.node(rank), width_cost)
            for rank, (start, stop) in enumerate(draft_layers or [(0, draft.layers)], start=draft_rank)
        ]
        # Hidden states from rank to rank, and back what is next to nothing.
        hops = len(self._draft) - 1
        self._draft_hops = (hops + 1) * latency_s * (hops > 0)
        self._draft_hops_row = hops * draft.hidden * HIDDEN_BYTES * 8 / bandwidth_bps
        self._draft_cost = draft_cost
        self._row_bytes = [target.hidden * HIDDEN_BYTES] * last
        self._row_bytes.append(target.vocabulary * LOGIT_BYTES if logits_on_wire else ID_BYTES)

    def stage_s(self, stage: int, rows: int, context: int) -> float:
        return self._stages[stage].seconds(rows, context)

    def draft_s(self, rows: int, context: int) -> float:
        if len(self._draft) == 1:  # As nearly everywhere, and this is asked for every drafted token.
            return self.draft_rank_s(0, rows, context)
        computing = sum(self.draft_rank_s(rank, rows, context) for rank in range(len(self._draft)))
        return computing + self._draft_hops + rows * self._draft_hops_row

    def draft_shares(self, context: int) -> list[float]:
        """Which part of a forward of one row each of the draft's ranks computes; the hops are nobody's."""
        whole = self.draft_s(1, context)
        return [self.draft_rank_s(rank, 1, context) / whole for rank in range(len(self._draft))]

    def draft_rank_s(self, rank: int, rows: int, context: int) -> float:
        """Seconds of computing on one of the draft's ranks, counted from 0."""
        return self._draft[rank].seconds(rows, context) * self._draft_cost

    def row_bytes(self, stage: int) -> int:
        return self._row_bytes[stage]


def _roofline(model: Model, layers: int, head: bool, node: Computer, width_cost: float) -> _Rank:
    bandwidth = node.memory_bandwidth_gbs * 1e9 * node.bandwidth_efficiency
    arithmetic = node.peak_gflops * 1e9 * node.arithmetic_efficiency
    weights = layers * model.layer_parameters + (model.head_parameters if head else 0)
    return _Rank(
        overhead=layers * node.overhead_us * 1e-6,
        weight_read=weights * model.bytes_per_weight / bandwidth,
        kv_read=layers * kv_bytes_per_position(model) / bandwidth,
        row=2 * weights / arithmetic * width_cost,
        row_attention=4 * model.hidden * layers / arithmetic * width_cost,
    )


def kv_bytes_per_position(model: Model) -> int:
    """Bytes of keys and values of one layer for one position."""
    return 2 * model.kv_width * KV_BYTES


def memory_bytes(model: Model, layers: LayerRange, context: int) -> int:
    """What a rank holds: its layers' weights, their keys and values for `context` positions, the embedding on the first
    stage and the output head on the last."""
    start, stop = layers
    weights = (stop - start) * model.layer_parameters
    weights += model.head_parameters * ((start == 0) + (stop == model.layers and not (model.tied and start == 0)))
    return round(weights * model.bytes_per_weight) + (stop - start) * kv_bytes_per_position(model) * context


def check_memory(cluster: Hardware, rank: int, needed: int, what: str) -> None:
    """Raise WorkloadError when a rank has less memory than `what` needs there."""
    node = cluster.node(rank)
    if needed > node.memory_gb * 1e9:
        raise WorkloadError(
            f"{cluster.name}: rank {rank} has {node.memory_gb:g} GB of memory and needs {needed / 1e9:.1f} GB for "
            f"{what}: use more nodes or a smaller model"
        )
