"""What ranks say to one another. Names follow the artifact: decode, kv_seq_cp / rm, cancel_run, logits.

Every message is a frozen, array-like msgspec struct, so that a header is a short MessagePack array. Hidden states and
logits never lie in a header: they travel beside it as one raw buffer (`pipeinfer.runtime.transports.Envelope.payload`).
"""

from enum import IntEnum
from typing import Any, TypeAlias

import msgspec

TO_THE_END = -1
"""A `stop` position that means "to the end of the sequence", as in llama.cpp."""

NOT_CANCELLED = -1
"""The `cancelled_at` of a run that every stage so far has computed."""


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
    """

    micro_batch: int = 3
    cutoff: float = 0.0
    width: int = 1
    split: float = 1.0
    recovery: float = 0.0
    decay: float = 0.0
    once: bool = False
    nodes: int = 0


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

    `forward_s`: mean seconds of the draft's forwards of few rows since the last proposal (0: there was none).
    """

    order: int
    nodes: tuple[DraftNode, ...]
    stalled: bool
    request: int = 0
    forward_s: float = 0.0


SEEDS = 2**64
"""A seed is half of the key of a Philox generator."""


class Sampling(Message, frozen=True):
    """How tokens are chosen from logits (`pipeinfer.engine.sampling`). `top_k` 0 and `top_p` 1 switch a filter off.

    Raises ValueError on what is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature = {self.temperature}: expected 0, which is greedy, or more")
        if not 0 <= self.top_k < 2**63:
            raise ValueError(f"top_k = {self.top_k}: expected a number of tokens, or 0 for all of them")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p}: expected a probability from 0 to 1")
        if not 0 <= self.seed < SEEDS:
            raise ValueError(f"seed = {self.seed}: expected 0 to {SEEDS - 1}")


class LinkLimit(msgspec.Struct, frozen=True):
    """One direction between two ranks (-1 is the head): latency in seconds, bandwidth in bit/s. No message takes less
    than `floor_s`."""

    source: int
    target: int
    latency_s: float
    bandwidth_bps: float
    floor_s: float = 0.0


class Setup(Message, frozen=True):
    """From the head to a fresh rank: what it is, what it loads and whom it talks to.

    `role` is "target" or "draft"; it is stage `stage` of that model's `stages`, and the draft's stage 0 is the drafter.
    `options` are the backend's own, as JSON. The output goes to `next_rank` at `next_address`. `behind` are the
    addresses of the draft's other ranks, which follow the drafter's. Where `latency_s` or a finite `bandwidth_bps` is
    given, every link between ranks is shaped to it from here on. `trace`: keep a timeline.
    `cpu_share`: compute in this share of the time and wait in the rest of it, as a slower node would.
    `vocabulary`: a draft knows and proposes token ids below this one only (0: all that it has).
    """

    rank: int
    role: str
    backend: str
    options: bytes
    model: str
    layers: tuple[int, int]
    stage: int
    stages: int
    sequences: int
    cells: int
    next_rank: int
    next_address: str
    head_address: str
    latency_s: float = 0.0
    bandwidth_bps: float = float("inf")
    trace: bool = False
    cpu_share: float = 1.0
    behind: tuple[str, ...] = ()
    links: tuple[LinkLimit, ...] = ()
    vocabulary: int = 0


class Ready(Message, frozen=True):
    """A rank has loaded its share and waits. `clock_s` is its monotonic clock, to align timelines across hosts;
    `weights` are digests of its model's files by their names (`pipeinfer.engine.fingerprint`)."""

    rank: int
    host: str
    pid: int
    load_s: float
    clock_s: float
    weights: dict[str, str] = {}


class Begin(Message, frozen=True):
    """A new trial: forget every cell, choose tokens like this from now on. Travels the ordered stream.

    `sampling` is that of each request, by its number. `drafting` is for the draft's ranks alone (a draft policy's name
    and its options), and so is `context`, the longest text in tokens. `logits_on_wire` sends the logits along with the
    sampled ids, to measure what that costs.
    """

    sampling: dict[int, Sampling]
    drafting: str = ""
    drafting_options: dict[str, bool | int | float | str] = {}
    context: int = 0
    margins: bool = False
    logits_on_wire: bool = False


class AskReport(Message, frozen=True):
    """From the head to each rank after a trial: how did it go?"""


class Report(Message, frozen=True):
    """A rank's answer: peak memory (bytes), bytes and messages sent to each rank since it was set up, and since the
    last report the seconds for which it computed and the spans (`pipeinfer.runtime.spans.Span`) of its timeline."""

    rank: int
    peak_memory: int
    sent: dict[int, tuple[int, int]]
    busy_s: float = 0.0
    spans: tuple[tuple[int, str, float, float, bool], ...] = ()


class Inspect(Message, frozen=True):
    """From the head to a fresh rank, before any Setup: who and where are you, what is free for a model of `backend`?

    What a rank is asked to measure comes between this and its Setup, or a Shutdown. Links are shaped as in a Setup.
    """

    rank: int
    backend: str
    options: bytes
    head_address: str
    latency_s: float = 0.0
    bandwidth_bps: float = float("inf")


class Inspected(Message, frozen=True):
    """A rank's answer; `memory_bytes` is what is free, and `shared` by all ranks of the host, or its own device's."""

    rank: int
    host: str
    pid: int
    cores: int
    memory_bytes: int
    shared: bool


class Load(Message, frozen=True):
    """Hold layers [i, j) of `model`, to time them, instead of what was held; a Loaded answers. `hidden_size`,
    `vocabulary` and whether the last layer is among them (`outputs`) make up its rows.

    Outputs are sampled as `sampling` says, or `candidates` of each are chosen as the draft rank does (where above 0).
    `cpu_share` is that of a Setup.
    """

    backend: str
    options: bytes
    model: str
    layers: tuple[int, int]
    cells: int
    hidden_size: int
    vocabulary: int
    outputs: bool
    sampling: Sampling = Sampling()
    candidates: int = 0
    cpu_share: float = 1.0


class Loaded(Message, frozen=True):
    """It is held."""

    rank: int


class Measure(Message, frozen=True):
    """Time forwards of what is held, over every number of `rows` and every context (positions attended to), both
    ascending, for about `seconds` in all: medians of `burst` forwards after a rest. `burst` 0: means without any rest.
    """

    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    seconds: float
    burst: int = 1


class Measured(Message, frozen=True):
    """Seconds of one forward, by context and then rows."""

    rank: int
    seconds: tuple[tuple[float, ...], ...]


class MeasureHandling(Message, frozen=True):
    """What does a run cost you beside its computation? A Measured answers."""


class MeasureLink(Message, frozen=True):
    """Time the link to rank `target` at `address`, which answers to you at `reply_to`."""

    target: int
    address: str
    reply_to: str


class LinkMeasured(Message, frozen=True):
    """One-way seconds of a small message; bit/s of large ones."""

    source: int
    target: int
    latency_s: float
    bandwidth_bps: float


class Ping(Message, frozen=True):
    """Answer with a Pong to rank `sender` at `address`. The payload is ballast."""

    sender: int
    address: str


class Pong(Message, frozen=True):
    """A Ping has arrived."""


class Failure(Message, frozen=True):
    """Rank `rank` cannot go on; `text` is one line for the user. `user_error`: the user can put it right."""

    rank: int
    text: str
    user_error: bool = False


class Shutdown(Message, frozen=True):
    """The end: leave."""


AnyMessage: TypeAlias = (
    Decode | Logits | CancelRun | DraftFrom | Proposal | Setup | Ready | Begin | AskReport | Report | Failure | Shutdown
    | Inspect | Inspected | Load | Loaded | Measure | Measured | MeasureHandling | MeasureLink | LinkMeasured | Ping
    | Pong
)  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: Any) -> bytes:
    """Message to header bytes."""
    return _encoder.encode(message)


def decode(header: bytes | memoryview) -> Any:
    """Header bytes to message. Raises msgspec.DecodeError (or ValidationError) when they are not one."""
    return _decoder.decode(header)
