"""What one trial leaves behind: raw times and counts, from which every metric and plot is derived."""

from typing import Any

import msgspec

from pipeinfer.core.tree import Node, Run


class RunRecord(msgspec.Struct, frozen=True, gc=False):
    """One run. Times are seconds since the request; `compute_s` has one entry per stage (0.0: skipped there). Where
    runs of several requests travelled as one, `rows` and `compute_s` are those of all of them together.

    `drafted` and `accepted` count drafted tokens. `judged` counts those that the target spoke about: they follow
    committed text whose next token is known. In a chain it is `accepted`, or one more. `cancelled_at` is the first
    stage that skipped or abandoned the run (-1: none did); `cancel_sent_s` is when the head gave it up.
    """

    kind: str
    rows: int
    drafted: int
    accepted: int
    submitted_s: float
    finished_s: float | None
    cancelled_at: int
    cancel_sent_s: float | None
    compute_s: tuple[float, ...]
    judged: int = 0


class RankRecord(msgspec.Struct, frozen=True):
    """One rank: what it did and what it cost. `busy_s` is compute time; `bytes_sent` is per receiving rank; with a
    `cpu_share` below 1 it waited for the rest of each computation, which is part of `busy_s`. `processor_s` is what its
    threads used of processors, in computing and in all else."""

    rank: int
    role: str
    layers: tuple[int, int]
    busy_s: float = 0.0
    peak_memory: int = 0
    host: str = ""
    bytes_sent: dict[int, int] = {}
    messages_sent: dict[int, int] = {}
    cpu_share: float = 1.0
    processor_s: float = 0.0


class Trial(msgspec.Struct, frozen=True):
    """One generation. `emit_s[i]` is when token i was committed on the head, in seconds since the request.

    `margins`, where asked for: how near the choice of each token was to another one, in logits. `precision` is the
    target's (`pipeinfer.engine.backend.ModelInfo`). `processor_s` is what the head and all ranks together used of
    processors (seconds), the prompt included; 0 where that is not known.
    """

    strategy: str
    fidelity: str
    prompt_tokens: int
    token_ids: tuple[int, ...]
    emit_s: tuple[float, ...]
    reason: str
    runs: tuple[RunRecord, ...]
    ranks: tuple[RankRecord, ...]
    margins: tuple[float, ...] = ()
    precision: str = "float32"
    processor_s: float = 0.0
    config: dict[str, Any] = {}


def run_record(run: Run, start: float) -> RunRecord:
    """A run as it ended, in times since `start`."""
    return RunRecord(
        kind=run.kind.name.lower(),
        rows=run.width,
        drafted=run.drafted,
        accepted=run.accepted,
        submitted_s=run.submitted_at - start,
        finished_s=None if run.finished_at is None else run.finished_at - start,
        cancelled_at=run.cancelled_at,
        cancel_sent_s=None if run.cancel_sent_at is None else run.cancel_sent_at - start,
        compute_s=run.compute_s,
        judged=sum(_judged(node) for node in run.nodes[run.rows - run.drafted :]),
    )


def _judged(node: Node) -> bool:
    parent = node.parent
    return parent is not None and parent.committed and any(child.committed for child in parent.children.values())
