"""`pipeinfer generate`: text from a pipeline of ranks."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeinfer.commands.options import (
    OUTPUT,
    PIPELINE,
    TEXT,
    AsJson,
    ClusterOptions,
    SeededSampling,
    key_values,
    option,
    path_option,
    with_options,
)
from pipeinfer.commands.streams import checked_argument, read_text

if TYPE_CHECKING:
    from pipeinfer.cluster.launch import Cluster
    from pipeinfer.cluster.plan import Plan
    from pipeinfer.commands.check import Check
    from pipeinfer.core.generation import Strategy
    from pipeinfer.core.scheduler import Scheduler
    from pipeinfer.engine.chat import Message
    from pipeinfer.engine.sampling import Sampling
    from pipeinfer.engine.text_stream import TextStream
    from pipeinfer.results.trial import Trial
    from pipeinfer.runtime.event_log import EventLog

DEFAULT_PROMPT = 'def read_lines(path, encoding="utf-8"):\n    """'


@dataclass(frozen=True)
class TextOptions:
    """What is continued, and where that ends."""

    file: Annotated[Path | None, path_option(TEXT, "Read the prompt from a file; - is standard input.")] = None
    tokens: Annotated[int, option(TEXT, "Tokens to generate; default: 128.", min=1)] = 128
    stop: Annotated[list[str] | None, option(TEXT, "End before this string. May be given again.")] = None
    chat: Annotated[bool, option(TEXT, "Write the prompt as the model's chat template does.", "--chat")] = False
    system: Annotated[str | None, option(TEXT, "With --chat: what the model is told beforehand.")] = None
    messages: Annotated[Path | None, path_option(TEXT, "Like --chat, after the messages in this JSON file.")] = None
    raw: Annotated[bool, option(TEXT, "The prompt without the model's special tokens.", "--raw")] = False
    ignore_eos: Annotated[bool, option(TEXT, "Go on after tokens that end a text.", "--ignore-eos")] = False

    def conversation(self, prompt: str | None) -> "list[Message]":
        """The messages of which the prompt is the last; none where it is a text to be continued. Raises ValueError."""
        from pipeinfer.commands.conversation import check_conversation, read_conversation

        chat = self.chat or self.messages is not None
        check_conversation(chat=chat, raw=self.raw, system=self.system)
        if not chat:
            return []
        typed = None if prompt is None and self.file is None else read_prompt(prompt, self.file)
        return read_conversation(typed, self.system, self.messages)


@dataclass(frozen=True)
class StrategyOptions:
    """When to send which run."""

    strategy: Annotated[str, option(PIPELINE, "adaptive (default), pipeinfer, iterative, or another one's name.")] = (
        "adaptive"
    )
    strategy_option: Annotated[
        list[str] | None,
        option(PIPELINE, "An option of it, like k=6. May be given again.", "--option", "-o", metavar="NAME=VALUE"),
    ] = None
    drafting: Annotated[str | None, option(PIPELINE, "Draft policy, like ngram; default: the strategy's own.")] = None
    drafting_option: Annotated[
        list[str] | None, option(PIPELINE, "An option of it, like longest=4.", metavar="NAME=VALUE")
    ] = None

    def open(self) -> "Strategy":
        """Raises UnknownPlugin, or ValueError on wrong options."""
        from pipeinfer.plugins import open_strategy

        strategy: Strategy = open_strategy(self.strategy, key_values(self.strategy_option))
        if strategy.simulated_only:
            needs = f'strategy "{self.strategy}" needs {strategy.simulated_only}'
            raise ValueError(f"{needs}: only `pipeinfer simulate` takes it")
        return strategy

    def needs_draft_model(self, strategy: "Strategy") -> bool:
        """Whether a draft rank is needed: not where nobody drafts, or the draft policy does without a model."""
        from pipeinfer.plugins import open_drafting

        if not strategy.drafting:
            return False
        own = strategy.drafting, strategy.drafting_options
        chosen = (self.drafting, key_values(self.drafting_option)) if self.drafting else own
        return bool(open_drafting(*chosen).model)

    def for_cluster(self) -> dict[str, Any]:
        """What `Cluster.generate` is told of it besides the strategy itself."""
        return {
            "options": key_values(self.strategy_option),
            "drafting": self.drafting, "drafting_options": key_values(self.drafting_option),
        }  # fmt: skip


@dataclass(frozen=True)
class OutputOptions:
    """What is written besides the text."""

    trace: Annotated[Path | None, path_option(OUTPUT, "Write a timeline for Perfetto or chrome://tracing.")] = None
    log: Annotated[Path | None, path_option(OUTPUT, "Write the head's events, for `pipeinfer replay`.")] = None
    check: Annotated[bool, option(OUTPUT, "Then decode one by one on a single stage and compare.", "--check")] = False
    as_json: AsJson = False


@with_options
def generate(
    text: TextOptions,
    strategy: StrategyOptions,
    cluster: ClusterOptions,
    sampling: SeededSampling,
    output: OutputOptions,
    prompt: Annotated[str | None, typer.Argument(hidden=True)] = None,
) -> None:
    """Continue a prompt (default: some Python) on a pipeline of ranks, streamed as it is committed."""
    settings = cluster.settings()
    transport, nodes = settings.settle()  # First: of a world's processes one alone goes on, and says what is wrong.
    from pipeinfer.cluster.launch import Cluster
    from pipeinfer.cluster.mpi_world import in_mpi_world
    from pipeinfer.commands.view import starting
    from pipeinfer.engine.text_stream import TextStream
    from pipeinfer.files import check_writable

    conversation = text.conversation(prompt)
    words = "" if conversation else read_prompt(prompt, text.file)
    chosen = strategy.open()
    drafts = strategy.needs_draft_model(chosen)
    plan = settings.plan(transport, nodes, drafts=drafts, trace=output.trace is not None)
    plan, words = _with_room(plan, words, conversation, text.tokens)
    how = sampling.sampling()
    if output.trace is not None:
        check_writable(output.trace)
    log = EventFile(output.log) if output.log is not None else None
    with starting():
        ranks = Cluster(plan)
    with ranks:
        print_who(ranks, layout=in_mpi_world() or plan.layers == "auto")
        prompt_ids = ranks.tokenizer.encode(words, add_special=not (text.raw or conversation))
        ends = () if text.ignore_eos else ranks.models.target.eos
        stream = TextStream(ranks.tokenizer, text.stop or [], prompt=prompt_ids, ends=ends)
        shown = f"{conversation[-1]['content']}\n\n" if conversation else words
        with _view(ranks, stream, shown, quiet=output.as_json) as view:
            trial = ranks.generate(
                prompt_ids, chosen, max_tokens=text.tokens, sampling=how, stop_ids=ends, on_tokens=view.on_tokens,
                open_log=log.open if log is not None else None, **strategy.for_cluster(),
            )  # fmt: skip
    checked = _check(plan, prompt_ids, how, trial) if output.check else None
    if output.as_json:
        _print_json(trial, prompt_ids, stream.text, checked)
    else:
        view.print_summary(trial, chosen.conclusion())
    _write_files(ranks, output.trace, log)
    if checked is not None:
        checked.conclude()


def _with_room(plan: "Plan", words: str, conversation: "list[Message]", tokens: int) -> "tuple[Plan, str]":
    """The plan with cells for the whole text, and the prompt: the conversation in the model's own template if any."""
    import msgspec

    from pipeinfer.commands.conversation import written

    if conversation:
        words = written(conversation, plan)
    # No token is of less than a byte.
    return msgspec.structs.replace(plan, longest=len(words.encode()) + tokens), words


def _write_files(ranks: "Cluster", trace: Path | None, log: "EventFile | None") -> None:
    """The text is out: now what a full disk may keep from being written."""
    if trace is not None:
        _write_trace(ranks, trace)
    if log is not None:
        log.close()


class EventFile:
    """The scheduler's event log, the system's line by line. A full disk ends it and not the text."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb", buffering=0)
        self._problem: OSError | None = None

    def open(self, made: "Scheduler", after: str = "", now: float = 0.0) -> "EventLog":
        """Begin it, or go on in it `after` a scheduler was lost: its header tells how the scheduler was made."""
        from pipeinfer.runtime.event_log import EventLog, SchedulerHeader

        return EventLog(SchedulerHeader(made.pipeline, made.next_run, made.order, after, now), self._write)

    def _write(self, line: bytes) -> None:
        if self._problem is None:
            try:
                self._file.write(line)
            except OSError as problem:
                self._problem = problem

    def close(self) -> None:
        """Raises OSError where something could not be written."""
        self._file.close()
        if self._problem is not None:
            raise OSError(self._problem.errno, self._problem.strerror, str(self._path)) from self._problem


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt given as text, or in a file. Raises ValueError when both are, or it is no text."""
    if prompt is not None and file is not None:
        raise ValueError("give the prompt as text or with --file, not both")
    if file is not None:
        return read_text(file)
    return DEFAULT_PROMPT if prompt is None else checked_argument(prompt, "the prompt")


def print_who(cluster: "Cluster", *, layout: bool) -> None:
    """Notes on the models, and who is where, on standard error: when a process dies, the MPI launcher may name no more
    than its host and pid."""
    from pipeinfer.commands.output import print_notes

    if layout:
        for rank, ready in sorted(cluster.ready.items()):
            print(f"{cluster.rank_names[rank]} on {ready.host} (pid {ready.pid})", file=sys.stderr)
    print_notes(cluster.models)


def _view(cluster: "Cluster", stream: "TextStream", prompt: str, *, quiet: bool) -> Any:
    from pipeinfer.cluster.mpi_world import in_mpi_world
    from pipeinfer.commands.view import LiveView, PlainView, View

    # Open MPI gives the head a terminal, wherever its output goes.
    terminal = sys.stdout.isatty() and not in_mpi_world()
    if quiet:
        return View(stream, prompt)
    return LiveView(stream, prompt, lambda: cluster.scheduler) if terminal else PlainView(stream, prompt)


def _write_trace(cluster: "Cluster", path: Path) -> None:
    from pipeinfer.files import write_whole
    from pipeinfer.runtime.spans import chrome_trace

    write_whole(path, chrome_trace(cluster.spans, cluster.rank_names))


def _check(plan: "Plan", prompt: list[int], sampling: "Sampling", trial: "Trial") -> "Check":
    from pipeinfer.commands.check import check
    from pipeinfer.commands.view import starting

    with starting():
        return check(plan, prompt, sampling, trial)


def _print_json(trial: "Trial", prompt_ids: list[int], text: str, checked: "Check | None") -> None:
    from pipeinfer.commands.output import print_json
    from pipeinfer.results.metrics import summary

    checks = {} if checked is None else {"check": checked.summary}
    print_json({**summary(trial), **checks, "prompt_ids": prompt_ids, "text": text})
