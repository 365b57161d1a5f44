"""`pipeinfer generate`: text from a pipeline of ranks."""

import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from pipeinfer.commands.streams import checked_argument, read_text

if TYPE_CHECKING:
    from pipeinfer.cluster.launch import Cluster
    from pipeinfer.cluster.plan import Plan
    from pipeinfer.commands.check import Check
    from pipeinfer.core.generation import Strategy
    from pipeinfer.core.log import EventLog
    from pipeinfer.core.messages import Sampling
    from pipeinfer.core.scheduler import Scheduler
    from pipeinfer.engine.text_stream import TextStream
    from pipeinfer.results.trial import Trial

DEFAULT_PROMPT = 'def read_lines(path, encoding="utf-8"):\n    """'


def generate(
    prompt: Annotated[str | None, typer.Argument(help="The text to continue; default: some Python.")] = None,
    file: Annotated[Path | None, typer.Option(help="Read the prompt from a file; - is standard input.")] = None,
    strategy: Annotated[str, typer.Option(help="iterative, speculative, pipeinfer, or a plug-in's.")] = "pipeinfer",
    option: Annotated[list[str] | None, typer.Option("--option", "-o", help="A strategy option, like -o k=6.")] = None,
    drafting: Annotated[str | None, typer.Option(help="Draft policy, like ngram; default: the strategy's own.")] = None,
    drafting_option: Annotated[list[str] | None, typer.Option(help="An option of it, like longest=4.")] = None,
    nodes: Annotated[int | None, typer.Option(help="Ranks, the draft's too; default: 4, or MPI's.", min=1)] = None,
    layers: Annotated[str | None, typer.Option(help="Layers per rank, / before the draft's: 4,4/1; or auto.")] = None,
    profile: Annotated[Path | None, typer.Option(help="Split as this cluster was calibrated.")] = None,
    backend: Annotated[str, typer.Option(help="Who computes: numpy, emulated, or a plug-in's.")] = "numpy",
    backend_option: Annotated[list[str] | None, typer.Option(help="A backend option, like layer_s=0.005.")] = None,
    target: Annotated[str, typer.Option(help="The model: a name the backend knows, or a path.")] = "builtin:target",
    draft: Annotated[str, typer.Option(help="The draft model.")] = "builtin:draft",
    transport: Annotated[str | None, typer.Option(help="tcp, inproc, mpi; default: mpi under mpirun, or tcp")] = None,
    launcher: Annotated[str | None, typer.Option(help="mpi: start the ranks here by mpiexec.")] = None,
    bandwidth: Annotated[str | None, typer.Option(help="Limit every link, like 1Gbit.")] = None,
    latency: Annotated[str | None, typer.Option(help="Delay every link, like 0.2ms.")] = None,
    cpu_share: Annotated[
        float,
        typer.Option(help="Share of the time in which each rank computes, as on a slower node.", min=0.01, max=1.0),
    ] = 1.0,
    tokens: Annotated[int, typer.Option(help="Tokens to generate.", min=1)] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0)] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample among the k likeliest tokens; 0: all.", min=0)] = 0,
    top_p: Annotated[float, typer.Option(help="Sample within this probability mass.", min=0.0, max=1.0)] = 1.0,
    seed: Annotated[int, typer.Option(help="Same seed, same tokens, whatever the strategy.", min=0)] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this string. May be given again.")] = None,
    prompt_chunk: Annotated[str, typer.Option(help="Tokens of the prompt sent at a time; auto, or whole.")] = "auto",
    cells: Annotated[int, typer.Option(help="KV cells per rank; 0: the model's context and some.", min=0)] = 0,
    sequences: Annotated[int, typer.Option(help="KV sequence ids per rank.", min=2)] = 64,
    workers: Annotated[str | None, typer.Option(help="Addresses of running workers, in rank order.")] = None,
    key: Annotated[Path | None, typer.Option(help="The workers' key file.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Write a timeline for Perfetto or chrome://tracing.")] = None,
    log: Annotated[Path | None, typer.Option(help="Write the head's event log; `pipeinfer replay` reads it.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The prompt without the model's special tokens.")] = False,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after tokens that end a text.")] = False,
    check: Annotated[bool, typer.Option(help="Then decode one by one on a single stage and compare.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Generate text on a pipeline of ranks, streamed as it is committed."""
    from pipeinfer.cluster.launch import Cluster
    from pipeinfer.cluster.mpi_world import settle
    from pipeinfer.commands.view import starting
    from pipeinfer.core.messages import Sampling
    from pipeinfer.engine.text_stream import TextStream
    from pipeinfer.plugins import open_strategy

    given = nodes
    nodes = nodes or rank_count(layers, drafts=True)
    transport, nodes = settle(launcher, "tcp" if workers else transport, nodes)
    text = read_prompt(prompt, file)
    chosen = open_strategy(strategy, key_values(option))
    drafts = needs_draft_model(chosen, drafting, key_values(drafting_option))
    check_agreement(given, layers, workers, key, drafts=drafts)
    plan = make_plan(
        drafts=drafts, nodes=nodes, layers=layers, profile=profile, backend=backend,
        backend_options=key_values(backend_option), target=target, draft=draft, transport=transport,
        bandwidth=bandwidth, latency=latency, cells=cells,
        sequences=sequences, workers=workers, key=key, trace=trace is not None, cpu_share=cpu_share,
        prompt_chunk=prompt_chunk,
    )  # fmt: skip
    sampling = Sampling(temperature, top_k, top_p, seed)
    if trace is not None:
        trace.touch()  # An unwritable path is better known now than after the generation.
    with log.open("wb", buffering=0) if log else nullcontext() as log_file, ExitStack() as stack:
        with starting():
            cluster = stack.enter_context(Cluster(plan))
        if transport == "mpi" or cluster.plan.layers == "auto":
            _print_layout(cluster)
        for note in cluster.models.notes:
            print(f"note: {note}", file=sys.stderr)
        prompt_ids = cluster.tokenizer.encode(text, add_special=not raw)
        ends = () if ignore_eos else cluster.models.target.eos
        stream = TextStream(cluster.tokenizer, stop or [], prompt=prompt_ids, ends=ends)
        with _view(cluster, stream, text, quiet=as_json) as view:
            trial = cluster.generate(
                prompt_ids, chosen, max_tokens=tokens, sampling=sampling, stop_ids=ends, on_tokens=view.on_tokens,
                open_log=log_opener(log_file) if log_file else None, strategy_name=strategy,
                options=key_values(option), drafting=drafting, drafting_options=key_values(drafting_option),
            )  # fmt: skip
        if trace is not None:
            _write_trace(cluster, trace)
    checked = _check(plan, prompt_ids, sampling, trial) if check else None
    if as_json:
        _print_json(trial, prompt_ids, stream.text, checked)
    else:
        view.print_summary(trial)
    if checked is not None:
        checked.conclude()


def needs_draft_model(strategy: "Strategy", drafting: str | None, options: dict[str, Any]) -> bool:
    """Whether a draft rank is needed: not where nobody drafts, or the draft policy does without a model."""
    from pipeinfer.plugins import open_drafting

    if not strategy.drafting:
        return False
    chosen = (drafting, options) if drafting else (strategy.drafting, strategy.drafting_options)
    return bool(open_drafting(*chosen).model)


def log_opener(file: IO[bytes]) -> "Callable[[Scheduler], EventLog]":
    """What opens the scheduler's event log in `file`: its header tells how the scheduler was made."""
    from pipeinfer.core.log import EventLog, SchedulerHeader

    return lambda made: EventLog(SchedulerHeader(made.pipeline, made.next_run, made.order), file.write)


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt given as text, or in a file. Raises ValueError when both are, or it is no text."""
    if prompt is not None and file is not None:
        raise ValueError("give the prompt as text or with --file, not both")
    if file is not None:
        return read_text(file)
    return DEFAULT_PROMPT if prompt is None else checked_argument(prompt, "the prompt")


def key_values(pairs: list[str] | None) -> dict[str, Any]:
    """`k=6` and the like; values are read as JSON where they are, else taken as text. Raises ValueError."""
    import msgspec

    found: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ValueError(f'option "{pair}": expected name=value')
        try:
            found[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            found[name] = value
    return found


def check_agreement(
    nodes: int | None, layers: str | None, workers: str | None, key: Path | None, *, drafts: bool
) -> None:  # fmt: skip
    """Raise ValueError where what was given says two things."""
    if key is not None and workers is None:
        raise ValueError("--key is the key file of running workers: give their addresses with --workers")
    ranks = rank_count(layers, drafts=drafts)
    if nodes is not None and ranks not in (None, nodes):
        raise ValueError(f"--layers {layers} is for {ranks} ranks in all, and --nodes says {nodes}")


def rank_count(layers: str | None, *, drafts: bool) -> int | None:
    """How many ranks a layer split is for; None where it does not say how many the target has."""
    split, _, draft_split = (layers or "").partition("/")
    return split.count(",") + 1 + (draft_split.count(",") + 1) * drafts if split not in ("", "auto") else None


def make_plan(
    *, drafts: bool, nodes: int, layers: str | None, profile: Path | None, backend: str,
    backend_options: dict[str, Any], target: str, draft: str, transport: str,
    bandwidth: str | None, latency: str | None, cells: int, sequences: int,
    workers: str | None, key: Path | None, trace: bool, cpu_share: float, prompt_chunk: str = "auto",
) -> "Plan":  # fmt: skip
    """The plan that the options describe: of `nodes` ranks the last are the draft's, where the strategy drafts."""
    from pipeinfer.cluster.plan import Plan
    from pipeinfer.core.prompt import parse_chunk
    from pipeinfer.units import bandwidth_bps, seconds

    addresses = tuple(workers.split(",")) if workers else ()
    nodes = len(addresses) or nodes
    if profile is not None and (layers or "").partition("/")[0] != "auto":
        raise ValueError("--profile says how fast each rank is: it goes with --layers auto")
    split, slash, draft_split = (layers or "").partition("/")
    if profile is not None and not slash and "," in (measured := calibrated_draft(profile)):
        slash, draft_split = "/", measured
    draft_ranks = (draft_split.count(",") + 1) * drafts
    if drafts and split in ("", "auto") and nodes <= draft_ranks:
        own = "a rank" if draft_ranks == 1 else f"{draft_ranks} ranks"
        raise ValueError(
            f"this strategy drafts, which takes {own} of its own: expected --nodes {draft_ranks + 1} or more"
        )
    return Plan(
        backend=backend, backend_options=backend_options, target=target, draft=draft if drafts else None,
        stages=nodes - draft_ranks, layers=split or None, draft_layers=draft_split if slash and drafts else None,
        profile=str(profile) if profile else None, transport=transport, cells=cells, sequences=sequences,
        bandwidth_bps=bandwidth_bps(bandwidth) if bandwidth else float("inf"),
        latency_s=seconds(latency) if latency else 0.0, workers=addresses, key=str(key) if key else None, trace=trace,
        cpu_share=cpu_share, prompt_chunk=parse_chunk(prompt_chunk),
    )  # fmt: skip


def calibrated_draft(profile: Path) -> str:
    """How the draft was split when this cluster was calibrated, as `--layers` says it. Raises BadProfile."""
    from pipeinfer.modelling.profile import read_profile

    return ",".join(str(stop - start) for start, stop in (share.layers for share in read_profile(profile).draft_shares))


def _view(cluster: "Cluster", stream: "TextStream", prompt: str, *, quiet: bool) -> Any:
    from pipeinfer.cluster.mpi_world import in_world
    from pipeinfer.commands.view import LiveView, PlainView, View

    # Open MPI gives the head a terminal, wherever its output goes.
    terminal = sys.stdout.isatty() and not in_world()
    if quiet:
        return View(stream, prompt)
    return LiveView(stream, prompt, lambda: cluster.scheduler) if terminal else PlainView(stream, prompt)


def _print_layout(cluster: "Cluster") -> None:
    """Who is where, on standard error: when a process dies, the MPI launcher may name no more than its host and pid."""
    for rank, ready in sorted(cluster.ready.items()):
        print(f"{cluster.rank_names[rank]} on {ready.host} (pid {ready.pid})", file=sys.stderr)


def _write_trace(cluster: "Cluster", path: Path) -> None:
    from pipeinfer.runtime.spans import chrome_trace

    path.write_bytes(chrome_trace(cluster.spans, cluster.rank_names))


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
