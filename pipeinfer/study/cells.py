"""Running cells: simulated ones in parallel, real ones one after another on ranks."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from math import inf
from typing import Any

import msgspec

from pipeinfer.engine.sampling import Sampling
from pipeinfer.engine.special_tokens import framed
from pipeinfer.engine.text_stream import continuation
from pipeinfer.modelling.platform import platform_of
from pipeinfer.plugins import open_strategy
from pipeinfer.prompt_sets import prompt_named, suite
from pipeinfer.results.records import Record
from pipeinfer.results.trial import RunRecord, Trial
from pipeinfer.runtime.spans import Span
from pipeinfer.study.executors import local, started
from pipeinfer.study.identity import record_of
from pipeinfer.study.points import LiveCell, LoadCell, SimCell
from pipeinfer.study.recipes import Live
from pipeinfer.study.session import on_ranks
from pipeinfer.workload import WorkloadError

CHUNK, LARGEST_CHUNK, CHUNKS = 2, 16, 256
"""Cells that a process takes at a time: more of a sweep that has more than so many chunks."""

STARTING_S = 1.0
"""A pool's processes take so long to start: what is simulated within that needs none."""

# Simulated


def check_simulated(cells: Iterable[SimCell]) -> None:
    """Raise WorkloadError if one of them cannot be simulated: better before the sweep than in its middle."""
    for cell in distinct(cells):
        platform_of(cell.cluster, cell.pair).check(cell.setting)


def distinct(cells: Iterable[SimCell]) -> list[SimCell]:
    """One of each that differ in what fits or in what is in range: which drafts are right changes neither."""
    alike: dict[bytes, SimCell] = {}
    for cell in cells:
        alike_drafts = {"acceptance": 0.0, "difficulty": None, "trace": None, "phases": None}
        setting = msgspec.structs.replace(cell.setting, seed=0, **alike_drafts)
        at_once = cell.requests if isinstance(cell, LoadCell) else 1
        alike.setdefault(msgspec.json.encode((cell.cluster, cell.pair, setting, at_once)), cell)
    return list(alike.values())


def run_simulated(cells: list[SimCell], jobs: int | Executor) -> Iterator[Record]:
    """Their records, in order, from so many processes, or from a pool."""
    left = deque(cells)
    if isinstance(jobs, int):
        here_s = inf if jobs == 1 else 0.0 if started() else STARTING_S
        until = time.perf_counter() + here_s
        while left and time.perf_counter() < until:
            yield simulated(left.popleft())
    if left:  # Closing this generator cancels what has not begun.
        pool = local(jobs) if isinstance(jobs, int) else jobs
        yield from pool.map(simulated, left, chunksize=max(CHUNK, min(LARGEST_CHUNK, len(left) // CHUNKS)))


def simulated(cell: SimCell) -> Record:
    """Simulate one cell."""
    start = time.perf_counter()
    spans: list[Span] | None = [] if cell.spans else None
    trial = platform_of(cell.cluster, cell.pair).simulate(cell.setting, spans)
    return record_of(cell, in_nanoseconds(trial), time.perf_counter() - start, spans=spans or ())


def in_nanoseconds(trial: Trial) -> Trial:
    """Virtual times rounded to whole nanoseconds: what is below is rounding error, and long to write."""
    return msgspec.structs.replace(
        trial,
        emit_s=tuple([round(when, 9) for when in trial.emit_s]),
        runs=tuple(map(_run_in_nanoseconds, trial.runs)),
    )


def _run_in_nanoseconds(run: RunRecord) -> RunRecord:
    return msgspec.structs.replace(
        run,
        submitted_s=round(run.submitted_s, 9),
        finished_s=None if run.finished_s is None else round(run.finished_s, 9),
        cancel_sent_s=None if run.cancel_sent_s is None else round(run.cancel_sent_s, 9),
        # Of most cancelled runs most stages computed nothing, and rounding is not for nothing.
        compute_s=tuple([seconds and round(seconds, 9) for seconds in run.compute_s]),
    )


# Real


def check_live(cells: Iterable[LiveCell]) -> None:
    """Raise WorkloadError if a prompt or a strategy is not there."""
    for cell in cells:
        for prompt in {cell.prompt, *cell.live.prompts}:  # Of those that only the best options are run with, too.
            prompt_named(prompt)
        try:
            open_strategy(cell.strategy, cell.options)
        except ValueError as problem:
            raise WorkloadError(str(problem)) from None


def run_live(cells: Iterable[LiveCell], key: str | None = None) -> Iterator[Record]:
    """Their records, in order; `key` is the key file of workers. A generation that fails has an error for a trial; when
    the ranks cannot be brought up, every cell has."""
    return on_ranks(cells, lambda cell: live_plan(cell.live, key), _generate, warm_up)


def live_plan(live: Live, key: str | None) -> Any:
    """The ranks of a live recipe."""
    from pipeinfer.cluster.plan import Plan

    return Plan(
        backend=live.backend, backend_options=live.backend_options, target=live.target, draft=live.draft,
        stages=live.stages, transport=live.transport, workers=live.workers, key=key,
        cpu_share=live.cpu_share, node_cores=live.node_cores, exact=live.exact, latency_s=live.latency_us * 1e-6,
        bandwidth_bps=float("inf") if live.bandwidth_gbps is None else live.bandwidth_gbps * 1e9,
    )  # fmt: skip


def sampling_of(live: Live, temperature: float) -> Sampling:
    """How a live recipe samples at a temperature."""
    return Sampling(temperature, 0, live.top_p if temperature > 0 else 1.0, live.seed)


def warm_up(cluster: Any, cell: LiveCell) -> None:
    """A few tokens that nobody measures: first touches of memory, code and connections cost what no later ones do."""
    prompt = prompt_of(cluster, cell)
    for strategy in ("iterative", "pipeinfer"):
        cluster.generate(prompt, open_strategy(strategy, {}), max_tokens=8, stop_ids=())


def prompt_of(cluster: Any, cell: LiveCell) -> list[int]:
    """The prompt's tokens, after as much of the suite's other texts as the recipe wants."""
    text = prompt_named(cell.prompt).text
    ids: list[int] = cluster.tokenizer.encode(text)
    wanted = cell.live.prompt_tokens
    if len(ids) < wanted:
        others = [other for other in suite() if other != text]
        long = "\n\n".join([*others, text])
        whole = framed(cluster.tokenizer.encode(long, add_special=False), cluster.tokenizer.encode(long))
        kept = wanted - len(whole.before) - len(whole.after)
        ids = [*whole.before, *whole.text[-kept:], *whole.after]
    return ids


def _generate(cluster: Any, cell: LiveCell) -> Trial:
    live, prompt = cell.live, prompt_of(cluster, cell)
    trial: Trial = cluster.generate(
        prompt,
        open_strategy(cell.strategy, cell.options),
        max_tokens=cell.tokens,
        sampling=sampling_of(live, cell.temperature),
        stop_ids=(),
        margins=True,
        prompt_chunk=cell.prompt_chunk,
    )
    return with_config(cluster, trial, cell, prompt)


def with_config(cluster: Any, trial: Trial, cell: LiveCell, prompt: list[int]) -> Trial:
    """The trial with its cell, its text and the category of its prompt."""
    text = continuation(cluster.tokenizer, prompt, trial.token_ids)
    said = {"text": text, "category": prompt_named(cell.prompt).category}
    return msgspec.structs.replace(trial, config={**msgspec.to_builtins(cell), **said})
