"""One request and the strategy that decodes it: text, token tree, the target's verdicts, commits, orders to the draft.

A strategy is a pair. `Strategy` says which run comes next and how far to draft; a plug-in of `pipeinfer.strategies`. It
sees the request's text and tree, what is in flight and what each stage took (`Generation`), and is asked after every
event. The draft policy that it names in `drafting` tries tokens (`pipeinfer.core.draft.DraftPolicy`).
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from math import inf
from operator import attrgetter
from typing import Any, Literal, Protocol

import msgspec

from pipeinfer.core.effects import Emit, Finish, Note, Request
from pipeinfer.core.errors import NothingToChoose, PeerError
from pipeinfer.core.ledger import Ledger
from pipeinfer.core.measured import Measured
from pipeinfer.core.messages import NO_TOKEN, DraftFrom, DraftSettings, Proposal
from pipeinfer.core.prompt import PromptChunk
from pipeinfer.core.tree import Node, Run, root

NOWHERE = -1
"""The `until` of an order that stops the drafter."""


class PipelineShape(msgspec.Struct, frozen=True):
    """What is known of the target pipeline: its depth, each stage's KV cells and sequence ids, the model's context
    (tokens), and in how many tokens at a time the prompt is sent. `keeps_texts`: cells stay after a generation as long
    as nobody needs them, and a prompt begins after what is there of it. `ranks_per_core`: on the fullest host, at least
    1; where it is more, what one rank computes it takes from the others. `rationed`: each rank has less than a core,
    and waits after a burst until it may compute again.
    """

    stages: int
    cells: int = 2048
    sequences: int = 64
    context: int = 1 << 30
    prompt_chunk: PromptChunk = "auto"
    keeps_texts: bool = False
    ranks_per_core: float = 1.0
    rationed: bool = False

    @property
    def at_once(self) -> float:
        """How many stages can compute at the same time: where they share cores, as many as there are cores for."""
        return self.stages / self.ranks_per_core

    @property
    def cores(self) -> float:
        """How many ranks, the draft among them, can compute at the same time; where none shares a core, any number."""
        return (self.stages + 1) / self.ranks_per_core if self.ranks_per_core > 1 else inf

    @property
    def limit(self) -> int:
        """The longest text, in tokens, that this pipeline can hold."""
        return min(self.context, self.cells)

    def check(self, request: Request) -> None:
        """Refuse, with ValueError, what can have no answer."""
        if not request.prompt:
            raise ValueError("the prompt is empty: expected at least one token")
        if len(request.prompt) >= self.limit:
            cells, context = f"{self.cells} KV cells", f"the model's context of {self.context} tokens"
            room = f"{cells}: shorten it or raise --cells" if self.cells < self.context else f"{context}: shorten it"
            raise ValueError(f"the prompt has {len(request.prompt)} tokens and leaves no room in {room}")
        if request.max_tokens < 1:
            raise ValueError(f"max_tokens = {request.max_tokens}: expected at least 1")


class Pipe(Protocol):
    """What a request shares with the others: the scheduler, as far as its requests use it."""

    pipeline: PipelineShape
    ledger: Ledger
    measured: Measured
    now: float

    @property
    def in_flight(self) -> Sequence[Sequence[Run]]:
        """Runs of every request that have not come back, oldest first; together those that travel as one."""

    @property
    def running(self) -> int:
        """Requests that have begun and not ended."""

    def fits(self, generation: "Generation", nodes: Sequence[Node]) -> bool:
        """Whether there are sequence ids and cells for a speculative run of these nodes."""

    def perform(self, effect: Any) -> None:
        """Have this done."""


class Order(msgspec.Struct, frozen=True, gc=False):
    """Draft up to position `until`, in this way."""

    until: int
    settings: DraftSettings


class Strategy:
    """Subclass it and write `next_run`; one object serves one request."""

    name: str = ""
    """Under which it was opened: records and tables say it."""
    drafting: str = ""
    """The draft policy that goes with it, by name; without one nobody drafts."""
    drafting_options: dict[str, bool | int | float | str] = {}  # noqa: RUF012 - replaced, never changed
    cancels: bool = False
    """Runs and rows that can become text no more are given up wherever they are."""

    sends_all: bool = False
    """What is drafted is sent as soon as nothing else is under way. What came too late for that says as much of the
    draft as what was sent; without it nothing would tell how good it is just after a miss."""
    ahead: int = 0
    """Rows of the runs that it sends behind those that are under way, where it does and they are all alike."""
    simulated_only: str = ""
    """What it needs that no live cluster has, which is why only the simulator takes it."""
    drafts_on_last_stage: bool = False
    """The target's last stage drafts: no rank of its own does, and orders and proposals arrive at once."""
    endless_stages: bool = False
    """A run finds every stage free, however many others it computes."""
    as_published: Literal["", "draft-on-head", "light-head"] = ""
    """Where the authors' scripts lay its models, if not as those of any other (docs/fairness.md)."""
    sweeps: Mapping[str, Sequence[Any]] = {}
    """Options that are swept where it is shown at its best, with values in ascending order: a sweep begins with the
    first of them and goes on for as long as the best is the largest tried."""
    sweeps_by_confidence: Mapping[str, Sequence[Any]] = {}
    """What is tried besides, every combination, where the draft's confidence tells something."""
    foreseen: Callable[[int], float] | None = None
    """The chance that a draft at a position is right, where it was assumed and not measured: a simulation tells it."""

    @property
    def drafts(self) -> bool:
        """Somebody has to draft."""
        return bool(self.drafting)

    def started(self, generation: "Generation") -> None:
        """The prompt is about to be sent."""

    def next_run(self, generation: "Generation") -> Sequence[Node] | None:
        """The nodes to send now as one run, parents first; None: nothing for now. Asked again until it says None.

        The tip may be the first; alone it is a single-token run. Changes nothing: what is sent is told by its `run`.
        """
        raise NotImplementedError

    def next_order(self, generation: "Generation") -> Order | None:
        """How far to draft now. It is sent if tokens were committed, or `until` or settings have moved on."""
        return None

    def proposed(self, generation: "Generation", nodes: list[Node]) -> None:
        """The draft proposes these nodes (alive, new, parents first)."""

    def advanced(self, generation: "Generation") -> None:
        """Tokens were committed; `generation.tip` is the last."""

    def accepted(self, generation: "Generation", node: Node) -> None:
        """A node that a run carries came true: its cell becomes part of the text's."""
        generation.pipe.ledger.promote(node.sequence, node.position, generation.sequence)

    def limit(self, a: float, stages: int, draft: float) -> float | None:
        """In closed form, how many times as fast as plain decoding it is at most with these options; None: not known.

        That is with drafts right independently with the chance `a`, each made in the share `draft` of a traversal of
        `stages` equal ones, where further rows, links and cancellation cost nothing (`pipeinfer.core.theory`)."""
        return None

    def conclusion(self) -> str:
        """What it settled on, for people; empty where there is nothing to tell."""
        return ""

    def reserve(self, generation: "Generation", rows: int) -> int:
        """Cells that a speculative run of so many rows must leave free for this request's text."""
        return 1


class Generation:
    """Request `number`, decoded by `strategy` over what `pipe` schedules.

    `sequence` is the sequence id of its text. Draft orders count up from `first_order`, so that what an earlier
    generation left behind is told apart.
    """

    def __init__(
        self, pipe: Pipe, number: int, request: Request, strategy: Strategy, sequence: int, first_order: int
    ) -> None:
        self.pipe = pipe
        self.number = number
        self.request = request
        self.strategy = strategy
        self.sequence = sequence
        self.tip = root()
        """The last committed token."""
        self.text = list(request.prompt)
        self.prompt_length = len(request.prompt)
        self.limit = min(pipe.pipeline.limit, self.prompt_length + request.max_tokens)
        """The longest that its text can become, in tokens."""
        self.margins: list[float] = []
        self.unsent: deque[list[Node]] = deque()
        """Chunks of the prompt that were not sent yet."""
        self.began_at = 0.0
        self.cached = 0
        """Tokens of the prompt whose cells were there."""
        self.draft_cached = 0
        """The same of the draft's cells, as far as it has said."""
        self.lent = 0
        """So many tokens of it are the beginning of other texts too."""
        self.reason: str | None = None
        self.runs: list[Run] = []
        self.in_flight: deque[Run] = deque()
        """Its runs that have not come back, oldest first."""
        self.order = self._first_order = first_order
        self._orders: deque[tuple[int, Node]] = deque()
        """Orders that a proposal may still answer, the oldest first, and the tip at each."""
        self._drafted: dict[int, Node] = {}
        self.stalled = False
        """The draft proposes nothing more before it hears of the tokens that come next."""
        self._told = 0
        self._ordered = Order(NOWHERE, DraftSettings())

    @property
    def generated(self) -> list[int]:
        """The committed tokens after the prompt."""
        return self.text[self.prompt_length :]

    # What a strategy may ask

    @property
    def begun(self) -> bool:
        """A token was generated."""
        return len(self.text) > self.prompt_length

    def covered(self) -> bool:
        """The tip is in a run already, so its verdict will come."""
        return self.tip.run is not None

    def fits(self, nodes: Sequence[Node]) -> bool:
        """A speculative run of these nodes has sequence ids and cells, and the runs that must go on keep theirs."""
        return self.pipe.fits(self, nodes)

    def note(self, text: str) -> None:
        """Say in the log and on the timeline what was decided, and why."""
        self.pipe.perform(Note(text, self.number))

    # What happens to it

    def take_prompt(self) -> list[Node]:
        """The prompt as committed nodes."""
        nodes: list[Node] = []
        for token in self.request.prompt:
            self.tip, _ = self.tip.commit(token)
            nodes.append(self.tip)
        return nodes

    def commit(self) -> list[Node]:
        """Commit every token whose verdict is known; one is. Gives the branches that lost. Raises NothingToChoose."""
        lost: list[Node] = []
        tip, text, before = self.tip, self.text, len(self.text)
        while (token := tip.verdict) is not None:
            if token == NO_TOKEN:
                raise NothingToChoose(tip.position + 1)
            if tip.margin is not None:
                self.margins.append(tip.margin)
            if tip.children:
                self._judge(tip, token)
            tip, siblings = tip.commit(token)
            lost += siblings
            if tip.run is not None:
                tip.run.accepted += 1
                self.strategy.accepted(self, tip)
            text.append(token)
            self.tip = tip
            if len(text) >= self.limit or token in self.request.stop_ids:
                self.reason = self._end(token)
                break
        self.stalled = False
        self.pipe.perform(Emit(tuple(text[before:]), self.number))
        return lost

    def propose(self, message: Proposal) -> None:
        """Hang what was drafted into the tree, where the text can still grow through it. Raises PeerError."""
        if self.reason is not None or message.order <= self._first_order:
            return
        orders = self._orders
        while orders and orders[0][0] < message.order:
            orders.popleft()
        if not orders or orders[0][0] != message.order:
            raise PeerError(f"a proposal answers order {message.order}, which was not given")
        self.draft_cached = message.cached
        root, tip, known = orders[0][1], self.tip, self._drafted
        new: list[Node] = []
        for drafted in message.nodes:
            parent = root if drafted.parent < 0 else known.get(drafted.parent)
            if parent is None or not parent.alive:
                continue
            node = parent.children.get(drafted.token)
            if node is None:
                # Under a committed token that has its successor, another child is dead at birth.
                if parent.committed and parent is not tip:
                    continue
                node = Node(drafted.token, parent.position + 1, parent, drafted.confidence)
                parent.children[drafted.token] = node
                new.append(node)
            known[drafted.id] = node
        # An answer to an older order says nothing about the newest.
        self.stalled = message.stalled and message.order == self.order
        self.strategy.proposed(self, new)

    def order_draft(self) -> None:
        """Tell the draft what was committed since the last order, and how far to draft, as the strategy wants it."""
        wanted = self.strategy.next_order(self)
        before, told, length = self._ordered, self._told, len(self.text)
        if wanted is None or (wanted is before and length == told):
            return
        settings = None if wanted.settings == before.settings else wanted.settings
        if length == told and settings is None and wanted.until <= before.until:
            return
        tokens = tuple(self.text[told:])
        self._told, self._ordered = length, wanted
        self.order += 1
        self._orders.append((self.order, self.tip))
        self.pipe.perform(DraftFrom(self.order, tokens, wanted.until, settings, self.number))

    def stop(self, length: int, reason: str) -> None:
        """End after `length` generated tokens."""
        del self.text[self.prompt_length + length :]
        del self.margins[length:]
        self.reason = reason

    def finish(self) -> None:
        """Say that it has ended, and bring the draft to rest."""
        assert self.reason is not None
        if self.strategy.drafts:
            self.order += 1
            self.pipe.perform(DraftFrom(self.order, (), NOWHERE, None, self.number))
        self.pipe.perform(Finish(self.reason, self.number))

    def validate(self) -> None:
        """What holds after every event."""
        tip, trunk = self.tip, self.tree_text()
        assert tip.position == len(trunk) - 1
        assert self.reason is not None or trunk == self.text
        for node in tip.subtree():
            assert node is tip or (node.alive and not node.committed), "a branch of the tip is alive and undecided"

    def tree_text(self) -> list[int]:
        """The trunk's tokens."""
        tokens: list[int] = []
        node: Node | None = self.tip
        while node is not None and node.parent is not None:
            tokens.append(node.token)
            node = node.parent
        return tokens[::-1]

    def _judge(self, tip: Node, token: int) -> None:
        """Note whether the likeliest that was drafted after the tip was right: of those that were sent, or of all where
        the strategy sends all that come in time."""
        drafted = list(tip.children.values())
        if len(drafted) > 1:
            drafted.sort(key=attrgetter("confidence"), reverse=True)
            if not self.strategy.sends_all:
                drafted = [one for one in drafted if one.run is not None and one.run.drafted] or drafted[:1]
        best, depth = drafted[0], 0
        run = best.run
        if run is not None and run.drafted:
            depth = best.position - run.nodes[-run.drafted].position
        elif not self.strategy.sends_all:
            return
        self.pipe.measured.verdict(depth if depth > 0 else 0, best.token == token, best.confidence)
        if len(drafted) > 1 and best.token != token:
            self.pipe.measured.second(drafted[1].token == token)

    def _end(self, token: int) -> str:
        """Why the text ends with this token."""
        if token in self.request.stop_ids:
            return "eos"
        return "length" if len(self.text) - self.prompt_length >= self.request.max_tokens else "context"
