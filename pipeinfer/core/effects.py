"""What the state machines are told (events) and what they want done (effects). A driver performs the effects.

Besides these, every message of `pipeinfer.core.messages` is an event for the machine that it is addressed to, and those
of the scheduler are its effects: a Decode goes down the ordered stream, a CancelRun to every stage at once beside it, a
DraftFrom to the draft rank.
"""

from typing import Any

from pipeinfer.core.messages import Candidates, Decode, KvOp, Message


class Request(Message, frozen=True):
    """One generation: prompt ids, how many tokens to generate, and the ids that end it."""

    prompt: tuple[int, ...]
    max_tokens: int
    stop_ids: tuple[int, ...] = ()


# Events


class Start(Message, frozen=True):
    """To the scheduler: begin `request`, to be known by `number`, with this strategy and these options of it."""

    request: Request
    number: int = 0
    strategy: str = ""
    options: dict[str, bool | int | float | str] = {}  # noqa: RUF012 - a default of msgspec's, copied


class Stop(Message, frozen=True):
    """To the scheduler: end the generation after its first `length` generated tokens (a stop string was seen, say)."""

    length: int
    reason: str
    number: int = 0


class Forget(Message, frozen=True):
    """To the scheduler: what there was to know of this request, which has ended, was taken down. For schedulers that
    see any number of requests, whose numbers grow; a generation is gone once none of its runs is in flight."""

    number: int


class Computed(Message, frozen=True):
    """To a stage: its run came to an end. `ids` and `margins` are those of the target's last stage, `candidates` those
    of the draft's; `payload` is opaque."""

    run: int
    seconds: float
    aborted: bool = False
    payload: Any = None
    ids: tuple[int, ...] = ()
    margins: tuple[float, ...] = ()
    candidates: Candidates = ()


class Drafted(Message, frozen=True):
    """To the drafter: the candidates after each output row, found in so many seconds; or it was aborted."""

    candidates: Candidates
    aborted: bool = False
    seconds: float = 0.0


class Woken(Message, frozen=True):
    """To the drafter: the wait it asked for is over."""


# Effects


class Emit(Message, frozen=True):
    """Tokens of request `number` were committed: hand them to the user."""

    tokens: tuple[int, ...]
    number: int = 0


class Finish(Message, frozen=True):
    """No further token of request `number` comes; `reason` is length, eos, stop or context."""

    reason: str
    number: int = 0


class Note(Message, frozen=True):
    """A strategy decided something, in words: for the timeline and whoever reads the log."""

    text: str
    number: int = 0


class Apply(Message, frozen=True):
    """Apply KV operations to this rank's cells."""

    ops: tuple[KvOp, ...]


class Compute(Message, frozen=True):
    """Run this stage's layers over the run's rows, and sample its output rows on the last stage. `keep`: which of
    the payload's `came` rows these are (empty: all)."""

    decode: Decode
    payload: Any
    keep: tuple[int, ...] = ()
    came: int = 0


class ComputeDraft(Message, frozen=True):
    """Run the draft model over these rows; give `count` candidates for each of the last `outputs` rows. `requests` is
    the request of each row, or of all where it has one entry."""

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    sequences: tuple[tuple[int, ...], ...]
    outputs: int
    count: int
    requests: tuple[int, ...] = (0,)


class Abort(Message, frozen=True):
    """Abandon the computation under way; its Computed or Drafted event must still come, marked aborted."""


class Forward(Message, frozen=True):
    """Send to the next rank of the pipeline (the head after the last stage)."""

    message: Any
    payload: Any = None


class Wake(Message, frozen=True):
    """Send a Woken event after `delay` seconds."""

    delay: float
