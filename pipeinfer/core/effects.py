"""What the state machines are told (events) and what they want done (effects). A driver performs the effects.

Besides these, every message of `pipeinfer.core.messages` is an event for the machine that it is addressed to.
"""

from typing import Any, TypeAlias

import msgspec

from pipeinfer.core.messages import CancelRun, Candidates, Decode, DraftFrom, KvOp, Message


class Request(Message, frozen=True):
    """One generation: prompt ids, how many tokens to generate, and the ids that end it."""

    prompt: tuple[int, ...]
    max_tokens: int
    stop_ids: tuple[int, ...] = ()


# Events


class Start(Message, frozen=True):
    """To the head: begin this request."""

    request: Request


class Stop(Message, frozen=True):
    """To the head: end the generation after the first `length` generated tokens (a stop string was seen, say)."""

    length: int
    reason: str


class Computed(msgspec.Struct, frozen=True, gc=False):
    """To a stage: its run came to an end. `ids` and `margins` are those of the target's last stage, `candidates` those
    of the draft's; `payload` is opaque."""

    run: int
    seconds: float
    aborted: bool = False
    payload: Any = None
    ids: tuple[int, ...] = ()
    margins: tuple[float, ...] = ()
    candidates: Candidates = ()


class Drafted(msgspec.Struct, frozen=True, gc=False):
    """To the drafter: the candidates after each output row; or it was aborted."""

    candidates: Candidates
    aborted: bool = False


class Woken(msgspec.Struct, frozen=True, gc=False):
    """To the drafter: the wait it asked for is over."""


# Effects


class Emit(Message, frozen=True):
    """Tokens were committed: hand them to the user."""

    tokens: tuple[int, ...]


class Finish(Message, frozen=True):
    """No further token comes; `reason` is length, eos, stop or context."""

    reason: str


class ToStages(Message, frozen=True):
    """Send to every stage at once, beside the ordered stream."""

    message: CancelRun


class ToFirstStage(Message, frozen=True):
    """Send down the target pipeline's ordered stream."""

    message: Decode


class ToDraft(Message, frozen=True):
    """Send to the draft rank."""

    message: DraftFrom


class Apply(msgspec.Struct, frozen=True, gc=False):
    """Apply KV operations to this rank's cells."""

    ops: tuple[KvOp, ...]


class Compute(msgspec.Struct, frozen=True, gc=False):
    """Run this stage's layers over the run's rows, and sample its output rows on the last stage."""

    decode: Decode
    payload: Any


class ComputeDraft(msgspec.Struct, frozen=True, gc=False):
    """Run the draft model over these rows; give `count` candidates for each of the last `outputs` rows."""

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    sequences: tuple[tuple[int, ...], ...]
    outputs: int
    count: int


class Abort(msgspec.Struct, frozen=True, gc=False):
    """Abandon the computation under way; its Computed or Drafted event must still come, marked aborted."""


class Forward(msgspec.Struct, frozen=True, gc=False):
    """Send to the next rank of the pipeline (the head after the last stage)."""

    message: Any
    payload: Any = None


class Wake(msgspec.Struct, frozen=True, gc=False):
    """Send a Woken event after `delay` seconds."""

    delay: float


Effect: TypeAlias = (
    Emit | Finish | ToStages | ToFirstStage | ToDraft | Apply | Compute | ComputeDraft | Abort | Forward | Wake
)
HeadEffect: TypeAlias = Emit | Finish | ToStages | ToFirstStage | ToDraft
