"""The cells of the gate and what is measured in each: simulated seconds and counts, the same on every machine.

Costs are constants of this file, so that only the scheduler and the simulator can change a figure, and no data sheet.
"""

from collections import Counter
from itertools import product
from typing import Any, NamedTuple

import msgspec

from pipeinfer.core.effects import Request
from pipeinfer.core.generation import PipelineShape
from pipeinfer.core.messages import Decode
from pipeinfer.plugins import open_strategy
from pipeinfer.results.trial import Trial
from pipeinfer.runtime.oracle import Trace, independent
from pipeinfer.runtime.sim import SimulatedLink, Simulation

TOKENS = 48
PROMPT = 64
TRAVERSAL_S = 0.32
"""One row through the whole target, however many stages share it."""

DRAFT_S = 0.01
ROW_SHARE = 0.05
"""What each further row adds to a forward."""

HIDDEN_BYTES = 32768
ID_BYTES = 4

LINKS = {"infiniband": (2e-6, 100e9), "gigabit": (50e-6, 1e9), "wide-area": (20e-3, 100e6)}
"""One-way latency in seconds, bandwidth in bit/s."""

TREE = {"branches": 3, "split": 0.05}
MAIN = {"speculative": ("speculative", {}), "pipeinfer": ("pipeinfer", {})}
OTHERS = {
    "speculative-tree": ("speculative", {"k": 6, **TREE}),
    "pipeinfer-draft-1": ("pipeinfer", {"draft": 1}),
    "pipeinfer-tree": ("pipeinfer", {"draft": 4, **TREE}),
    "pipeinfer-cutoff": ("pipeinfer", {"cutoff": 0.25, "recovery": 0.02, "decay": 0.01}),
    "pipeinfer-in-flight-3": ("pipeinfer", {"in_flight": 3}),
    "pipeinfer-one-at-a-time": ("pipeinfer", {"continuous": False}),
    "pipeinfer-no-cancellation": ("pipeinfer", {"cancellation": False}),
    "pipeinfer-redundant-runs": ("redundant", {}),
    "adaptive": ("adaptive", {}),
    "specpipe": ("specpipe", {}),
    "swiftspec": ("swiftspec", {}),
    "flowspec": ("flowspec", {}),
    "specpipe-chain": ("specpipe", {"width": 1}),
}
FURTHER = {"async-chain": ("async-chain", {}), "pearl": ("pearl", {}), "ssd": ("ssd", {}),
           "sync-tail": ("sync-tail", {}), "dsi": ("dsi", {})}  # fmt: skip
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {"iterative": ("iterative", {}), **MAIN, **OTHERS, **FURTHER}


class Cell(NamedTuple):
    """One simulated generation: a strategy with its options, the target's stages, acceptance per draft, the links."""

    variant: str
    stages: int
    acceptance: float
    link: str

    def __str__(self) -> str:
        return f"{self.variant}, {self.stages} stages, acceptance {self.acceptance}, {self.link}"


CELLS = [
    # Plain decoding has no drafts that could be accepted.
    *(Cell("iterative", stages, 0.6, link) for stages, link in product((1, 4, 8, 16), LINKS)),
    *(Cell(*point) for point in product(MAIN, (1, 4, 8, 16), (0.3, 0.6, 0.9), LINKS)),
    *(Cell(*point, "gigabit") for point in product(OTHERS, (4, 16), (0.3, 0.9))),
    *(Cell(*point, "gigabit") for point in product(FURTHER, (4,), (0.3, 0.9))),
]


class Clock:
    """A timer of simulated seconds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Costs:
    """Constant costs of the target, spread over its stages, and of the draft."""

    def __init__(self, stages: int) -> None:
        self._stages = stages

    def stage_s(self, stage: int, rows: int, context: int) -> float:
        return TRAVERSAL_S / self._stages * _width(rows)

    def draft_s(self, rows: int, context: int) -> float:
        return DRAFT_S * _width(rows)

    def row_bytes(self, stage: int) -> int:
        return HIDDEN_BYTES if stage < self._stages - 1 else ID_BYTES


def _width(rows: int) -> float:
    return 1 + ROW_SHARE * (rows - 1)


def measure(cell: Cell, clock: Clock | None = None) -> dict[str, Any]:
    """Simulate the cell and count everything; `clock` is moved on by the simulated seconds."""
    links: list[SimulatedLink] = []
    simulation = _simulation(cell, links)
    operations = _count_kv_operations(simulation)
    trial = simulation.generate(Request(tuple(range(PROMPT)), TOKENS))
    if clock is not None:
        clock.now += trial.emit_s[-1]
    return {**_runs(trial), **_times(trial), "kv": dict(operations), "events": simulation.handled, **_traffic(links)}


def _simulation(cell: Cell, links: list[SimulatedLink]) -> Simulation:
    name, options = VARIANTS[cell.variant]

    def link(_source: int, _target: int) -> SimulatedLink:
        links.append(SimulatedLink(*LINKS[cell.link]))
        return links[-1]

    return Simulation(
        PipelineShape(cell.stages, cells=2048, sequences=256, prompt_chunk=16),
        open_strategy(name, options),
        Costs(cell.stages),
        _oracle(cell),
        link,
    )


def _oracle(cell: Cell) -> Trace:
    """I.i.d. acceptance; where a cutoff is to be seen at work, with confidences all the way from 0 to 1."""
    trace = independent(cell.acceptance)
    if "cutoff" not in VARIANTS[cell.variant][1]:
        return trace
    confidences = [[position * 37 % 101 / 100, *others[1:]] for position, others in enumerate(trace.confidences)]
    return msgspec.structs.replace(trace, confidences=confidences)


def _count_kv_operations(simulation: Simulation) -> Counter[str]:
    """Counts, as it runs, the KV operations that the head sends."""
    counts: Counter[str] = Counter()
    handle = simulation.scheduler.handle

    def counting(now: float, event: Any) -> Any:
        effects = handle(now, event)
        for effect in effects:
            if isinstance(effect, Decode):
                counts.update(type(operation).__name__ for operation in effect.kv)
        return effects

    simulation.scheduler.handle = counting  # type: ignore[method-assign]
    return counts


def _times(trial: Trial) -> dict[str, int]:
    """Whole nanoseconds: no decimal of a sum depends on the platform there."""
    busy = [rank.busy_s for rank in trial.ranks]
    times = {"first_token": trial.emit_s[0], "last_token": trial.emit_s[-1], "busy": sum(busy)}
    return {f"{name}_ns": round(seconds * 1e9) for name, seconds in times.items()}


def _runs(trial: Trial) -> dict[str, Any]:
    given_up = [run for run in trial.runs if run.cancel_sent_s is not None]
    return {
        "tokens": len(trial.token_ids),
        "runs": dict(Counter(run.kind for run in trial.runs)),
        "rows": sum(run.rows for run in trial.runs),
        "drafted": sum(run.drafted for run in trial.runs),
        "accepted": sum(run.accepted for run in trial.runs),
        "cancelled_runs": len(given_up),
        "cancelled_rows": sum(run.rows for run in given_up),
        "skipped_in_time": sum(run.cancelled_at >= 0 for run in given_up),
    }


def _traffic(links: list[SimulatedLink]) -> dict[str, Any]:
    """Messages and bytes of each link, by its two ends; which are made in this order."""
    stages = (len(links) - 2) // 2
    ends = ["head>0", *(f"{i}>{i + 1}" for i in range(stages - 1)), f"{stages - 1}>head"]
    ends += [*(f"head>{i}" for i in range(1, stages)), "head>draft", "draft>head"]
    named = dict(zip(ends, links, strict=True))
    return {
        "messages": {name: link.messages for name, link in named.items()},
        "bytes": {name: link.bytes for name, link in named.items()},
    }
