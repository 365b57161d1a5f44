"""Emulated cells: what the simulator works out, happening. Ranks are processes (or workers, or an MPI world) on links
shaped to the cluster's; where a model would compute, the rank waits for as long as the same cost model says; tokens
come from the same oracle.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import msgspec

from pipeinfer import workload
from pipeinfer.calibration.profile import Curve
from pipeinfer.cluster.launch import Plan
from pipeinfer.oracle import Trace
from pipeinfer.reproduce.recipes import EmulatedCell
from pipeinfer.reproduce.records import Record
from pipeinfer.reproduce.session import on_ranks
from pipeinfer.results import Trial
from pipeinfer.simulation.simulate import Prepared, completed, prepare
from pipeinfer.workload import WorkloadError

ROWS = (*range(1, 17), 24, 32, 48, 64, 96, 128, 256, 512)
"""Widths at which waits are written down. Between them they are linear, and so is a roofline but for one bend."""

CONTEXTS = 9
"""At how many positions of the text."""


def run_emulated(cells: Sequence[EmulatedCell], key: str | None = None) -> Iterator[Record]:
    """Their records, in order; `key` is the key file of workers."""
    return on_ranks(cells, lambda cell: plan(cell, _prepared(cell), key), _generate)


def _prepared(cell: EmulatedCell) -> Prepared:
    if cell.setting.draft_ranks > 1:
        raise WorkloadError("an emulated sweep has one draft rank: leave draft_ranks at 1")
    return prepare(workload.cluster(cell.cluster), workload.pair(cell.pair), cell.setting)


def plan(cell: EmulatedCell, ready: Prepared, key: str | None = None) -> Plan:
    """The ranks of a cell: as many as in the simulation, with the same layers, links and room."""
    layers, target = ready.layout.layers, workload.pair(cell.pair).target
    reach = len(ready.request.prompt) + ready.request.max_tokens
    count = len(layers) + ready.strategy.drafts
    return Plan(
        backend="emulated",
        backend_options={
            "layers": layers[-1][1],
            "hidden_size": target.hidden,
            "context": ready.pipeline.context,
            "vocabulary": target.vocabulary if cell.setting.logits_on_wire else 0,
            "trace": _trace(ready.oracle, ready.pipeline.cells),
            "waits": waits(ready, reach),
        },
        draft="builtin:draft" if ready.strategy.drafts else None,
        stages=len(layers),
        layers=",".join(str(stop - start) for start, stop in layers),
        transport=cell.emulation.transport,
        bandwidth_bps=ready.bandwidth_bps,
        latency_s=ready.latency_s,
        cells=ready.pipeline.cells,
        sequences=ready.pipeline.sequences,
        prompt_chunk=ready.pipeline.prompt_chunk,
        workers=cell.emulation.workers[:count],
        key=key,
        trace=cell.spans,
    )


def waits(ready: Prepared, reach: int) -> dict[str, Any]:
    """The cost model of a setting as curves up to `reach` positions, by share, as the emulated backend takes them."""
    found = {
        f"target {start}-{stop}": _curve(partial(ready.costs.stage_s, stage), reach)
        for stage, (start, stop) in enumerate(ready.layout.layers)
    }
    if ready.strategy.drafts:
        found["draft 0-1"] = _curve(ready.costs.draft_s, reach)
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
    known = completed(trial, ready, workload.pair(cell.pair), cell.setting)
    return msgspec.structs.replace(known, config=msgspec.to_builtins(cell))
