"""Strategies on slow nodes with slow links, where a 107M target and the built-in draft really run.

    pytest tests/benchmarks/test_slow_cluster.py --benchmark-only

Four ranks, the same for everybody: plain decoding has the target on all four, the others have the draft on the last. A
rank computes in a quarter of the time, so that two cores serve them all and ranks seldom want the same memory at once;
links carry 100 Mbit/s. Where namespaces can be made, each rank has a network of its own behind the kernel's token
bucket; elsewhere the `shaped` transport does it. Each strategy is shown at the best of its options, PipeInfer with its
defaults as well.

Run as a script, this file is the head: strategies in turns over the prompts, and one line of JSON for what they did.
"""

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import namespaces
import pytest

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.cluster.python_process import ONE_THREAD
from pipeinfer.engine.sampling import Sampling
from pipeinfer.plugins import open_strategy
from pipeinfer.prompt_sets import prompt_named
from pipeinfer.results.metrics import tokens_per_second
from pipeinfer.runtime.transports.keys import write_keys

RANKS = 4
SHARE = 0.25
RATE_BPS, RATE = 100e6, "100mbit"
TOKENS = 48

ADAPTIVE = 0.97
"""Without an option, adaptive is to be that close to the best of the others at the best of their options."""

PROMPTS = ("merge-sorted", "line-reader", "lru-table")
ENGINES: dict[str, dict[str, Any]] = {"numpy": {}, "torch": {}, "llamacpp": {}}
SAMPLINGS = {"greedy": Sampling(), "sampled": Sampling(0.8, 0, 0.95, 1)}
SWEEP: dict[str, list[dict[str, Any]]] = {
    "iterative": [{}],
    "speculative": [{"k": k, "cutoff": cutoff} for k, cutoff in product((1, 2, 4, 6, 8), (0, 0.3))],
    "pipeinfer": [{}, *({"draft": draft} for draft in (1, 2, 4))],
    "adaptive": [{}],
}


class Job(msgspec.Struct):
    """What the head is to run."""

    engine: str
    options: dict[str, Any]
    sampling: Sampling
    workers: tuple[str, ...] = ()
    key: str | None = None


class Result(msgspec.Struct):
    """A generation: which strategy, with which options as JSON, of which prompt, and how it went."""

    strategy: str
    options: str
    prompt: str
    tokens_per_second: float
    token_ids: tuple[int, ...]


# Measuring -----------------------------------------------------------------------------------------------------------


def measure(job: Job) -> list[Result]:
    """Every strategy with all of its options, prompt by prompt, over ranks that are brought up anew for each."""
    return [result for prompt in PROMPTS for drafts in (False, True) for result in session(job, prompt, drafts)]


def session(job: Job, prompt: str, drafts: bool) -> Iterator[Result]:
    plan = Plan(
        backend=job.engine, backend_options=job.options, target="builtin:target-100m", stages=RANKS - drafts,
        draft="builtin:draft" if drafts else None, cpu_share=SHARE, workers=job.workers, key=job.key, cells=512,
        bandwidth_bps=float("inf") if job.workers else RATE_BPS,
    )  # fmt: skip
    with Cluster(plan) as cluster:
        ids = cluster.tokenizer.encode(prompt_named(prompt).text)
        chosen = {name: options for name, options in SWEEP.items() if open_strategy(name, {}).drafts == drafts}
        cluster.generate(ids, open_strategy(next(iter(chosen)), {}), max_tokens=4, stop_ids=())  # nobody measures it
        for name, options in ((name, options) for name, every in chosen.items() for options in every):
            trial = cluster.generate(
                ids, open_strategy(name, options), max_tokens=TOKENS, sampling=job.sampling, stop_ids=()
            )  # fmt: skip
            told = msgspec.json.encode(options).decode()
            yield Result(name, told, prompt, tokens_per_second(trial) or 0.0, trial.token_ids)


def run_job(job: Job, *, isolated: bool, folder: Path) -> list[Result]:
    """The job on ranks in namespaces of their own, or here."""
    if not isolated:
        return measure(job)
    with namespaces.hosts(RANKS + 1, RATE) as (head, *others), workers(others, folder / "key.json") as addresses:
        job = msgspec.structs.replace(job, workers=tuple(addresses), key=str(folder / "key.json"))
        command = head.command(sys.executable, __file__, msgspec.json.encode(job).decode())
        return msgspec.json.decode(subprocess.check_output(command), type=list[Result])


@contextmanager
def workers(hosts: Sequence[namespaces.Host], key: Path) -> Iterator[list[str]]:
    """`pipeinfer worker` on each host; their addresses."""
    write_keys(key)
    addresses = [f"tcp://{host.address}:5555" for host in hosts]
    with ExitStack() as stack:
        for rank, (host, address) in enumerate(zip(hosts, addresses, strict=True)):
            words = ["-m", "pipeinfer", "worker", "--rank", str(rank), "--listen", address, "--key", str(key)]
            process = stack.enter_context(
                subprocess.Popen(host.command(sys.executable, *words), stdout=subprocess.PIPE, text=True,
                                 env={**ONE_THREAD, **os.environ})
            )  # fmt: skip
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline().startswith("listening")
        yield addresses


# Comparing -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def obstacle() -> str:
    return namespaces.missing()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("network", ["namespaces", "shaped"])
@pytest.mark.parametrize("how", SAMPLINGS)
@pytest.mark.parametrize("engine", ENGINES)
def test_pipeinfer_beats_the_alternatives(
    benchmark: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, engine: str, how: str, network: str,
    obstacle: str,
) -> None:  # fmt: skip
    pytest.importorskip({"llamacpp": "llama_cpp"}.get(engine, engine))
    if network == "namespaces" and obstacle:
        pytest.skip(obstacle)
    job = Job(engine, ENGINES[engine], SAMPLINGS[how])
    results = benchmark.pedantic(run_job, (job,), {"isolated": network == "namespaces", "folder": tmp_path}, rounds=1)
    speeds = by_variant(results)
    best = {name: max(variants, key=lambda options: median(variants[options])) for name, variants in speeds.items()}
    rows = [*best.items(), ("pipeinfer", "{}")]
    with capsys.disabled():
        print()
        for name, options in rows:
            ratio = median(map(quotient, speeds[name][options], speeds["iterative"]["{}"]))
            print(f"{engine} {how} {network}: {name:11} {median(speeds[name][options]):6.1f} tokens/s, {ratio:.2f} of"
                  f" iterative {options}")  # fmt: skip
    for prompt in PROMPTS:
        assert len({result.token_ids for result in results if result.prompt == prompt}) == 1
    for other in ("iterative", "speculative"):
        assert median(map(quotient, speeds["pipeinfer"][best["pipeinfer"]], speeds[other][best[other]])) > 1
    for name, options in rows:
        assert median(map(quotient, speeds["adaptive"]["{}"], speeds[name][options])) >= ADAPTIVE


def by_variant(results: Sequence[Result]) -> dict[str, dict[str, list[float]]]:
    """Tokens per second by strategy and options, in the order of the prompts."""
    speeds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        speeds[result.strategy][result.options].append(result.tokens_per_second)
    return speeds


def quotient(above: float, below: float) -> float:
    return above / below


if __name__ == "__main__":
    print(msgspec.json.encode(measure(msgspec.json.decode(sys.argv[1], type=Job))).decode())
