"""What ranks and head say to one another beside the pipeline's own messages: set-up, inspection, measurements, reports.

Every message of a link is one of these or of `pipeinfer.core.messages`; `encode` and `decode` know them all.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from pipeinfer.core.messages import CancelRun, Decode, DraftFrom, Logits, Message, Proposal
from pipeinfer.engine.sampling import Sampling


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
    `exact`: rows have the same bits whatever they are computed with (`pipeinfer.engine.exact`); `hidden_size` is the
    model's.
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
    exact: bool = False
    hidden_size: int = 0

    @property
    def name(self) -> str:
        """What the rank is, for people."""
        first, end = self.layers
        alone = self.role == "draft" and self.stages == 1
        return f"rank {self.rank}: draft" if alone else f"rank {self.rank}: {self.role} layers {first}-{end - 1}"

    @property
    def threads(self) -> int:
        """In how many the engine computes, as its option of this name has it; else 1."""
        asked = msgspec.json.decode(self.options).get("threads") if self.options else None
        return asked if isinstance(asked, int) and asked > 1 else 1


class Ready(Message, frozen=True):
    """A rank has loaded its share and waits. `clock_s` is its monotonic clock, to align timelines across hosts;
    `weights` are digests of its model's files by their names (`pipeinfer.engine.fingerprint`), `cores` those that the
    rank may use, which may be others' too."""

    rank: int
    host: str
    pid: int
    load_s: float
    clock_s: float
    weights: dict[str, str] = {}  # noqa: RUF012 - a default of msgspec's, copied
    cores: int = 1


class Begin(Message, frozen=True):
    """A new trial: forget every cell, choose tokens like this from now on. Travels the ordered stream.

    `sampling` is that of each request, by its number. `drafting` is for the draft's ranks alone (a draft policy's name
    and its options), and so are `context`, the longest text in tokens, and `keeps_texts`: cells stay after a request as
    long as nobody needs them. `logits_on_wire` sends the logits along with the sampled ids, to measure what that costs.
    """

    sampling: dict[int, Sampling]
    drafting: str = ""
    drafting_options: dict[str, bool | int | float | str] = {}  # noqa: RUF012 - as above
    context: int = 0
    margins: bool = False
    logits_on_wire: bool = False
    keeps_texts: bool = False


class AddRequest(Message, frozen=True):
    """Request `request` is about to begin, beside those that are under way: how its tokens are chosen, and for the
    draft's ranks its draft policy, as in Begin. What was said of the requests `over` may be forgotten."""

    request: int
    sampling: Sampling
    drafting: str = ""
    drafting_options: dict[str, bool | int | float | str] = {}  # noqa: RUF012 - as above
    over: tuple[int, ...] = ()


class AskReport(Message, frozen=True):
    """From the head to each rank after a trial: how did it go?"""


class Report(Message, frozen=True):
    """A rank's answer: peak memory (bytes), bytes and messages sent to each rank since it was set up, and since the
    last report the seconds for which it computed and the spans (`pipeinfer.runtime.spans.Span`) of its timeline;
    `processor_s` is what its threads used of processors since the trial began (seconds)."""

    rank: int
    peak_memory: int
    sent: dict[int, tuple[int, int]]
    busy_s: float = 0.0
    spans: tuple[tuple[int, str, float, float, bool], ...] = ()
    processor_s: float = 0.0


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
    `cpu_share` and `exact` are those of a Setup.
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
    exact: bool = False


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


class ForwardTimes(Message, frozen=True):
    """Seconds of one forward, by context and then rows."""

    rank: int
    seconds: tuple[tuple[float, ...], ...]


class MeasureHandling(Message, frozen=True):
    """What does a run cost you beside its computation? A ForwardTimes answers."""


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
    Decode | Logits | CancelRun | DraftFrom | Proposal | Setup | Ready | Begin | AddRequest | AskReport | Report
    | Failure | Shutdown | Inspect | Inspected | Load | Loaded | Measure | ForwardTimes | MeasureHandling | MeasureLink
    | LinkMeasured | Ping | Pong
)  # fmt: skip

encode: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode
"""Message to header bytes."""

decode: Callable[[bytes | memoryview], Any] = msgspec.msgpack.Decoder(AnyMessage).decode
"""Header bytes to message. Raises msgspec.DecodeError (or ValidationError) when they are not one."""
