"""From a plan to ranks that generate: opens the models, starts or reaches the ranks, runs heads over them."""

import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from pipeinfer.cluster.auto_split import auto_split, check_memory, fitting_split
from pipeinfer.cluster.contact import Contact
from pipeinfer.cluster.garbage_collection import uncollected
from pipeinfer.cluster.head import Head, OnTokens
from pipeinfer.cluster.inspection import inspections
from pipeinfer.cluster.models import Models
from pipeinfer.cluster.placement import BadSplit
from pipeinfer.cluster.plan import AUTO, FITTING, Plan
from pipeinfer.cluster.recovery import Recovery
from pipeinfer.cluster.weights import check_weights
from pipeinfer.core.effects import Request, Start
from pipeinfer.core.errors import NothingToChoose
from pipeinfer.core.generation import PipelineShape, Strategy
from pipeinfer.core.messages import DraftFrom
from pipeinfer.core.prompt import PromptChunk
from pipeinfer.core.scheduler import Scheduler
from pipeinfer.core.text_drafter import TextDrafter
from pipeinfer.engine.backend import BadModel, Tokenizer
from pipeinfer.engine.sampling import NotFinite, Sampling
from pipeinfer.errors import LaunchError, RankLost, RankRefuses
from pipeinfer.modelling.rank_survey import Survey
from pipeinfer.plugins import open_drafting
from pipeinfer.results.divergence import ROW_BY_ROW
from pipeinfer.results.trial import RankRecord, Trial
from pipeinfer.runtime.control import AddRequest, AskReport, Begin, Ready, Report, Setup
from pipeinfer.runtime.event_log import EventLog
from pipeinfer.runtime.spans import Span
from pipeinfer.runtime.transports import HEAD, TransportError, hosting_of

HEAD_SHARE = 0.1
"""Of a core, what a head that commits some hundred tokens per second takes."""


class Cluster(Contact):
    """Ranks that are up and loaded, and the head's side of them. A context manager.

    Raises LaunchError, BadModel, BadSplit, UnknownPlugin, TransportError while coming up, RankLost when a rank is lost.
    """

    def __init__(self, plan: Plan | None = None, **fields: Any) -> None:
        self.plan = plan = plan or Plan(**fields)
        self.models = Models(plan)
        self.tokenizer: Tokenizer = self.models.backend.tokenizer(plan.target)
        self.spans: list[Span] = []
        self.scheduler: Scheduler | None = None
        """That of the generation under way, or of the last one: to look at."""
        self._reports: dict[int, Report] = {}
        self._setups: list[Setup] = []
        self._recovery = Recovery(self.models)
        self._planned_alone = plan.draft is None
        self._recovery.meet_spares()
        super().__init__(plan.transport, self.models.count, plan.workers, plan.key, self.models.loads)
        try:
            self._set_up()
        except BaseException as problem:
            self.close()
            if isinstance(problem, RankLost) and self.never_came(problem):
                raise LaunchError(str(problem)) from problem
            raise

    def reopen(self, lost: int = HEAD) -> None:
        """Bring ranks up anew, with others in the places of those that are gone, where `lost` is the rank that was; or
        without a draft, or on fewer stages. Raises LaunchError, or RankLost where another one was lost meanwhile."""
        self.leave()
        for known in (self.hosts, self._last_message, self._reports, self._setups):
            known.clear()
        workers = self.plan.workers
        try:
            self._open_without(workers[lost] if 0 <= lost < len(workers) else None)
        except TransportError as problem:  # a name, say, that is not known any more, where it was a moment ago
            raise RankLost(HEAD, str(problem)) from problem

    def _open_without(self, lost: str | None) -> None:
        problem: Exception | None = None
        for plan in self._recovery.plans(lost):
            try:
                self._open_as(plan)
            except (LaunchError, BadSplit, BadModel) as found:
                self._note_refusal(found)
                problem = found
            except RankLost as found:
                if plan.workers or found.rank < self.models.drafter:
                    raise
                problem = found
            else:
                return
        raise LaunchError(str(problem)) from problem

    def _open_as(self, plan: Plan) -> None:
        self.plan, self.models = plan, Models(plan)
        self._open(plan.transport, self.models.count, plan.workers, plan.key)
        try:
            self._set_up()
        except BaseException:
            self.leave()
            raise

    def _note_refusal(self, problem: Exception) -> None:
        """A worker that cannot do its part has its place taken like one that is gone: raises RankLost."""
        if self.plan.workers and isinstance(problem, RankRefuses):
            self._recovery.refuse(self.plan.workers[problem.rank])
            raise RankLost(problem.rank, str(problem)) from problem

    @property
    def reopens(self) -> bool:
        """The ranks are workers, or processes that were started here, so that others can take their places."""
        return bool(self.plan.workers) or hosting_of(self.plan.transport).start == "processes"

    @property
    def lacks(self) -> str:
        """What it has no more of what it had at first, in words; empty where nothing was lost for good."""
        return self._recovery.lacks(self.models)

    @property
    def drafts(self) -> bool:
        """There is a draft model."""
        return self.models.draft is not None

    @property
    def rank_names(self) -> dict[int, str]:
        return {HEAD: "head"} | {setup.rank: setup.name for setup in self._setups}

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
        open_log: Callable[[Scheduler], EventLog] | None = None,
        prompt_chunk: PromptChunk | None = None,
        drafting: str | None = None,
        drafting_options: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
    ) -> Trial:
        """One generation. `stop_ids` None: the model's own end-of-text ids. `on_tokens` is called with each group of
        committed tokens and may give a Stop; `open_log` gives the head's event log; `prompt_chunk` replaces the plan's,
        `drafting` the strategy's own draft policy. `options` are the strategy's, for the log to be replayed.
        Raises RankLost, or ValueError on a prompt that does not fit."""
        chosen = self.drafting_of(strategy, drafting, drafting_options)
        policy = open_drafting(*chosen) if chosen[0] else None
        if policy and policy.model and not self.drafts:
            raise LaunchError("the draft was lost, and this strategy takes one")
        self.check_ids(prompt)
        ends = tuple(self.models.target.eos if stop_ids is None else stop_ids)
        start = Start(Request(tuple(prompt), max_tokens, ends), 0, strategy.name, options or {})
        scheduler = self.open_scheduler(lambda _: strategy, prompt_chunk, goes_on=open_log is None)
        name, settings = chosen
        self.begin(Begin({0: sampling}, name, settings, 0, margins, logits_on_wire))
        drafter = TextDrafter(lambda _: policy) if policy and not policy.model else None
        with uncollected():
            log = open_log(scheduler) if open_log else None
            head = Head(self, scheduler, strategy, drafter, on_tokens, log, trace=self.plan.trace)
            fidelity = "emulated" if self.plan.backend == "emulated" else "real"
            try:
                before = time.process_time()
                trial = head.generate(start, fidelity=fidelity, precision=self.precision)
                here = time.process_time() - before
                return msgspec.structs.replace(trial, processor_s=here + self._elsewhere_s(trial))
            except NothingToChoose as problem:
                raise LaunchError(f"{self.plan.target} on rank {len(self.models.split) - 1} ({self.plan.backend}):"
                                  f" {NotFinite(problem.position)}") from problem  # fmt: skip

    def _elsewhere_s(self, trial: Trial) -> float:
        """What ranks in other processes than this one used of processors (seconds)."""
        own = socket.gethostname(), os.getpid()
        there = (rank for rank in trial.ranks if (self.ready[rank.rank].host, self.ready[rank.rank].pid) != own)
        return sum(rank.processor_s for rank in there)

    def drafting_of(
        self, strategy: Strategy, drafting: str | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Name and options of the draft policy that goes with a strategy here, `drafting` if it is given; no name where
        nobody drafts. Raises LaunchError where the strategy cannot be had here."""
        if strategy.simulated_only:
            raise LaunchError(f"this strategy needs {strategy.simulated_only}: only `pipeinfer simulate` takes it")
        if not strategy.drafting:
            return "", {}
        chosen = (drafting, options or {}) if drafting else (strategy.drafting, strategy.drafting_options)
        if open_drafting(*chosen).model and self._planned_alone:
            raise LaunchError("this strategy drafts: give a draft model, or --drafting ngram, which needs none")
        return chosen

    def open_scheduler(
        self,
        open_strategy: Callable[[Start], Strategy],
        prompt_chunk: PromptChunk | None = None,
        *,
        keeps_texts: bool = False,
        goes_on: bool = False,
    ) -> Scheduler:
        """A scheduler over the ranks, in the place of the one before. They must `begin` before it sends anything. It
        `goes_on` from what that one measured of them, else it begins with nothing known, as a log has to."""
        before = self.scheduler
        first_run, first_order = (before.next_run, before.order) if before is not None else (0, 0)
        pipeline = PipelineShape(len(self.models.split), self.models.cells, self.plan.sequences,
                                 self.models.target.context, prompt_chunk or self.plan.prompt_chunk,
                                 keeps_texts, self._ranks_per_core(),
                                 rationed=(self.plan.node_cores or 1.0) < 1)  # fmt: skip
        measured = before.measured.for_another_text() if before is not None and goes_on else None
        self.scheduler = Scheduler(pipeline, open_strategy, first_run=first_run, first_order=first_order,
                                   measured=measured)  # fmt: skip
        return self.scheduler

    def _ranks_per_core(self) -> float:
        """On the fullest host, 1 at least. Ranks that compute in a share of the time, or have less than a core, count
        as so much of one, those whose engine has several `threads` as so many, and the head as `HEAD_SHARE` of one."""
        if self.plan.backend == "emulated":
            return 1.0  # its ranks wait and take no core
        share = min(self.plan.cpu_share, self.plan.node_cores or 1.0)
        cores = {self.ready[setup.rank].host: self.ready[setup.rank].cores for setup in self._setups}
        busy = dict.fromkeys(cores, 0.0) | {socket.gethostname(): HEAD_SHARE}
        for setup in self._setups:
            busy[self.ready[setup.rank].host] += share * setup.threads
        return max([1.0, *(busy[host] / cores[host] for host in cores)])

    @property
    def precision(self) -> str:
        """In which arithmetic the target's rows are computed."""
        arithmetic = self.models.target.precision
        return f"{arithmetic}, {ROW_BY_ROW}" if self.plan.exact else arithmetic

    def check_ids(self, prompt: Sequence[int]) -> None:
        """Raises ValueError where the tokenizer's files name tokens that the model was never given rows for."""
        largest, known = max(prompt, default=0), self.models.target.vocabulary
        if largest >= known:
            raise ValueError(f"the prompt has token {largest}, and {self.plan.target} knows 0..{known - 1} alone: its"
                             " tokenizer names tokens that the model lacks, leave them out of the prompt")  # fmt: skip

    # Bringing up

    def _set_up(self) -> None:
        self._place()
        self._setups = self.models.setups(self.addresses, self.transport.address)
        for setup, address in zip(self._setups, self.addresses, strict=True):
            self.transport.connect(setup.rank, address)
            self.send(setup.rank, setup)
        self.shape(self.plan.bandwidth_bps, self.plan.latency_s, self.plan.links)
        self.ready: dict[int, Ready] = {}
        ranks = {setup.rank for setup in self._setups}
        while ranks - set(self.ready):
            _, message = self.wait(lambda: f"ranks {sorted(ranks - set(self.ready))} to load")
            if isinstance(message, Ready):
                self.ready[message.rank] = message
                self.hosts[message.rank] = f"{message.host} (pid {message.pid})"
                self._ranks.met(message.rank, message.host, message.pid)
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
        elif self.plan.layers == FITTING:
            models.split = fitting_split(models, survey.ranks)
        check_memory(models, survey.ranks)

    def begin(self, begin: Begin) -> None:
        """Have every rank begin a trial."""
        self.send(0, msgspec.structs.replace(begin, drafting="", drafting_options={}))
        if self.models.draft is not None:
            context = self.models.draft.context
            self.send(self.models.drafter, msgspec.structs.replace(begin, context=context))

    def add_request(self, request: AddRequest) -> None:
        """Tell every rank of a request before it begins."""
        self.send(0, msgspec.structs.replace(request, drafting="", drafting_options={}))
        if self.models.draft is not None:
            self.send(self.models.drafter, request)

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
        while waiting:
            _, message = self.wait(lambda: f"reports of ranks {sorted(waiting)}")
            if isinstance(message, Report):
                waiting.discard(message.rank)
                self._reports[message.rank] = message
                self.spans += [Span(*span) for span in message.spans]
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
                          {rank: count for rank, (_, count) in sent.items()}, setup.cpu_share,
                          report.processor_s)  # fmt: skip
