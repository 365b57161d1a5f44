"""Runs of one request or of several that travel as one: what is sent of them, and what came back."""

from collections.abc import Iterable, Sequence

from pipeinfer.core.errors import PeerError
from pipeinfer.core.messages import NOT_CANCELLED, Decode, KvOp, Logits, RunKind
from pipeinfer.core.tree import Run


def assemble(runs: Sequence[Run], kv: tuple[KvOp, ...]) -> Decode:
    """The message that carries these runs, one of each request, in this order."""
    run = runs[0]
    nodes, kind, sequences, outputs = run.nodes, run.kind, run.sequences, run.outputs
    requests: tuple[int, ...] = (run.request,)
    if len(runs) > 1:  # Most travel alone, and it is done for every run.
        nodes = [node for one in runs for node in one.nodes]
        kind = max([one.kind for one in runs])
        sequences = tuple([tags for one in runs for tags in one.sequences])
        outputs = len(nodes)
        requests = tuple([one.request for one in runs for _ in one.nodes])
    tokens, positions = tuple([node.token for node in nodes]), tuple([node.position for node in nodes])
    return Decode(run.id, kind, tokens, positions, sequences, outputs, kv, requests=requests)


def put_together(runs: Iterable[Run]) -> None:
    """They travel as one: each knows of the others, and where in the micro-batch its rows are."""
    together = tuple(runs)
    width, first = sum(run.rows for run in together), 0
    for run in together:
        run.together, run.first_row, run.width = together, first, width
        first += run.rows


def returned(runs: Sequence[Run], message: Logits, now: float) -> None:
    """Note what became of them, and what the target said after each output row that was computed."""
    kept, run = message.kept, runs[0]
    for one in runs:
        one.finished_at, one.compute_s, one.cancelled_at = now, message.compute_s, message.cancelled_at
    nodes = run.nodes
    if len(runs) > 1:
        nodes = [node for one in runs for node in one.nodes]
        _part(runs, message)
    if message.cancelled_at != NOT_CANCELLED:
        return
    outputs = [nodes[row] for row in kept] if kept else nodes[run.rows - run.outputs :]
    if len(outputs) != len(message.ids):
        raise PeerError(f"run {message.run} came back with {len(message.ids)} ids, expected {len(outputs)}")
    for node, token in zip(outputs, message.ids, strict=True):
        node.verdict = token
    if message.margins:
        for node, margin in zip(outputs, message.margins, strict=False):
            node.margin = margin


def _part(runs: Sequence[Run], message: Logits) -> None:
    """They travel together no more. One that was given up while others went on was cancelled, for all that is known,
    where the last of its rows were dropped."""
    for run in runs:
        run.together = ()
        if message.kept and not any(run.first_row <= row < run.first_row + run.rows for row in message.kept):
            run.cancelled_at = message.computed.index(message.computed[-1])


def validate_in_flight(in_flight: Iterable[tuple[Run, ...]]) -> None:
    """What holds of all that is under way, oldest first."""
    newest = -1
    for together in in_flight:
        assert together[0].id > newest, "runs are in flight in the order of their ids"
        newest = together[0].id
        assert len({run.request for run in together}) == len(together), "a request has one run at most in another's"
        first = 0
        for run in together:
            assert (run.id, run.together or (run,), run.first_row) == (newest, together, first), "they travel together"
            assert run.width == sum(one.rows for one in together)
            assert run.live == sum(node.alive for node in run.nodes)
            assert all(first <= row < first + run.rows for row in run.pruned), "only its own rows are pruned"
            assert run.finished_at is None
            first += run.rows
        assert len(together) == 1 or all(run.kind is not RunKind.PROMPT for run in together)
