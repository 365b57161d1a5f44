"""What whoever asked hears of a request, and what is left of it at its end. Times: seconds since it was submitted."""

from collections.abc import Callable
from typing import TypeAlias

import msgspec

from pipeinfer.results.trial import RunRecord


class RequestRecord(msgspec.Struct, frozen=True):
    """One request as it ended, with the strategy that it had then: `generated` tokens after a prompt of
    `prompt_tokens`, of which `cached_tokens` were in the KV cells already. `began_s`: when its prompt was sent (None:
    it never was). The times in `runs` count from then; those that were still in flight have no `finished_s`.
    `draft_cached_tokens` of the text were in the draft's KV cells already."""

    number: int
    strategy: str
    reason: str
    prompt_tokens: int
    cached_tokens: int
    generated: int
    began_s: float | None
    emit_s: tuple[float, ...]
    ended_s: float
    runs: tuple[RunRecord, ...]
    draft_cached_tokens: int = 0


class Tokens(msgspec.Struct, frozen=True, tag=True):
    """These tokens were committed."""

    ids: tuple[int, ...]
    at_s: float


class Ended(msgspec.Struct, frozen=True, tag=True):
    """No more tokens come: "length", "eos", "context", or what it was stopped or cancelled for."""

    reason: str
    record: RequestRecord


class Failed(msgspec.Struct, frozen=True, tag=True):
    """No more tokens come, since the ranks were lost. One line."""

    text: str


class Paused(msgspec.Struct, frozen=True, tag=True):
    """A rank was lost and is replaced; the same tokens go on then. One line."""

    text: str


class Resumed(msgspec.Struct, frozen=True, tag=True):
    """It goes on. One line."""

    text: str


ServiceEvent: TypeAlias = Tokens | Ended | Failed | Paused | Resumed

OnEvent: TypeAlias = Callable[[ServiceEvent], None]
"""Called on the head's thread, which it must not block."""
