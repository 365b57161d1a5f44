"""A scheduler that is told things, and what it is told: for tests that read as a trace."""

from typing import Any

import msgspec

from pipeinfer.core.effects import Request, Start
from pipeinfer.core.generation import Generation, PipelineShape, Strategy
from pipeinfer.core.messages import Decode, DraftFrom, DraftNode, Logits, Proposal, RunKind
from pipeinfer.core.scheduler import Scheduler

PROMPT = (5, 6, 7)


class Told:
    """A scheduler under test, with one request."""

    def __init__(self, strategy: Strategy, max_tokens: int = 100, stop_ids: tuple[int, ...] = (), **pipeline: Any):
        self.scheduler = Scheduler(PipelineShape(**{"stages": 3, **pipeline}), lambda _: strategy)
        self.begun = self(Start(Request(PROMPT, max_tokens, stop_ids)))

    def __call__(self, event: Any) -> list[Any]:
        effects = self.scheduler.handle(0.0, event)
        self.scheduler.validate()
        return [_without_settings(effect) for effect in effects]

    @property
    def generation(self) -> Generation:
        return self.scheduler.generations[0]


def _without_settings(effect: Any) -> Any:
    """An order without how to draft, which tests of its own look at."""
    if isinstance(effect, DraftFrom):
        return msgspec.structs.replace(effect, settings=None)
    return effect


def started(strategy: Strategy, **settings: Any) -> Told:
    """A scheduler that has committed 8 at position 3."""
    told = Told(strategy, **settings)
    told(Logits(0, (8,)))
    return told


def decode(run: int, kind: RunKind, *rows: tuple[int, int, tuple[int, ...]], outputs: int = -1, kv: Any = ()) -> Any:
    """Rows of (token, position, sequences); all of them are outputs unless said."""
    tokens, positions, sequences = zip(*rows, strict=True)
    return Decode(run, kind, tokens, positions, sequences, len(rows) if outputs < 0 else outputs, kv)


def single(run: int, token: int, position: int, *kv: Any) -> Decode:
    made: Decode = decode(run, RunKind.SINGLE, (token, position, (0,)), kv=kv)
    return made


def draft_from(order: int, *tokens: int, until: int) -> DraftFrom:
    return DraftFrom(order, tokens, until)


def chain(order: int, first_id: int, *tokens: int, parent: int = -1, stalled: bool = False) -> Proposal:
    """A proposal of tokens that follow one another, with ids from `first_id`."""
    nodes = [DraftNode(first_id, parent, tokens[0], 0.9)]
    for token in tokens[1:]:
        nodes.append(DraftNode(nodes[-1].id + 1, nodes[-1].id, token, 0.9))
    return Proposal(order, tuple(nodes), stalled)
