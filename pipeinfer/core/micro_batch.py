"""Runs of one request or of several that travel as one: what is sent of them, and what came back."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pipeinfer.core.errors import PeerError
from pipeinfer.core.messages import Decode, KvOp, Logits, RunKind
from pipeinfer.core.tree import Run


class RunRows(NamedTuple):
    """A run, and the sequence ids of each of its rows."""

    run: Run
    sequences: tuple[tuple[int, ...], ...]


def assemble(rows: Sequence[RunRows], kv: tuple[KvOp, ...]) -> Decode:
    """The message that carries these runs, one of each request, in this order."""
    (run, sequences), nodes = rows[0], rows[0].run.nodes
    kind, outputs = run.kind, run.outputs
    requests: tuple[int, ...] = (run.request,)
    if len(rows) > 1:  # Most travel alone, and it is done for every run.
        _put_together([one.run for one in rows])
        nodes = [node for one in rows for node in one.run.nodes]
        kind = max([one.run.kind for one in rows])
        sequences = tuple([tags for one in rows for tags in one.sequences])
        outputs = sum([one.run.outputs for one in rows])
        requests = tuple([one.run.request for one in rows for _ in one.run.nodes])
    tokens, positions = tuple([node.token for node in nodes]), tuple([node.position for node in nodes])
    return Decode(run.id, kind, tokens, positions, sequences, outputs, kv, requests=requests)


def _put_together(runs: Sequence[Run]) -> None:
    """Each knows of the others, and where in the micro-batch its rows are."""
    together, width, first = tuple(runs), sum(run.rows for run in runs), 0
    for run in runs:
        run.together, run.first_row, run.width = together, first, width
        for row, node in enumerate(run.nodes, start=first):
            if node.run is run:
                node.row = row
        first += run.rows


def returned(runs: Sequence[Run], message: Logits, now: float) -> None:
    """Note what became of them. One that was given up while others of its micro-batch went on was cancelled, for all
    that is known, where the last of its rows were dropped."""
    for run in runs:
        run.finished_at, run.compute_s, run.cancelled_at = now, message.compute_s, message.cancelled_at
        run.together = ()
        if message.kept and not any(run.first_row <= row < run.first_row + run.rows for row in message.kept):
            run.cancelled_at = message.computed.index(message.computed[-1])


def goes_on(runs: Sequence[Run]) -> bool:
    """They are not given up as a whole."""
    return runs[0].cancel_sent_at is None or (len(runs) > 1 and any(run.cancel_sent_at is None for run in runs))


def judge(runs: Sequence[Run], message: Logits) -> None:
    """Note what the target said after each output row that was computed."""
    nodes, count = runs[0].nodes, runs[0].outputs
    if len(runs) > 1:
        nodes, count = [node for run in runs for node in run.nodes], sum([run.outputs for run in runs])
    first = len(nodes) - count
    outputs = [nodes[row] for row in message.kept] if message.kept else nodes[first:]
    if len(outputs) != len(message.ids):
        raise PeerError(f"run {message.run} came back with {len(message.ids)} ids, expected {len(outputs)}")
    for node, token in zip(outputs, message.ids, strict=True):
        node.verdict = token
    if message.margins:
        for node, margin in zip(outputs, message.margins, strict=False):
            node.margin = margin


def validate_in_flight(in_flight: Iterable[tuple[Run, ...]]) -> None:
    """What holds of all that is under way, oldest first."""
    newest = -1
    for together in in_flight:
        assert together[0].id > newest, "runs are in flight in the order of their ids"
        newest = together[0].id
        assert len({run.request for run in together}) == len(together), "a request has one run at most in another's"
        first = 0
        for run in together:
            assert (run.id, run.together, run.first_row) == (newest, together, first), "they travel together"
            assert run.width == sum(one.rows for one in together)
            assert run.live == sum(node.alive for node in run.nodes)
            assert all(first <= row < first + run.rows for row in run.pruned), "only its own rows are pruned"
            assert run.finished_at is None
            first += run.rows
        assert len(together) == 1 or all(run.kind is not RunKind.PROMPT for run in together)
