"""From a plan to ranks that generate: opens the models, starts or reaches the ranks, runs heads over them."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from pipeinfer.cluster.auto_split import AUTO, auto_split, check_memory
from pipeinfer.cluster.contact import WATCH_S, Contact
from pipeinfer.cluster.inspection import inspections
from pipeinfer.cluster.placement import BadSplit, LayerRange, even_split, parse_split
from pipeinfer.cluster.weights import check_weights
from pipeinfer.core.effects import Emit, HeadEffect, Request, Start, Stop, ToDraft, ToFirstStage, ToStages
from pipeinfer.core.head import Head, Pipeline, Strategy
from pipeinfer.core.log import EventLog
from pipeinfer.core.messages import AskReport, Begin, DraftFrom, LinkLimit, Ready, Report, Sampling, Setup
from pipeinfer.core.prompt import PromptChunk
from pipeinfer.core.strategies.options import require
from pipeinfer.engine.backend import BadModel, ModelInfo, Tokenizer
from pipeinfer.engine.fingerprint import fingerprints
from pipeinfer.errors import LaunchError, RankLost
from pipeinfer.modelling.rank_survey import Survey
from pipeinfer.plugins import open_backend
from pipeinfer.results.trial import RankRecord, Trial, run_record
from pipeinfer.runtime.spans import Span
from pipeinfer.runtime.transports import HEAD

LOAD_S = 300.0
"""The longest that ranks may take to load."""

STALL_S = 120.0
"""A generation in which nothing arrives for this long is given up."""

SPARE_CELLS = 256
"""KV cells beyond the model's context, for speculation, unless the plan says how many cells there are."""

DRAFT_SEQUENCES = 16
"""Sequence ids of the draft rank: one per branch, and the canonical one."""

OnTokens = Callable[[tuple[int, ...]], Stop | None]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to bring up. `layers` is `0.5,0.5` or `4,4` (None: evenly over `stages`), and `draft_layers` is the same for
    the draft (None: all on one rank); `cells` 0: the context and some.

    `workers` are the addresses of running ranks, in rank order (then `key` is their key file); without them the ranks
    are started here. With `layers` "auto" they are split by the speed and memory of the ranks, which are measured
    first, or were by `calibrate`, as the file `profile` says. `bandwidth_bps` (bit/s) and `latency_s` shape every link
    that `links` does not.
    `cpu_share` is the share of the time in which each rank computes, so that it is as slow as a node of that much of
    this one's speed.
    """

    backend: str = "numpy"
    backend_options: dict[str, Any] = {}
    draft_backend: str | None = None
    draft_backend_options: dict[str, Any] = {}
    target: str = "builtin:target"
    draft: str | None = "builtin:draft"
    stages: int = 3
    layers: str | None = None
    draft_layers: str | None = None
    profile: str | None = None
    transport: str = "tcp"
    bandwidth_bps: float = float("inf")
    latency_s: float = 0.0
    links: tuple[LinkLimit, ...] = ()
    cpu_share: float = 1.0
    cells: int = 0
    sequences: int = 64
    prompt_chunk: PromptChunk = "auto"
    workers: tuple[str, ...] = ()
    key: str | None = None
    trace: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError on what is out of range."""
        require("cells", self.cells, 0, 2**31 - 1)
        require("sequences", self.sequences, 1, 2**16)
        require("cpu_share", self.cpu_share, 0.01, 1)
        require("latency in seconds", self.latency_s, 0, 3600)


class Models:
    """The plan's models as their backends describe them, and the layer ranges. Raises BadModel, BadSplit."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.draft_backend = plan.draft_backend or plan.backend
        self.draft_options = plan.draft_backend_options if plan.draft_backend else plan.backend_options
        self.backend = open_backend(plan.backend, plan.backend_options)
        self.target = self.backend.info(plan.target)
        self.split = even_split(self.target.layers, plan.stages) if plan.layers in (None, AUTO) else (
            parse_split(plan.layers, self.target.layers))  # fmt: skip
        """With `auto`: until the ranks are known."""
        self.draft = self._draft() if plan.draft else None
        self.draft_split = self._split_draft(self.draft) if self.draft else []
        self.cells = plan.cells or self.target.context + SPARE_CELLS

    @property
    def notes(self) -> list[str]:
        """What a user should know of the models, a line each."""
        found = [f"{self.plan.target}: {note}" for note in self.target.notes]
        if self.draft is not None:
            found += [f"{self.plan.draft}: {note}" for note in self.draft.notes]
        return list(dict.fromkeys(found))

    @property
    def count(self) -> int:
        """How many ranks there are."""
        return len(self.split) + len(self.draft_split)

    @property
    def drafter(self) -> int:
        """The rank that drafts, where there is a draft: the first of its ranks."""
        return len(self.split)

    def _draft(self) -> ModelInfo:
        assert self.plan.draft is not None
        draft: ModelInfo = open_backend(self.draft_backend, self.draft_options).info(self.plan.draft)
        if draft.vocabulary_digest != self.target.vocabulary_digest:
            raise BadModel(
                f"{self.plan.draft} and {self.plan.target} have different vocabularies ({draft.vocabulary} and "
                f"{self.target.vocabulary} entries): the draft's token ids must mean what the target's mean"
            )
        return draft

    def _split_draft(self, draft: ModelInfo) -> list[LayerRange]:
        if self.plan.draft_layers is None:
            return [(0, draft.layers)]
        try:
            return parse_split(self.plan.draft_layers, draft.layers)
        except BadSplit as problem:
            raise BadSplit(f"draft: {problem}") from None

    def fingerprints(self) -> dict[str, dict[str, str]]:
        """Model to the digests of its files, where they are here too."""
        found = {self.plan.target: fingerprints(self.backend, self.plan.target)}
        if self.plan.draft is not None:
            draft = open_backend(self.draft_backend, self.draft_options)
            found |= {self.plan.draft: fingerprints(draft, self.plan.draft)}
        return found

    def setups(self, addresses: Sequence[str], head_address: str) -> list[Setup]:
        """One Setup per rank: the target's stages in order, then the draft's."""
        plan, head = self.plan, (HEAD, head_address)
        first = Setup(
            rank=0, role="target", backend=plan.backend, options=msgspec.json.encode(plan.backend_options),
            model=plan.target, layers=self.split[0], stage=0, stages=1, sequences=plan.sequences,
            cells=self.cells, next_rank=HEAD, next_address=head_address, head_address=head_address,
            latency_s=plan.latency_s, bandwidth_bps=plan.bandwidth_bps, trace=plan.trace, cpu_share=plan.cpu_share,
            links=plan.links,
        )  # fmt: skip
        setups = _chain(first, self.split, addresses, head)
        if plan.draft is not None:
            drafter = msgspec.structs.replace(
                first, rank=self.drafter, role="draft", backend=self.draft_backend,
                options=msgspec.json.encode(self.draft_options), model=plan.draft, sequences=DRAFT_SEQUENCES,
            )  # fmt: skip
            back = (self.drafter, addresses[self.drafter]) if len(self.draft_split) > 1 else head
            first_draft, *others = _chain(drafter, self.draft_split, addresses, back)
            behind = tuple(addresses[self.drafter + 1 : self.count])
            setups += [msgspec.structs.replace(first_draft, behind=behind), *others]
        return setups


def _chain(first: Setup, split: Sequence[LayerRange], addresses: Sequence[str], back: tuple[int, str]) -> list[Setup]:
    """A model's ranks from that of `first` on, each with the next to send to; the last sends to the rank `back`."""
    nexts = [(rank, addresses[rank]) for rank in range(first.rank + 1, first.rank + len(split))]
    return [
        msgspec.structs.replace(
            first, rank=first.rank + stage, layers=layers, stage=stage, stages=len(split), next_rank=rank,
            next_address=address,
        )
        for stage, (layers, (rank, address)) in enumerate(zip(split, [*nexts, back], strict=True))
    ]  # fmt: skip


class Cluster(Contact):
    """Ranks that are up and loaded, and the head's side of them. A context manager.

    Raises LaunchError, BadModel, BadSplit, UnknownPlugin, TransportError while coming up, RankLost when a rank is lost.
    """

    def __init__(self, plan: Plan | None = None, **fields: Any) -> None:
        self.plan = plan = plan or Plan(**fields)
        self.models = Models(plan)
        self.tokenizer: Tokenizer = self.models.backend.tokenizer(plan.target)
        self.spans: list[Span] = []
        self.head: Head | None = None
        """The head of the generation under way, or of the last one: to look at."""
        self._next_run = self._last_order = 0
        self._reports: dict[int, Report] = {}
        self._setups: list[Setup] = []
        super().__init__(plan.transport, self.models.count, plan.workers, plan.key)
        try:
            self._set_up()
        except RankLost as lost:
            self.close()
            if not self.never_came(lost):
                raise
            raise LaunchError(str(lost)) from lost
        except BaseException:
            self.close()
            raise

    @property
    def rank_names(self) -> dict[int, str]:
        names = {HEAD: "head"}
        names |= {s.rank: f"rank {s.rank}: {s.role} layers {s.layers[0]}-{s.layers[1] - 1}" for s in self._setups}
        if len(self.models.draft_split) == 1 and self._setups:
            names[self.models.drafter] = f"rank {self.models.drafter}: draft"
        return names

    def generate(
        self,
        prompt: Sequence[int],
        strategy: Strategy,
        *,
        max_tokens: int = 128,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        stop_ids: Sequence[int] | None = None,
        on_tokens: OnTokens | None = None,
        margins: bool = False,
        logits_on_wire: bool = False,
        open_log: Callable[[Head], EventLog] | None = None,
        prompt_chunk: PromptChunk | None = None,
    ) -> Trial:
        """One generation. `stop_ids` None: the model's own end-of-text ids. `on_tokens` is called with each group of
        committed tokens and may give a Stop; `open_log` gives the head's event log; `prompt_chunk` replaces the plan's.
        Raises RankLost, or ValueError on a prompt that does not fit."""
        if strategy.drafts and self.models.draft is None:
            raise LaunchError("this strategy drafts: give a draft model")
        ends = tuple(self.models.target.eos if stop_ids is None else stop_ids)
        request = Request(tuple(prompt), max_tokens, ends)
        pipeline = Pipeline(len(self.models.split), self.models.cells, self.plan.sequences,
                            self.models.target.context, prompt_chunk or self.plan.prompt_chunk)  # fmt: skip
        head = Head(pipeline, strategy, first_run=self._next_run, first_order=self._last_order)
        self.head = head
        begin = Begin(sampling, strategy.draft_options(), 0, margins, logits_on_wire)
        self._begin(begin)
        with uncollected():
            trial = _Generation(self, head, on_tokens, open_log(head) if open_log else None).run(request)
        self._next_run, self._last_order = head.next_run, head.order
        return trial

    # Bringing up

    def _set_up(self) -> None:
        self._place()
        self._setups = self.models.setups(self.addresses, self.transport.address)
        for setup, address in zip(self._setups, self.addresses, strict=True):
            self.transport.connect(setup.rank, address)
            self.send(setup.rank, setup)
        self.shape(self.plan.bandwidth_bps, self.plan.latency_s, self.plan.links)
        self.ready: dict[int, Ready] = {}
        deadline = time.monotonic() + LOAD_S
        while len(self.ready) < len(self._setups):
            message = self.receive(WATCH_S)
            if isinstance(message, Ready):
                self.ready[message.rank] = message
                self.hosts[message.rank] = f"{message.host} (pid {message.pid})"
            elif time.monotonic() > deadline:
                missing = sorted({setup.rank for setup in self._setups} - set(self.ready))
                raise LaunchError(f"ranks {missing} were not ready after {LOAD_S:g} s")
        check_weights([(setup, self.ready[setup.rank]) for setup in self._setups], self.models.fingerprints())
        self.collect()

    def _place(self) -> None:
        """Meet the ranks, and refuse what they have no room for, or choose what is fastest."""
        models, survey = self.models, Survey(self)
        asked = inspections(models, len(self.addresses), self.transport.address, limited=False)
        survey.inspect(asked)
        if self.plan.layers == AUTO:
            with uncollected():
                models.split = auto_split(models, survey)
        check_memory(models, survey.ranks)

    def _begin(self, begin: Begin) -> None:
        self.send(0, msgspec.structs.replace(begin, draft={}))
        if self.models.draft is not None:
            context = self.models.draft.context
            self.send(self.models.drafter, msgspec.structs.replace(begin, context=context))

    # Messages

    def send_draft(self, message: DraftFrom) -> None:
        """To the rank that drafts."""
        self.send(self.models.drafter, message)

    def send_first(self, message: Any) -> None:
        """Down the target pipeline's ordered stream."""
        self.send(0, message)

    def send_stages(self, message: Any) -> None:
        """To every stage at once, beside the stream."""
        for rank in range(len(self.models.split)):
            self.send(rank, message, urgent=True)

    def collect(self) -> list[RankRecord]:
        """Ask every rank how the last trial went; traffic is counted from the report before."""
        before = dict(self._reports)
        for setup in self._setups:
            self.send(setup.rank, AskReport())
        waiting = {setup.rank for setup in self._setups}
        deadline = time.monotonic() + STALL_S
        while waiting:
            message = self.receive(WATCH_S)
            if isinstance(message, Report):
                waiting.discard(message.rank)
                self._reports[message.rank] = message
                self.spans += [Span(*span) for span in message.spans]
            elif time.monotonic() > deadline:
                raise self.lost(min(waiting), f"no report in {STALL_S:g} s")
        return [self._record(setup, before.get(setup.rank)) for setup in self._setups]

    def _record(self, setup: Setup, before: Report | None) -> RankRecord:
        report = self._reports[setup.rank]
        earlier = before.sent if before else {}
        sent = {
            rank: (size - earlier.get(rank, (0, 0))[0], count - earlier.get(rank, (0, 0))[1])
            for rank, (size, count) in report.sent.items()
        }
        host = self.ready[setup.rank].host if setup.rank in self.ready else ""
        return RankRecord(setup.rank, setup.role, setup.layers, report.busy_s, report.peak_memory, host,
                          {rank: size for rank, (size, _) in sent.items()},
                          {rank: count for rank, (_, count) in sent.items()}, setup.cpu_share)  # fmt: skip


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection meanwhile: a full one takes longer than many tokens, and would be measured with them."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Generation:
    """One head over the cluster, from Start until nothing of the generation is left in the pipeline."""

    def __init__(self, cluster: Cluster, head: Head, on_tokens: OnTokens | None, log: EventLog | None) -> None:
        self._cluster = cluster
        self._head = head
        self._log = log
        self._on_tokens = on_tokens
        self._stop: Stop | None = None
        self._emit_s: list[float] = []
        self._start = 0.0

    def run(self, request: Request) -> Trial:
        head, cluster = self._head, self._cluster
        self._start = last = time.monotonic()
        self._handle(Start(request))
        while not head.idle:
            message = cluster.receive(WATCH_S)
            if message is not None:
                last = time.monotonic()
                self._handle(message)
            elif time.monotonic() - last > STALL_S:
                oldest = head.in_flight[0].id if head.in_flight else "none"
                raise RankLost(HEAD, f"nothing has arrived for {STALL_S:g} s; oldest run under way: {oldest}")
        return self._trial(request)

    def _handle(self, event: Any) -> None:
        now = time.monotonic() - self._start
        effects = self._head.handle(now, event)
        if self._log is not None:
            self._log.record(now, event, effects)
        for effect in effects:
            self._send(effect, now)
        stop: Stop | None = None
        for effect in effects:  # the ranks have their work: now the user
            if isinstance(effect, Emit):
                stop = self._emit(effect, now) or stop
        if stop is not None:
            self._stop = stop
            self._handle(stop)

    def _send(self, effect: HeadEffect, now: float) -> None:
        if isinstance(effect, ToFirstStage):
            self._cluster.send_first(effect.message)
        elif isinstance(effect, ToDraft):
            self._cluster.send_draft(effect.message)
        elif isinstance(effect, ToStages):
            self._cluster.send_stages(effect.message)
            self._note("cancel " + " ".join(map(str, effect.message.runs)), now)

    def _emit(self, effect: Emit, now: float) -> Stop | None:
        self._emit_s.extend([now] * len(effect.tokens))
        self._note(f"commit {len(effect.tokens)}", now)
        return self._on_tokens(effect.tokens) if self._on_tokens else None

    def _note(self, what: str, now: float) -> None:
        """Put a decision of the head on the timeline."""
        if self._cluster.plan.trace:
            at = self._start + now
            self._cluster.spans.append(Span(HEAD, what, at, at))

    def _trial(self, request: Request) -> Trial:
        head, tokens, reason = self._head, self._head.generated, self._head.reason or ""
        if self._stop is not None:  # which counts even where the generation ended in the same group of tokens
            tokens, reason = tokens[: self._stop.length], self._stop.reason
        return Trial(
            strategy=type(head.strategy).__name__.lower(),
            fidelity="emulated" if self._cluster.plan.backend == "emulated" else "real",
            prompt_tokens=len(request.prompt),
            token_ids=tuple(tokens),
            emit_s=tuple(self._emit_s[: len(tokens)]),
            reason=reason,
            runs=tuple([run_record(run, 0.0) for run in head.runs]),
            ranks=tuple(self._cluster.collect()),
            margins=tuple(head.margins[: len(tokens)]),
            precision=self._cluster.models.target.precision,
        )
