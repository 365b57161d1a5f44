"""What ranks say to one another. Names follow the artifact: decode, kv_seq_cp / rm, cancel_run, logits.

Every message is a frozen, array-like msgspec struct, so that a header is a short MessagePack array. Hidden states and
logits never lie in a header: they travel beside it as one raw buffer (`pipeinfer.runtime.transports.Envelope.payload`).
"""

from enum import IntEnum
from typing import TypeAlias

import msgspec

TO_THE_END = -1
"""A `stop` position that means "to the end of the sequence", as in llama.cpp."""

NOT_CANCELLED = -1
"""The `cancelled_at` of a run that every stage so far has computed."""


NO_TOKEN = -1
"""In the place of a sampled id: the row's logits are not finite, so nothing can be chosen."""


class RunKind(IntEnum):
    """Why a run was sent. Single-token and prompt runs always finish: later runs need their KV cells."""

    PROMPT = 0
    SINGLE = 1
    SPECULATIVE = 2


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """Base of everything that crosses a link; the tag is the class name."""


class KvSeqCp(Message, frozen=True):
    """Tag the cells of sequence `src` at positions [start, stop) with `dst` too. No tensor data moves."""

    src: int
    dst: int
    start: int
    stop: int


class KvSeqRm(Message, frozen=True):
    """Take the tag `sequence` off its cells at positions [start, stop); a cell without tags is free."""

    sequence: int
    start: int
    stop: int


KvOp: TypeAlias = KvSeqCp | KvSeqRm

Candidates: TypeAlias = tuple[tuple[tuple[int, float], ...], ...]
"""What may follow each of some rows, by the draft: tokens with their confidence, best first."""


class Decode(Message, frozen=True):
    """One run on its way down a pipeline, the target's or the draft's: a transaction of KV operations and then a
    micro-batch of rows.

    The stages apply `kv` in stream order even when the run itself is cancelled. Row r is token `tokens[r]` at
    `positions[r]`, tagged with the sequence ids `sequences[r]`; it attends to every earlier cell (and row) that carries
    `sequences[r][0]`. The last `outputs` rows are sampled. `compute_s` grows by one entry (seconds) per stage passed.
    A cancelled run travels on as a marker without payload, so that order and accounting hold.

    `requests` is the request of each row, or of all where it has one entry: rows are sampled as their request says.
    `kept`: which rows of the run as it was sent these are, where some were pruned on the way (empty: all of them).
    `candidates`: how many the draft's last rank is to give after each output row. `computed`: how many rows each stage
    passed has computed, beside `compute_s`.
    """

    run: int
    kind: RunKind
    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    sequences: tuple[tuple[int, ...], ...]
    outputs: int
    kv: tuple[KvOp, ...] = ()
    cancelled_at: int = NOT_CANCELLED
    compute_s: tuple[float, ...] = ()
    requests: tuple[int, ...] = (0,)
    kept: tuple[int, ...] = ()
    candidates: int = 0
    computed: tuple[int, ...] = ()


class Logits(Message, frozen=True):
    """The end of a run, from the last stage to the head: the sampled ids of its output rows, or that it was cancelled.

    `margins` (how far each choice was from being another one, in logits) are there when the request asked for them.
    From the draft's last rank to its first there are `candidates` instead, per output row. `kept`: the rows of the run,
    as it was sent, that they are of, where some were pruned (empty: all its output rows). `computed`: rows per stage.
    """

    run: int
    ids: tuple[int, ...]
    margins: tuple[float, ...] = ()
    cancelled_at: int = NOT_CANCELLED
    compute_s: tuple[float, ...] = ()
    candidates: Candidates = ()
    requests: tuple[int, ...] = (0,)
    kept: tuple[int, ...] = ()
    computed: tuple[int, ...] = ()


class CancelRun(Message, frozen=True):
    """From the head to every stage at once, beside the ordered stream: abandon `runs` wherever they are, and of runs
    that go on drop the rows `pruned` (run id, rows as they were sent) before computing them. From the draft's first
    rank to its others likewise.

    All that died of one commit is in one message: no row that is still computed continues one that is not.
    """

    runs: tuple[int, ...]
    pruned: tuple[tuple[int, tuple[int, ...]], ...] = ()


class DraftSettings(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How to draft, until another order says otherwise.

    `micro_batch`: tokens of a proposal. A branch stops where confidence < `cutoff` + proposals since the last order *
    `recovery` - failed attempts * `decay`. At most `width` branches grow at a time, and a draft policy that splits does
    so where another candidate is above `split` plus the same adjustment. `once`: one proposal per order, then wait.
    `nodes`: a draft policy that grows trees keeps at most so many undecided tokens (0: as many as there is room for).
    One that tries the likeliest first makes chances of confidences by `power` (`pipeinfer.core.tree.chance`) and, to
    compare long branches with short ones, `discount`; it tries nothing that comes true with less than `cutoff`.
    """

    micro_batch: int = 3
    cutoff: float = 0.0
    width: int = 1
    split: float = 1.0
    recovery: float = 0.0
    decay: float = 0.0
    once: bool = False
    nodes: int = 0
    discount: float = 1.0
    power: float = 1.0


class DraftFrom(Message, frozen=True):
    """From the head to the draft rank: `tokens` of `request` were committed since the last order; draft on, up to
    position `until`.

    Whether they confirm what was drafted or redirect it is for the drafter to see. `order` counts up and comes back in
    each proposal. `settings` None: as before.
    """

    order: int
    tokens: tuple[int, ...]
    until: int
    settings: DraftSettings | None = None
    request: int = 0


class DraftNode(Message, frozen=True):
    """One drafted token: `parent` is the id of another drafted node, or -1 for the last token of the order's text."""

    id: int
    parent: int
    token: int
    confidence: float


class Proposal(Message, frozen=True):
    """A micro-batch of drafted tokens for `request`, parents first. `stalled`: no more comes before the next order.

    `forward_s`: mean seconds of the draft's forwards of few rows since the request's last proposal (0: there was none),
    whole ones, also where rows of other requests were in them: it is how long the request's own take with these beside.
    `forward_rows`: how many of its own rows they had in the mean.
    `cached`: how many tokens of the text the draft did not have to read, as it had for another request.
    """

    order: int
    nodes: tuple[DraftNode, ...]
    stalled: bool
    request: int = 0
    forward_s: float = 0.0
    cached: int = 0
    forward_rows: float = 1.0
