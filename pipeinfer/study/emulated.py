"""Emulated cells: what the simulator works out, happening. Ranks are processes (or workers, or an MPI world) on links
shaped to the cluster's; where a model would compute, the rank waits for as long as the same cost model says; tokens
come from the same oracle.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import msgspec

from pipeinfer.cluster.placement import LayerRange
from pipeinfer.cluster.plan import Plan
from pipeinfer.modelling.platform import platform_of
from pipeinfer.modelling.profile import Curve
from pipeinfer.modelling.simulate import Prepared, with_ranks
from pipeinfer.results.records import Record
from pipeinfer.results.trial import Trial
from pipeinfer.runtime.oracle import Trace
from pipeinfer.study.points import EmulatedCell
from pipeinfer.study.session import on_ranks

ROWS = (*range(1, 17), 24, 32, 48, 64, 96, 128, 256, 512)
"""Widths at which waits are written down. Between them they are linear, and so is a roofline but for one bend."""

CONTEXTS = 9
"""At how many positions of the text."""


def run_emulated(cells: Sequence[EmulatedCell], key: str | None = None) -> Iterator[Record]:
    """Their records, in order; `key` is the key file of workers."""
    return on_ranks(cells, lambda cell: plan(cell, _prepared(cell), key), _generate)


def _prepared(cell: EmulatedCell) -> Prepared:
    return platform_of(cell.cluster, cell.pair).prepare(cell.setting)


def plan(cell: EmulatedCell, ready: Prepared, key: str | None = None) -> Plan:
    """The ranks of a cell: as many as in the simulation, with the same layers, links and room."""
    layers, drafts = ready.layout.layers, ready.draft_layers
    reach = len(ready.request.prompt) + ready.request.max_tokens
    count = len(layers) + len(drafts) * ready.strategy.drafts
    return Plan(
        backend="emulated",
        backend_options={
            "layers": layers[-1][1],
            "hidden_size": ready.widths[0],
            "draft_layers": drafts[-1][1],
            "draft_hidden_size": ready.widths[1],
            "context": ready.pipeline.context,
            "vocabulary": ready.vocabulary if cell.setting.logits_on_wire else 0,
            "trace": _trace(ready.oracle, ready.pipeline.cells),
            "waits": waits(ready, reach),
        },
        draft="builtin:draft" if ready.strategy.drafts else None,
        stages=len(layers),
        layers=_counts(layers),
        draft_layers=_counts(drafts),
        transport=cell.emulation.transport,
        bandwidth_bps=ready.bandwidth_bps,
        latency_s=ready.latency_s,
        links=ready.links,
        cells=ready.pipeline.cells,
        sequences=ready.pipeline.sequences,
        prompt_chunk=ready.pipeline.prompt_chunk,
        workers=cell.emulation.workers[:count],
        key=key,
        trace=cell.spans,
    )


def _counts(split: Sequence[LayerRange]) -> str:
    return ",".join(str(stop - start) for start, stop in split)


def waits(ready: Prepared, reach: int) -> dict[str, Any]:
    """The cost model of a setting as curves up to `reach` positions, by share, as the emulated backend takes them."""
    found = {
        f"target {start}-{stop}": _curve(partial(ready.costs.stage_s, stage), reach)
        for stage, (start, stop) in enumerate(ready.layout.layers)
    }
    if ready.strategy.drafts:
        found |= {
            f"draft {start}-{stop}": _curve(partial(ready.costs.draft_rank_s, rank), reach)
            for rank, (start, stop) in enumerate(ready.draft_layers)
        }
    curves: dict[str, Any] = msgspec.to_builtins(found)
    return curves


def _curve(seconds: Callable[[int, int], float], reach: int) -> Curve:
    contexts = sorted({1 + (reach - 1) * at // (CONTEXTS - 1) for at in range(CONTEXTS)})
    lines = tuple(tuple(round(seconds(rows, context), 9) for rows in ROWS) for context in contexts)
    return Curve(ROWS, tuple(contexts), lines)


def _trace(oracle: Any, length: int) -> dict[str, Any]:
    """As much of the trace as a text of `length` tokens asks for."""
    assert isinstance(oracle, Trace)
    cut = msgspec.structs.replace(oracle, ranks=oracle.ranks[:length], confidences=oracle.confidences[:length])
    trace: dict[str, Any] = msgspec.to_builtins(cut)
    return trace


def _generate(cluster: Any, cell: EmulatedCell) -> Trial:
    ready = _prepared(cell)
    trial = cluster.generate(
        ready.request.prompt,
        ready.strategy,
        max_tokens=ready.request.max_tokens,
        stop_ids=(),
        logits_on_wire=cell.setting.logits_on_wire,
    )
    known = with_ranks(trial, ready, cell.setting)
    return msgspec.structs.replace(known, config=msgspec.to_builtins(cell))
